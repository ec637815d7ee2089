"""Ridge regression in closed form: a head without training, and how well features separate classes. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError
from edgetl.metrics import softmax

__all__ = ["Ridge", "fit_ridge"]

Floats = NDArray[np.floating[Any]]

# Penalties that are tried, as multiples of the mean eigenvalue of the features' scatter.
_PENALTIES = np.logspace(-6, 2, 33)
_TEMPERATURES = np.logspace(-1, 3, 81)


@dataclass(frozen=True)
class Ridge:
    """A linear classifier.

    Attributes:
        weight: (classes, D), float64; its logits are scaled so that softmax gives the likeliest probabilities for
            training pictures that were left out.
        bias: (classes,).
        left_out: (N, classes), logits of each training picture by a classifier that did not see it.
        penalty: What was chosen, in units of the features' scatter.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    left_out: NDArray[np.float64]
    penalty: float


def fit_ridge(features: Floats, labels: NDArray[np.integer[Any]], classes: int, weights: Floats | None = None) -> Ridge:
    """Fits by least squares on one-hot targets; the penalty has the lowest squared error over left-out pictures.

    Leave-one-out answers need no refit (Golub, Heath and Wahba 1979; Hastie et al., ESL, 7.10): with the hat matrix H,
    the answer without picture i is (f_i - h_ii y_i) / (1 - h_ii).

    Args:
        features: (N, D).
        labels: (N,), 0 to classes - 1.
        classes: How many.
        weights: (N,), how much each picture's error counts; by default all alike.

    Raises:
        InputError: The features are not finite.
    """
    if not np.isfinite(features).all():
        raise InputError("the backbone's features are not finite: its weights hold NaN, or it overflows; take others")
    x = features.astype(np.float64)
    targets = np.eye(classes)[labels]
    share = np.full(len(x), 1.0 / len(x)) if weights is None else weights / weights.sum()
    root = np.sqrt(share * len(x))[:, None]
    mean, target_mean = share @ x, share @ targets
    x, y = (x - mean) * root, (targets - target_mean) * root
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    scatter = float(np.square(s).mean()) or 1.0
    projected = u.T @ y
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for penalty in _PENALTIES:
        shrink = np.square(s) / (np.square(s) + penalty * scatter)
        answers = u @ (shrink[:, None] * projected)
        leverage = np.square(u) @ shrink + share  # the mean was fitted as well
        keep = np.maximum(1.0 - leverage, 1e-9)[:, None]
        left_out = y - (y - answers) / keep
        error = float(np.square(y - left_out).sum())
        if best is None or error < best[0]:
            best = error, float(penalty), left_out / root + target_mean
    assert best is not None
    _, penalty, left_out = best
    weight = (vt.T * (s / (np.square(s) + penalty * scatter))) @ projected
    scale = _likeliest_scale(left_out, labels, share)
    bias = target_mean - mean @ weight
    return Ridge(weight.T * scale, bias * scale, left_out * scale, penalty)


def _likeliest_scale(logits: Floats, labels: NDArray[np.integer[Any]], share: Floats) -> float:
    """Returns the factor on logits at which the labels are likeliest (temperature scaling, Guo et al. 2017)."""
    rows = np.arange(len(labels))
    losses = [-share @ np.log(softmax(logits * factor)[rows, labels] + 1e-12) for factor in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])
