"""Whether two sides differ, and by how much.

Neighbouring calls share the machine's mood, and each process has a mood of its own (where its memory lies), so single
calls are no independent samples. The interval is over the processes' medians, the upper level of Kalibera
and Jones (Rigorous Benchmarking in Reasonable Time, 2013); the rank test takes blocks of neighbouring pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError

__all__ = [
    "Comparison",
    "Samples",
    "compare",
    "compare_all",
    "compare_runs",
    "compare_with_both",
    "corrected",
    "rank_sum_p",
    "signed_rank_p",
]

_LARGEST_BLOCK = 25  # pairs
_SMALLEST_BLOCK = 5
_BLOCKS = 8  # of a process, if they become neither too small nor too large
_FEWEST_PAIRS = 20
_RESAMPLES = 2000
_ALPHA = 0.05
_TRIM = 0.2
# Student's t at 97.5 %, by degrees of freedom from 1
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

Floats = NDArray[np.float64]
Samples = Sequence[Sequence[int] | Floats]


@dataclass(frozen=True)
class Comparison:
    """One side against another.

    Attributes:
        ratio: Of latencies, ours over theirs; below 1 is faster.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Of the two-sided rank test: how likely so much by chance.
        processes: How many each side ran in.
    """

    ratio: float
    low: float
    high: float
    p: float
    processes: int

    @property
    def differs(self) -> bool:
        """Whether the interval excludes equality and the test does too."""
        return not self.low <= 1.0 <= self.high and self.p < _ALPHA

    @property
    def text(self) -> str:
        """The same in words."""
        interval = f"{self.low:.3f} to {self.high:.3f}"
        if not self.differs:
            return f"no significant difference (ratio {self.ratio:.3f}, 95 % interval {interval})"
        word = "slower" if self.ratio > 1 else "faster"
        return f"{abs(self.ratio - 1):.1%} {word} (ratio {self.ratio:.3f}, 95 % interval {interval})"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**asdict(self), "differs": self.differs, "text": self.text}


def compare(ours: Samples, theirs: Samples, *, seed: int = 0) -> Comparison:
    """Compares two sides that were called in turn, pair by pair.

    Args:
        ours: Nanoseconds, per process one number a call.
        theirs: Of the side that was called in turn with it.
        seed: Of the resampling that stands in for processes where there is but one.

    Raises:
        InputError: The two were not called in turn, or there are too few pairs.
    """
    return _compared([_log_ratios(ours, theirs)], seed)


def compare_with_both(ours: Samples, one: Samples, other: Samples, *, seed: int = 0) -> Comparison:
    """Compares a side with two copies of its reference, all called in turn: less noise than with either.

    The medians of the two ratios are averaged, not the copies' calls: call times are skewed, and the median of a mean
    of two is above the median of one.

    Raises:
        InputError: As for `compare`.
    """
    return _compared([_log_ratios(ours, one), _log_ratios(ours, other)], seed)


def _log_ratios(ours: Samples, theirs: Samples) -> list[Floats]:
    """Returns, by process, the logarithm of each pair's ratio."""
    if [len(process) for process in ours] != [len(process) for process in theirs]:
        raise InputError("these samples were not taken in turn: only sides of one run are compared call by call")
    pairs = [np.log(np.asarray(a, np.float64) / np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=True)]
    if not pairs or min(map(len, pairs)) < _FEWEST_PAIRS:
        raise InputError(f"fewer than {_FEWEST_PAIRS} calls in a process are too few to compare: give more --seconds")
    return pairs


def _compared(references: Sequence[Sequence[Floats]], seed: int) -> Comparison:
    """Returns the comparison with one or more references, each a list of log ratios by process."""
    medians = np.mean([[np.median(process) for process in pairs] for pairs in references], axis=0)
    blocks = [
        np.mean([_block_medians(pairs) for pairs in process], axis=0) for process in zip(*references, strict=True)
    ]
    mean, half = _trimmed(medians) if len(medians) > 1 else _resampled(blocks[0], seed)
    p = signed_rank_p(np.concatenate(blocks))
    return Comparison(math.exp(mean), math.exp(mean - half), math.exp(mean + half), p, len(medians))


