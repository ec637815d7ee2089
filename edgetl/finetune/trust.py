"""How a finished network bears bad pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgetl.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from edgetl.dataset import Item
from edgetl.finetune.objective import logits_of
from edgetl.preprocess import preprocess
from edgetl.spec import PreprocessSpec

__all__ = ["judge_robustness"]


def judge_robustness(
    network: nn.Module,
    items: Sequence[Item],
    spec: PreprocessSpec,
    *,
    batch_size: int,
    on_progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Returns top-1 on each kind of corruption at each strength, ready for JSON.

    Args:
        network: On the device where it is to run.
        items: The pictures; each goes through the network 71 times.
        spec: Of the network.
        batch_size: Pictures at a time.
        on_progress: Called with (rounds done, rounds).
    """
    pictures = np.stack([preprocess(item.path, spec) for item in items])
    labels = np.array([item.label for item in items])
    network.eval()
    clean = _top1(network, pictures, labels, batch_size)
    by_kind: dict[str, list[float]] = {}
    for number, kind in enumerate(CORRUPTIONS):
        by_kind[kind] = []
        for strength in STRENGTHS:
            bad = np.stack([corrupted(pixels, kind, strength, seed) for seed, pixels in enumerate(pictures)])
            by_kind[kind].append(_top1(network, bad, labels, batch_size))
            on_progress(number * len(STRENGTHS) + strength, len(CORRUPTIONS) * len(STRENGTHS))
    mean = float(np.mean(list(by_kind.values())))
    return {"pictures": len(items), "clean_top1": clean, "mean_top1": mean, "top1": by_kind}


def _top1(network: nn.Module, pictures: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], batch_size: int) -> float:
    device = next(network.parameters()).device
    right = 0
    with torch.inference_mode():
        for start in range(0, len(pictures), batch_size):
            batch = torch.from_numpy(pictures[start : start + batch_size]).to(device)
            answers = logits_of(network, batch).argmax(1).cpu().numpy()
            right += int((answers == labels[start : start + batch_size]).sum())
    return right / len(labels)
