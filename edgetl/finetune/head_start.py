"""How the last layer begins."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.finetune.ridge import fit_ridge

__all__ = ["init_classifier", "init_from_ridge"]


def init_classifier(layer: nn.Linear, kind: str) -> None:
    """Fills the weights: ``zero``, ``xavier`` (Glorot and Bengio 2010) or ``he`` (He et al. 2015); biases are 0."""
    fill = {"zero": nn.init.zeros_, "xavier": nn.init.xavier_uniform_, "he": nn.init.kaiming_normal_}[kind]
    fill(layer.weight)
    nn.init.zeros_(layer.bias)


def init_from_ridge(layer: nn.Linear, features: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Fills the layer with the closed form of ridge regression.

    Args:
        layer: (classes, D).
        features: (N, D), what the layer sees of the training pictures.
        labels: (N,).
    """
    found = fit_ridge(features, labels, layer.out_features)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(found.weight))
        layer.bias.copy_(torch.from_numpy(found.bias))
