"""From an observation to the range that INT8 shall cover.

Every method chooses a threshold on the magnitude; values beyond it saturate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize.observe import BINS, Observation

__all__ = ["METHODS", "Method", "range_of"]

Method = Literal["max", "percentile", "mse", "entropy"]
Floats = NDArray[np.float64]

_LEVELS = 128
_PERCENTILE = 0.9999
_FIRST_BIN = 128
_STEPS = 96


def range_of(observation: Observation, method: str) -> tuple[float, float]:
    """Returns (low, high) to be covered: the extremes, cut at the method's threshold.

    Args:
        observation: Of one tensor.
        method: ``max`` covers everything seen; ``percentile`` all but 0.01 % of the sample; ``mse`` minimizes the
            expected squared error; ``entropy`` the Kullback-Leibler divergence (Migacz 2017).
    """
    peak = max(abs(observation.low), abs(observation.high))
    if peak == 0.0 or observation.counts is None or observation.counts.sum() == 0:
        return min(observation.low, 0.0), max(observation.high, 0.0)
    threshold = min(peak, _THRESHOLDS[method](observation.counts.astype(np.float64), observation.limit, peak))
    low, high = np.clip((observation.low, observation.high), -threshold, threshold)
    return float(low), float(high)


def _max(_: Floats, __: float, peak: float) -> float:
    return peak


def _percentile(counts: Floats, limit: float, _: float) -> float:
    share = np.cumsum(counts) / counts.sum()
    return float((np.searchsorted(share, _PERCENTILE) + 1) * limit / BINS)


def _mse(counts: Floats, limit: float, peak: float) -> float:
    """Sweeps thresholds; the error of a bin is taken at its centre, weighted by its count.

    The first bin is left out: it holds the zeros of ReLU, which every threshold represents exactly.
    """
    centres = (np.arange(BINS) + 0.5) * limit / BINS
    weights = np.concatenate([[0.0], counts[1:]])
    best, threshold = np.inf, peak
    for candidate in np.linspace(peak / _STEPS, peak, _STEPS) if peak > 0 else ():
        scale = candidate / (_LEVELS - 1)
        rounded = np.clip(np.round(centres / scale), 0, _LEVELS - 1) * scale
        # inside a level, values spread evenly: the error of rounding is at least scale^2 / 12
        error = np.where(centres <= candidate, scale * scale / 12, np.square(centres - rounded))
        total = float((weights * error).sum())
        if total < best:
            best, threshold = total, float(candidate)
    return threshold


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
    candidates = [*range(_FIRST_BIN, last, max(1, (last - _FIRST_BIN) // 256)), last]
    divergences = [(_divergence(histogram, size), size) for size in candidates]
    return float((min(divergences)[1]) * limit / BINS)


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
