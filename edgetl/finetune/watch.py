"""How far each block has moved from where it began."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgetl.backbones import Network, blocks

__all__ = ["DriftWatch"]


class DriftWatch:
    """Measures drift: |w - w0| / |w0| over the matrices of a block.

    Args:
        network: As training finds it; a copy of its weights is kept in memory.
    """

    def __init__(self, network: Network) -> None:
        names = {id(p): name for name, p in network.named_parameters()}
        self._members: dict[str, list[str]] = {
            block.name: [names[id(p)] for p in block.parameters() if p.ndim > 1] for block in blocks(network.backbone)
        }
        self._members["head"] = [f"head.{name}" for name, p in network.head.named_parameters() if p.ndim > 1]
        self._start = {name: p.detach().cpu().clone() for name, p in network.named_parameters()}

    def drift(self, network: nn.Module) -> dict[str, float]:
        """Returns the drift of each block, from the input to the head."""
        now = dict(network.named_parameters())
        return {block: self._of(names, now) for block, names in self._members.items()}

    def _of(self, names: list[str], now: Mapping[str, Tensor]) -> float:
        moved, size = 0.0, 0.0
        with torch.no_grad():
            for name in names:
                if name in now:
                    start = self._start[name]
                    moved += float((now[name].detach().cpu().float() - start.float()).square().sum())
                    size += float(start.float().square().sum())
        return math.sqrt(moved / size) if size else math.sqrt(moved)

    def row(self, network: nn.Module) -> dict[str, Any]:
        """Returns columns for the history: ``drift/BLOCK`` of each block that moved or may move."""
        return {f"drift/{block}": value for block, value in self.drift(network).items()}