def compare_runs(ours: Samples, theirs: Samples) -> Comparison:
    """Compares two runs of one machine that were not interleaved: process medians against process medians.

    Fresh processes of one model differ by several percent, which the interval shows; Welch's for unequal variances.

    Raises:
        InputError: A run has fewer than two processes.
    """
    sides = [np.log([float(np.median(process)) for process in side if len(process)]) for side in (ours, theirs)]
    if min(map(len, sides)) < 2:
        raise InputError("runs of one process cannot be compared with each other: give --processes 3 or more")
    parts = [side.var(ddof=1) / len(side) for side in sides]
    variance = max(sum(parts), 1e-18)
    freedom = variance**2 / sum(max(v, 1e-18) ** 2 / (len(s) - 1) for v, s in zip(parts, sides, strict=True))
    mean, half = sides[0].mean() - sides[1].mean(), _t(int(freedom)) * math.sqrt(variance)
    blocks = [
        np.concatenate([_block_medians(np.log(np.asarray(process, np.float64))) for process in side if len(process)])
        for side in (ours, theirs)
    ]
    p, processes = rank_sum_p(*blocks), min(map(len, sides))
    return Comparison(math.exp(mean), math.exp(mean - half), math.exp(mean + half), p, processes)


def compare_all(sides: Sequence[Samples], reference: Samples) -> list[Comparison]:
    """Compares many sides with one, their p-values corrected for being many (Holm)."""
    found = [compare(side, reference) for side in sides]
    return [replace(c, p=p) for c, p in zip(found, corrected([c.p for c in found]), strict=True)]


def _block_medians(pairs: Floats) -> Floats:
    block = min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, len(pairs) // _BLOCKS))
    whole = len(pairs) // block * block
    return np.asarray(np.median(pairs[:whole].reshape(-1, block), axis=1))


def _trimmed(medians: Floats) -> tuple[float, float]:
    """Returns the trimmed mean and half its 95 % interval (Yuen and Dixon 1973): a process in trouble decides nothing.

    A fifth is cut at either end, nothing below five: then it is Student's.
    """
    ordered, count = np.sort(medians), len(medians)
    cut = int(_TRIM * count)
    kept = count - 2 * cut
    winsorized = np.clip(ordered, ordered[cut], ordered[count - cut - 1])
    error = float(winsorized.std(ddof=1)) * math.sqrt((count - 1) / (kept * (kept - 1)))
    return float(ordered[cut : count - cut].mean()), _t(kept - 1) * error


def _resampled(blocks: Floats, seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).integers(0, len(blocks), (_RESAMPLES, len(blocks)))
    low, high = np.quantile(np.median(blocks[drawn], axis=1), [_ALPHA / 2, 1 - _ALPHA / 2])
    return float(np.median(blocks)), float(high - low) / 2


def _t(freedom: int) -> float:
    return _T[max(freedom, 1) - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom


def signed_rank_p(differences: Floats) -> float:
    """Returns the two-sided p of Wilcoxon's signed-rank test, by its normal approximation with ties corrected."""
    values = differences[differences != 0]
    count = len(values)
    if count == 0:
        return 1.0
    ranks, ties = _ranks(np.abs(values))
    mean = count * (count + 1) / 4
    variance = count * (count + 1) * (2 * count + 1) / 24 - ties / 48
    return _two_sided(float(ranks[values > 0].sum()) - mean, variance)


def rank_sum_p(ours: Floats, theirs: Floats) -> float:
    """Returns the two-sided p of the Mann-Whitney test, by its normal approximation with ties corrected."""
    n, m = len(ours), len(theirs)
    ranks, ties = _ranks(np.concatenate([ours, theirs]))
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    return _two_sided(float(ranks[:n].sum()) - n * (total + 1) / 2, variance)


def _ranks(values: Floats) -> tuple[Floats, float]:
    """Returns the mean rank of each value, and the sum of t^3 - t over groups of t equal ones."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse], float((counts**3 - counts).sum())


def _two_sided(excess: float, variance: float) -> float:
    if variance <= 0:
        return 1.0
    return math.erfc(max(0.0, abs(excess) - 0.5) / math.sqrt(2 * variance))


def corrected(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for being many (Holm), in their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        found[index] = largest
    return found
