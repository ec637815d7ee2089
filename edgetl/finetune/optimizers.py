"""Optimizers and learning rate schedules by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from edgetl.finetune.config import parse_schedule

__all__ = ["Descent", "Groups", "optimizer_of", "schedule_of"]

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Descent:
    """How weights are moved.

    Attributes:
        optimizer: ``adamw``, ``adam``, ``sgd``, ``rmsprop`` or ``adagrad``.
        momentum: Of sgd and rmsprop.
        schedule: See `FinetuneConfig`.
        warmup: Share of the steps in which the rate rises.
        largest_gradient: Norm of all gradients together, to which larger ones are clipped; None clips nothing.
    """

    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.1
    largest_gradient: float | None = None


def optimizer_of(descent: Descent, groups: Groups) -> torch.optim.Optimizer:
    """Returns an optimizer; every group brings its own ``lr`` and ``weight_decay``.

    But for adamw, decay is a term of the gradient, so that it is the L2 penalty of textbooks.
    """
    if descent.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=descent.momentum)
    if descent.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, momentum=descent.momentum)
    kinds: dict[str, type[torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "adagrad": torch.optim.Adagrad,
    }
    return kinds[descent.optimizer](groups)  # type: ignore[call-arg]


def schedule_of(descent: Descent, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int) -> LRScheduler:
    """Returns what changes the rates, to be asked after every step."""
    kind, every = parse_schedule(descent.schedule)
    steps = steps_per_epoch * epochs
    if kind == "one-cycle":  # Smith 2018, which moves momentum against the rate
        peaks = [group["lr"] for group in optimizer.param_groups]
        moves = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
        return OneCycleLR(optimizer, peaks, total_steps=steps + 1, cycle_momentum=moves and descent.momentum > 0)
    warm = round(descent.warmup * steps)
    third = math.ceil(epochs / 3)
    drop = (every or third) * steps_per_epoch
    return LambdaLR(optimizer, lambda step: _factor(kind, step, warm, steps, drop))


def _factor(kind: str, step: int, warm: int, steps: int, drop: int) -> float:
    if step < warm:
        return (step + 1) / (warm + 1)
    if kind == "constant":
        return 1.0
    if kind == "step":
        return float(0.1 ** (step // drop))
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
