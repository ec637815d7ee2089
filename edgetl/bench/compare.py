"""Whether two sides that ran interleaved differ, and by how much.

Neighbouring calls share the machine's mood, so single calls are no independent samples. The unit is a block of
neighbouring pairs: its median ratio. The interval is a bootstrap over blocks, the test ranks blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError

__all__ = ["BLOCK", "Comparison", "block_ratios", "compare", "corrected", "signed_rank_p"]

BLOCK = 25  # pairs
_FEWEST_BLOCKS = 6
_RESAMPLES = 2000
_CONFIDENCE = 0.95

Samples = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Comparison:
    """One side against another.

    Attributes:
        ratio: Median over blocks of ours over theirs; below 1 is faster.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Of the two-sided signed-rank test over blocks: how likely so much by chance.
        blocks: How many there were.
    """

    ratio: float
    low: float
    high: float
    p: float
    blocks: int

    @property
    def differs(self) -> bool:
        """Whether the interval excludes equality and the test does too."""
        return not self.low <= 1.0 <= self.high and self.p < 1 - _CONFIDENCE

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
        return {**asdict(self), "differs": self.differs}


def block_ratios(ours: Samples, theirs: Samples, *, block: int = BLOCK) -> NDArray[np.float64]:
    """Returns the median ratio of each block of neighbouring pairs, (B,); a block lies within one process.

    Args:
        ours: Nanoseconds, per process one number a call.
        theirs: Of the side that was called in turn with it.
        block: Pairs in a block.

    Raises:
        InputError: The two were not called in turn, or there are too few pairs.
    """
    if [len(process) for process in ours] != [len(process) for process in theirs]:
        raise InputError("these samples were not taken in turn: only sides of one run are compared call by call")
    found = []
    for one, other in zip(ours, theirs, strict=True):
        ratios = np.asarray(one, np.float64) / np.asarray(other, np.float64)
        whole = len(ratios) // block * block
        found += list(np.median(ratios[:whole].reshape(-1, block), axis=1))
    if len(found) < _FEWEST_BLOCKS:
        raise InputError(
            f"{sum(map(len, ours))} pairs make {len(found)} blocks of {block}, {_FEWEST_BLOCKS} are needed: "
            "give more --seconds"
        )
    return np.array(found)


def compare(ours: Samples, theirs: Samples, *, block: int = BLOCK, seed: int = 0) -> Comparison:
    """Compares two sides that were called in turn.

    Raises:
        InputError: They were not, or there are too few pairs.
    """
    ratios = block_ratios(ours, theirs, block=block)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(medians, [tail, 1 - tail])
    return Comparison(float(np.median(ratios)), float(low), float(high), signed_rank_p(np.log(ratios)), len(ratios))


def signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Returns the two-sided p of Wilcoxon's signed-rank test, by its normal approximation with ties corrected."""
    values = differences[differences != 0]
    count = len(values)
    if count == 0:
        return 1.0
    _, inverse, ties = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(ties)
    ranks = (ends - (ties - 1) / 2)[inverse]
    positive = float(ranks[values > 0].sum())
    mean = count * (count + 1) / 4
    variance = count * (count + 1) * (2 * count + 1) / 24 - float((ties**3 - ties).sum()) / 48
    z = max(0.0, abs(positive - mean) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def corrected(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for being many (Holm), in their order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        found[index] = largest
    return found
