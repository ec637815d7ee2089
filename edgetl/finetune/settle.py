"""What is done to a tuned network before it is judged: statistics of BatchNorm computed anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from edgetl.backbones import Network

__all__ = ["reestimate_statistics"]


def reestimate_statistics(
    network: Network, norms: Sequence[_BatchNorm], loader: DataLoader[Any], on_progress: Callable[[int, int], None]
) -> None:
    """Computes the statistics of normalizations anew, on training pictures as the device will see them.

    While training they followed augmented pictures (enlarged, recoloured), which the network never meets again.
    Plain averages over all batches, as after weight averaging (Izmailov et al. 2018, section 3.2).

    Args:
        network: Changed in place; in eval mode afterwards.
        norms: Those that followed the batches.
        loader: Batches of pictures without augmentation, classes mixed; each counts the same, so they should be
            large and of one size (`statistics_loader`).
        on_progress: Called with (batches done, batches).
    """
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    device = next(network.parameters()).device
    with torch.no_grad():
        for number, (pictures, _) in enumerate(loader, start=1):
            network.features(pictures.to(device))
            on_progress(number, len(loader))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
