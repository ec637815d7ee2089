"""How the last layer begins."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl.finetune.ridge import fit_ridge

__all__ = ["init_classifier", "init_from_ridge", "quieten"]

_QUIET = 0.1  # standard deviation of a picture's logits


def init_classifier(layer: nn.Linear, kind: str) -> None:
    """Fills the weights: ``zero``, ``xavier`` (Glorot and Bengio 2010) or ``he`` (He et al. 2015); biases are 0."""
    fill = {"zero": nn.init.zeros_, "xavier": nn.init.xavier_uniform_, "he": nn.init.kaiming_normal_}[kind]
    fill(layer.weight)
    nn.init.zeros_(layer.bias)


def init_from_ridge(
    layer: nn.Linear,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Fills the layer with the closed form of ridge regression.

    Args:
        layer: (classes, D).
        features: (N, D), what the layer sees of the training pictures.
        labels: (N,).
        weights: (N,), how much each picture counts, or None.

    Returns:
        (N, classes), logits of each picture by a layer that did not see it.
    """
    found = fit_ridge(features, labels, layer.out_features, weights)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(found.weight))
        layer.bias.copy_(torch.from_numpy(found.bias))
    return found.left_out


@torch.no_grad()
def quieten(layer: nn.Linear, logits: Tensor) -> None:
    """Scales a probed layer down, so that the features below it are moved by the tuning that follows.

    A layer that is sure already leaves little loss, and so little that features could learn from; what matters is the
    direction it gives them (Ren, Guo, Bae and Sutherland 2023, "How to prepare your task head for finetuning").

    Args:
        layer: Changed in place.
        logits: (N, classes), its answers for training pictures.
    """
    spread = float(logits.float().std(dim=1).mean())
    factor = min(1.0, _QUIET / max(spread, 1e-9))
    layer.weight.mul_(factor)
    layer.bias.mul_(factor)
