"""LogME: the log of the maximum evidence of a linear model on features (You et al. 2021, "LogME", ICML)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["logme"]

_ROUNDS = 100
_ENOUGH = 1e-3  # relative change of alpha / beta


def logme(features: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], classes: int) -> float:
    """Returns the log evidence for each picture, averaged over one-hot targets; higher transfers better.

    A Bayesian linear model with prior N(0, 1 / alpha) and noise 1 / beta; both are chosen so that the targets are
    likeliest, by fixed-point iteration (equations 2 to 4).

    Args:
        features: (N, D).
        labels: (N,), 0 to classes - 1.
        classes: How many.
    """
    f = features.astype(np.float64)
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    squares = np.square(s)
    targets = np.eye(classes)[labels]
    return float(np.mean([_evidence(u.T @ y, float(y @ y), squares, *f.shape) for y in targets.T]))


def _evidence(z: NDArray[np.float64], yy: float, squares: NDArray[np.float64], count: int, width: int) -> float:
    """Returns the evidence of one target; ``z`` is the target in the basis of the features' left singular vectors."""
    outside = max(yy - float(z @ z), 0.0)  # what no weights can explain
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        ratio = alpha / beta
        shrink = squares / (squares + ratio)
        weights = float((squares * np.square(z / (squares + ratio))).sum())  # |m|^2
        error = outside + float(np.square((1 - shrink) * z).sum())
        gamma = float(shrink.sum())
        alpha = gamma / max(weights, 1e-12)
        beta = max(count - gamma, 1e-9) / max(error, 1e-12)
        if abs(alpha / beta - ratio) < _ENOUGH * ratio:
            break
    ratio = alpha / beta
    weights = float((squares * np.square(z / (squares + ratio))).sum())
    error = outside + float(np.square((1 - squares / (squares + ratio)) * z).sum())
    determinant = float(np.log(alpha + beta * squares).sum()) + (width - len(squares)) * np.log(alpha)
    evidence = (
        width * np.log(alpha)
        + count * np.log(beta)
        - determinant
        - beta * error
        - alpha * weights
        - count * np.log(2 * np.pi)
    )
    return float(evidence / (2 * count))
