"""The learning rate by a range test (Smith 2017, section 3.3): raise it at each step and see how the loss falls."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from edgetl.finetune.objective import Objective
from edgetl.finetune.optimizers import Descent, Groups, optimizer_of
from edgetl.finetune.seeding import seed_step

__all__ = ["find_rate", "steepest_rate"]

_STEPS = 60
_LOWEST, _HIGHEST = 1e-6, 1.0
_SMOOTHING = 0.8  # of the loss, from step to step
_BURST = 4.0  # times the lowest loss: no higher rate is worth a try
_IDLE_STEPS = 10  # the first, a tenfold of the rate: too low to learn by, they show how much batches differ
_FALL, _CLEAR = 0.03, 1.5  # of the loss, and of the spread between batches: less is no fall


def find_rate(
    network: nn.Module,
    groups: Callable[[float], Groups],
    objective: Objective,
    descent: Descent,
    train: DataLoader[Any],
    eval_modules: list[nn.Module],
    *,
    seed: int,
    on_progress: Callable[[int, int], None],
) -> float | None:
    """Returns a peak rate for training, or None where no rate made the loss fall; the network is as before afterwards.

    Args:
        network: On the device where it is to be trained.
        groups: Makes optimizer groups for a peak rate.
        objective: The loss.
        descent: Names the optimizer.
        train: Batches; begun anew where there are fewer than steps.
        eval_modules: What stays in eval mode.
        seed: For dropout.
        on_progress: Called with (steps done, steps).
    """
    before = copy.deepcopy(network.state_dict())
    device = next(network.parameters()).device
    optimizer = optimizer_of(descent, groups(1.0))
    shares = [float(group["lr"]) for group in optimizer.param_groups]
    rates, losses = np.geomspace(_LOWEST, _HIGHEST, _STEPS), []
    network.train()
    for module in eval_modules:
        module.eval()
    batches = itertools.chain.from_iterable(itertools.repeat(train))
    for step, rate in enumerate(rates):
        inputs, labels = next(batches)
        seed_step(seed * 1_000_003 + step)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = float(rate) * share
        loss, _ = objective(network, inputs.to(device), labels.to(device))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]) or losses[-1] > _BURST * min(losses):
            break
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_progress(step + 1, _STEPS)
    on_progress(_STEPS, _STEPS)
    network.load_state_dict(before)
    return steepest_rate(rates[: len(losses)], np.asarray(losses))


def steepest_rate(rates: np.ndarray[Any, Any], losses: np.ndarray[Any, Any]) -> float | None:
    """Returns the rate at which the smoothed loss falls fastest, or None where it does not fall.

    It falls where it gets below what the first steps gave by some percent, and by more than batches differ.

    Args:
        rates: (N,), rising by a constant factor.
        losses: (N,) or fewer finite ones.
    """
    losses = losses[np.isfinite(losses)]
    if len(losses) <= _IDLE_STEPS + 1:
        return None
    smooth, value = [], 0.0
    for step, loss in enumerate(losses):
        value = _SMOOTHING * value + (1 - _SMOOTHING) * float(loss)
        smooth.append(value / (1 - _SMOOTHING ** (step + 1)))
    idle = losses[:_IDLE_STEPS]
    start = float(idle.mean())
    lowest = _IDLE_STEPS + int(np.argmin(smooth[_IDLE_STEPS:]))
    if smooth[lowest] > start - max(_FALL * start, _CLEAR * float(idle.std(ddof=1))):
        return None
    slopes = np.gradient(np.asarray(smooth))[_IDLE_STEPS : lowest + 1]
    return float(rates[_IDLE_STEPS + int(np.argmin(slopes))])
