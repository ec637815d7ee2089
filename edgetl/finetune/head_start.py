"""How the last layer begins."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.backbones import Network
from edgetl.finetune.config import FinetuneConfig
from edgetl.finetune.ridge import fit_ridge
from edgetl.finetune.strategies import has_seen_data

__all__ = ["init_classifier", "init_from_ridge", "is_solvable", "quieten", "solve"]

_QUIET = 0.1  # standard deviation of a picture's logits
_MOST_NUMBERS = 100_000_000  # in features and answers: 0.8 GB, which is needed several times
_NOTHING = 1e-6  # below it they say nothing of a picture


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


def is_solvable(network: Network, config: FinetuneConfig, pictures: int) -> bool:
    """Tells whether the probe before tuning has a closed form, and one that is good for tuning.

    A backbone with normalizations that have seen no data gives other features as soon as it is tuned.
    """
    layer = network.head.classifier
    norms = [module for module in network.backbone.modules() if isinstance(module, _BatchNorm)]
    return (
        isinstance(network.head.hidden, nn.Identity)
        and config.head_init in ("auto", "ridge")
        and pictures * (layer.in_features + layer.out_features) <= _MOST_NUMBERS
        and all(map(has_seen_data, norms))
    )


@torch.no_grad()
def solve(
    layer: nn.Linear,
    features: Mapping[str, NDArray[np.float32]],
    labels: Mapping[str, NDArray[np.int64]],
    weights: NDArray[np.float64] | None,
) -> dict[str, float]:
    """Fills the layer by ridge regression: descent learns the few pictures of a transfer by heart.

    Args:
        layer: (classes, D), on the CPU.
        features: (N, D) of ``train`` and of parts that are judged.
        labels: (N,) of each.
        weights: (N,), how much each training picture counts, or None.

    Returns:
        Loss and top-1 of each part; of ``train``, by layers that have not seen the picture.
    """
    left_out = init_from_ridge(layer, features["train"], labels["train"], weights)
    scores = {}
    for name, seen in features.items():
        logits = torch.from_numpy(left_out).float() if name == "train" else layer(torch.from_numpy(seen))
        truth = torch.from_numpy(labels[name])
        scores[f"{name}_loss"] = float(F.cross_entropy(logits, truth))
        scores[f"{name}_top1"] = float((logits.argmax(1) == truth).float().mean())
    return scores


@torch.no_grad()
def quieten(layer: nn.Linear, logits: Tensor) -> None:
    """Scales a probed layer, most often down, so that the features below it are moved by the tuning that follows.

    A layer that is sure already leaves little loss, and so little that features could learn from; what matters is the
    direction it gives them (Ren, Guo, Bae and Sutherland 2023, "How to prepare your task head for finetuning").

    Args:
        layer: Changed in place.
        logits: (N, classes), its answers for training pictures.
    """
    spread = float(logits.float().std(dim=1).mean())
    if spread > _NOTHING:
        layer.weight.mul_(_QUIET / spread)
        layer.bias.mul_(_QUIET / spread)
