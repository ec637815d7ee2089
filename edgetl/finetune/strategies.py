"""Which parameters a strategy trains, when, and at what rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgetl.backbones import Network, blocks
from edgetl.errors import InputError
from edgetl.finetune.config import FinetuneConfig, parse_strategy

__all__ = ["Freezing", "frozen_blocks", "has_seen_data", "parameter_groups"]


class Freezing:
    """What is trained in which epoch; the rest gets no gradient, and its normalizations keep their statistics.

    With ``gradual``, the head is alone in the first epoch; from then on blocks join from the top, equally many each
    epoch, until in the middle of the training all do (after Howard and Ruder 2018, section 3.3, where layers are few).

    Args:
        network: Its parameters are marked.
        config: Strategy, kind of normalization, epochs.

    Raises:
        InputError: ``last:N`` names more blocks than there are.
    """

    def __init__(self, network: Network, config: FinetuneConfig) -> None:
        kind, count = parse_strategy(config.strategy)
        depth = blocks(network.backbone)
        if kind == "last" and count > len(depth):
            raise InputError(
                f"--strategy is {config.strategy}: this backbone has {len(depth)} blocks; give last:{len(depth)} or "
                "full"
            )
        self._network = network
        self._blocks = [block.parameters() for block in depth]
        self._modules = [block.modules for block in depth]
        self._gradual = config.epochs if kind == "gradual" else 0
        self._norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._keeps = {norm for norm in self._norms if config.batchnorm == "frozen" and has_seen_data(norm)}
        network.requires_grad_(kind in ("full", "lp-ft", "gradual"))
        network.head.requires_grad_(True)
        for parameters in self._blocks[len(depth) - count :] if kind == "last" else []:
            _mark(parameters, True)

    def begin_epoch(self, epoch: int) -> Sequence[nn.Module]:
        """Marks what is trained in an epoch, counted from 0, and returns what stays in eval mode."""
        if self._gradual:
            trained = self.trained_blocks(epoch)
            first = len(self._blocks) - trained
            self._network.backbone.requires_grad_(trained == len(self._blocks))
            for place, parameters in enumerate(self._blocks):
                _mark(parameters, place >= first)
        return self.kept()

    def trained_blocks(self, epoch: int) -> int:
        """Returns how many blocks ``gradual`` trains in an epoch, counted from 0."""
        half = (self._gradual - 1) / 2
        return math.ceil(len(self._blocks) * min(1.0, epoch / half)) if half else len(self._blocks)

    def kept(self) -> list[nn.Module]:
        """Returns what stays in eval mode now: blocks that are not trained, and normalizations that keep statistics.

        Normalizations without a trainable parameter keep them, or they would drift. So do all with ``frozen``, but for
        those whose statistics were still as initialized: they stand for nothing.
        """
        idle = [
            module
            for parameters, modules in zip(self._blocks, self._modules, strict=True)
            for module in modules
            if not any(p.requires_grad for p in parameters)
        ]
        kept = [n for n in self._norms if n in self._keeps or not any(p.requires_grad for p in n.parameters())]
        return [*idle, *kept]

    def following(self) -> list[_BatchNorm]:
        """Returns the normalizations that follow the batches now."""
        kept = set(self.kept())
        return [norm for norm in self._norms if norm not in kept]


def _mark(parameters: Iterable[nn.Parameter], trained: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(trained)


def has_seen_data(norm: _BatchNorm) -> bool:
    """Tells whether its statistics are others than those it is made with."""
    mean, var = norm.running_mean, norm.running_var
    return mean is not None and var is not None and bool((mean != 0).any() or (var != 1).any())


def frozen_blocks(network: Network, strategy: str) -> int:
    """Returns how many blocks, from the input on, a strategy never trains."""
    kind, count = parse_strategy(strategy)
    depth = len(blocks(network.backbone))
    return {"probe": depth, "last": depth - count}.get(kind, 0)


def parameter_groups(network: Network, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Returns optimizer groups: the head at the peak rate, each block below at ``layer_decay`` times the one above.

    Discriminative rates after Howard and Ruder 2018, section 3.1. Biases and normalization decay not; nor does what
    is pulled to its pretrained weights.
    """
    groups: list[dict[str, Any]] = []
    rate = config.peak_lr
    decay = 0.0 if config.l2_sp else config.weight_decay
    named = {id(p) for p in network.head.parameters()}
    groups += _groups(network.head.parameters(), rate, config.weight_decay)
    for block in reversed(blocks(network.backbone)):
        rate *= config.layer_decay
        groups += _groups(block.parameters(), rate, decay)
        named |= {id(p) for p in block.parameters()}
    rest = [p for p in network.parameters() if id(p) not in named]  # position embeddings and the like
    return groups + _groups(rest, rate, decay)


def _groups(parameters: Iterable[nn.Parameter], rate: float, decay: float) -> list[dict[str, Any]]:
    trainable = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trainable if p.ndim > 1]
    vectors = [p for p in trainable if p.ndim <= 1]
    pairs = ((matrices, decay), (vectors, 0.0))
    return [{"params": members, "lr": rate, "weight_decay": wd} for members, wd in pairs if members]
