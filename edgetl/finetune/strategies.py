"""Which parameters a strategy trains, and at what rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.backbones import Network, blocks
from edgetl.errors import InputError
from edgetl.finetune.config import FinetuneConfig, parse_strategy

__all__ = ["freeze", "parameter_groups", "split_normalizations"]


def freeze(network: Network, strategy: str) -> None:
    """Marks what the strategy trains; everything else gets no gradient.

    Raises:
        InputError: ``last:N`` names more blocks than there are.
    """
    kind, count = parse_strategy(strategy)
    depth = blocks(network.backbone)
    if kind == "last" and count > len(depth):
        raise InputError(
            f"--strategy is {strategy}: this backbone has {len(depth)} blocks; give last:{len(depth)} or full"
        )
    network.requires_grad_(kind in ("full", "lp-ft"))
    network.head.requires_grad_(True)
    for block in depth[len(depth) - count :] if kind == "last" else []:
        for parameter in block.parameters():
            parameter.requires_grad_(True)


def split_normalizations(network: Network, batchnorm: str) -> tuple[list[_BatchNorm], list[_BatchNorm]]:
    """Returns the normalizations that keep their statistics (eval mode), and those that follow the batches.

    Those without a trainable parameter keep them, or they would drift. So do all with ``frozen``, but for those
    whose statistics are still as initialized: they stand for nothing.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [
        norm
        for norm in norms
        if not any(p.requires_grad for p in norm.parameters()) or (batchnorm == "frozen" and _has_seen_data(norm))
    ]
    return kept, [norm for norm in norms if norm not in kept]


def _has_seen_data(norm: _BatchNorm) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return mean is not None and var is not None and bool((mean != 0).any() or (var != 1).any())


def parameter_groups(network: Network, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Returns optimizer groups: the head at the peak rate, each block below at ``layer_decay`` times the one above.

    Discriminative rates after Howard and Ruder 2018, section 3.1. Biases and normalization decay not.
    """
    groups: list[dict[str, Any]] = []
    rate = config.peak_lr
    named = {id(p) for p in network.head.parameters()}
    groups += _groups(network.head.parameters(), rate, config.weight_decay)
    for block in reversed(blocks(network.backbone)):
        rate *= config.layer_decay
        groups += _groups(block.parameters(), rate, config.weight_decay)
        named |= {id(p) for p in block.parameters()}
    rest = [p for p in network.parameters() if id(p) not in named]  # position embeddings and the like
    return groups + _groups(rest, rate, config.weight_decay)


def _groups(parameters: Iterable[nn.Parameter], rate: float, decay: float) -> list[dict[str, Any]]:
    trainable = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    pairs = ((matrices, decay), (vectors, 0.0))
    return [{"params": members, "lr": rate, "weight_decay": wd} for members, wd in pairs if members]
