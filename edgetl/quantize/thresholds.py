"""From an observation to the range that INT8 shall cover.

Every method chooses a threshold on the magnitude; values beyond it saturate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize.observe import BINS, Observation

__all__ = ["METHODS", "range_of"]

Floats = NDArray[np.float64]

_LEVELS = 128
_PERCENTILE = 0.9999
_FIRST_BIN = 128
_STEPS = 96
_LASTS = 60  # candidates for the last bin, before a closer look around the best of them


def range_of(observation: Observation, method: str) -> tuple[float, float]:
    """Returns (low, high) to be covered: the extremes, cut at the method's threshold.

    Where nearly the whole sample is zero, it says nothing of the rest, and the extremes are covered.

    Args:
        observation: Of one tensor.
        method: ``max`` covers everything seen; ``percentile`` all but 0.01 % of the sample; ``mse`` minimizes the
            expected squared error; ``entropy`` the Kullback-Leibler divergence (Migacz 2017).
    """
    peak = max(abs(observation.low), abs(observation.high))
    if peak == 0.0 or observation.counts is None or not _tells_enough(observation.counts):
        return min(observation.low, 0.0), max(observation.high, 0.0)
    threshold = min(peak, _THRESHOLDS[method](observation.counts.astype(np.float64), observation.limit, peak))
    low, high = np.clip((observation.low, observation.high), -threshold, threshold)
    return float(low), float(high)


def _tells_enough(counts: NDArray[np.int64]) -> bool:
    """Tells whether a sample has a share of values beyond the first bin, which holds the zeros of ReLU."""
    return int(counts[1:].sum()) > (1 - _PERCENTILE) * int(counts.sum())


def _max(_: Floats, __: float, peak: float) -> float:
    return peak


def _percentile(counts: Floats, limit: float, _: float) -> float:
    share = np.cumsum(counts) / counts.sum()
    return float((np.searchsorted(share, _PERCENTILE) + 1) * limit / BINS)


def _mse(counts: Floats, limit: float, peak: float) -> float:
    """Sweeps thresholds; a bin's values are taken at its centre, weighted by its count.

    Up to the threshold, values spread evenly inside a level, so the expected error is scale^2 / 12; beyond it, the
    error is the distance to it. The first bin is left out: it holds the zeros of ReLU, which every threshold
    represents exactly.
    """
    centres = (np.arange(BINS) + 0.5) * limit / BINS
    weights = np.concatenate([[0.0], counts[1:]])
    mass, first, second = (np.append(np.cumsum(weights * centres**k), 0.0) for k in range(3))
    thresholds = np.linspace(peak / _STEPS, peak, _STEPS)
    inside = np.searchsorted(centres, thresholds, side="right") - 1  # the last bin that is not cut; -1 for none
    beyond = [total[BINS - 1] - total[inside] for total in (mass, first, second)]
    error = mass[inside] * np.square(thresholds / (_LEVELS - 1)) / 12
    error += beyond[2] - 2 * thresholds * beyond[1] + np.square(thresholds) * beyond[0]
    return float(thresholds[error.argmin()])


def _entropy(counts: Floats, limit: float, peak: float) -> float:
    """Compares the clipped distribution with its 128-level version for every possible last bin.

    The first bin holds the zeros of ReLU, which every threshold represents exactly; it is left out, or its
    weight would hide everything else.
    """
    histogram = counts.copy()
    histogram[0] = 0.0
    last = int(np.nonzero(histogram)[0].max(initial=0)) + 1
    if last <= _FIRST_BIN:
        return peak
    step = max(1, (last - _FIRST_BIN) // _LASTS)
    coarse = min((_divergence(histogram, size), size) for size in [*range(_FIRST_BIN, last, step), last])[1]
    near = range(max(_FIRST_BIN, coarse - step), min(last, coarse + step) + 1, max(1, step // 8))
    best = min((_divergence(histogram, size), size) for size in [*near, coarse])[1]
    return float(best * limit / BINS)


def _divergence(histogram: Floats, size: int) -> float:
    reference = histogram[:size].copy()
    reference[-1] += histogram[size:].sum()
    kept = histogram[:size]
    level = np.minimum(np.arange(size) * _LEVELS // size, _LEVELS - 1)
    filled = kept > 0
    mass = np.bincount(level, weights=kept, minlength=_LEVELS)
    width = np.bincount(level, weights=filled, minlength=_LEVELS)
    candidate = np.where(filled, mass[level] / np.maximum(width[level], 1), 0.0)
    if candidate.sum() == 0.0 or reference.sum() == 0.0:
        return float("inf")
    p, q = reference / reference.sum(), candidate / candidate.sum()
    compared = p > 0
    floor = 1e-9  # a bin that the candidate lost costs much, not infinitely
    return float((p[compared] * np.log(p[compared] / np.maximum(q[compared], floor))).sum())


_THRESHOLDS: dict[str, Callable[[Floats, float, float], float]] = {
    "max": _max,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
METHODS = tuple(_THRESHOLDS)
