"""What is done to a tuned network before it is judged: averaging with where it began, and fresh statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from edgetl.backbones import Network

__all__ = ["blend", "reestimate_statistics", "snapshot"]


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of a network's state on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def blend(network: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Moves a tuned network part of the way back to where tuning began, in weight space.

    Both lie in one valley of the loss, and between them a network forgets less of what its backbone knew
    (Wortsman et al. 2022, Robust fine-tuning of zero-shot models). Statistics of BatchNorm do not average:
    call `reestimate_statistics` afterwards.

    Args:
        network: Tuned, changed in place.
        start: Its state before tuning.
        share: Of the tuned weights, 0 to 1.
    """
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.lerp_(start[name].to(tensor), 1.0 - share)


def reestimate_statistics(network: Network, loader: DataLoader[Any], on_progress: Callable[[int, int], None]) -> None:
    """Computes BatchNorm's statistics anew, on training pictures as the device will see them.

    While training they follow augmented pictures (enlarged, recoloured), which the network never meets again.
    Exact averages over all batches, as after weight averaging (Izmailov et al. 2018, section 3.2). Frozen
    normalizations keep theirs.

    Args:
        network: Changed in place; in eval mode afterwards.
        loader: Batches of pictures without augmentation, classes mixed.
        on_progress: Called with (batches done, batches).
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and any(p.requires_grad for p in m.parameters())]
    network.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    device = next(network.parameters()).device
    with torch.no_grad():
        for number, (pictures, _) in enumerate(loader, start=1):
            if number == 1 or len(pictures) > 1:  # one picture alone has no variance
                network.features(pictures.to(device))
            on_progress(number, len(loader))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
