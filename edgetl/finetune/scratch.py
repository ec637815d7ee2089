"""What the transfer bought: the same network trained from random weights, on few pictures and on all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.dataset import Item, calibration_sample
from edgetl.finetune.config import FinetuneConfig

__all__ = ["Answers", "compare_with_scratch", "gain", "scratch_config"]

Right = NDArray[np.bool_]

_PER_CLASS = (1, 5, 10)
_RESAMPLES = 10_000
# Random weights have nothing to forget, and need to move further.
_RATE = 4.0
# With few pictures an epoch has few steps: so many times as many epochs at most.
_MOST_EPOCHS = 5


class Answers(Protocol):
    """Whoever trains and asks the network."""

    def __call__(self, config: FinetuneConfig, part: tuple[Item, ...], name: str, *, scratch: bool) -> Right | None:
        """Trains by settings on pictures, and says which of the validation pictures the network then answers rightly.

        Args:
            config: Settings.
            part: Training pictures.
            name: For progress.
            scratch: Whether from random weights.

        Returns:
            None where the training came to nothing.
        """


def scratch_config(config: FinetuneConfig) -> FinetuneConfig:
    """Returns the settings for random weights: everything is trained, at one higher rate, and follows the batches."""
    rate = "auto" if isinstance(config.lr, str) else config.peak_lr * _RATE
    return dataclasses.replace(
        config, weights="none", strategy="full", layer_decay=1.0, l2_sp=0.0, teacher=None, batchnorm="train", lr=rate
    )


def compare_with_scratch(
    train: Sequence[Item],
    config: FinetuneConfig,
    answers: Answers,
    transferred: Right,
) -> dict[str, Any]:
    """Trains both ways on ever more pictures of each class.

    Args:
        train: All training pictures.
        config: Settings of the transfer.
        answers: See there.
        transferred: Of the network that was transferred with all pictures.

    Returns:
        Rows with accuracies, gain and its 95 % interval, ready for JSON.
    """
    by_class = {label: [item for item in train if item.label == label] for label in {item.label for item in train}}
    sizes = [count for count in _PER_CLASS if count < max(map(len, by_class.values()))]
    rows = []
    for count in (*sizes, None):
        part = tuple(item for members in by_class.values() for item in calibration_sample(members, count or len(train)))
        longer = min(_MOST_EPOCHS, -(-len(train) // len(part)))
        settings = dataclasses.replace(
            config,
            epochs=config.epochs * longer,
            select_fraction=0.0,
            patience=0,
            compare_scratch=False,
            loggers=(),
            devices=1,
            nodes=1,
        )
        name = f"{'all' if count is None else count} of each class"
        ours = transferred if count is None else answers(settings, part, f"{name}, transferred", scratch=False)
        scratch = answers(scratch_config(settings), part, f"{name}, from scratch", scratch=True)
        rows.append({"per_class": count, "train_pictures": len(part), "epochs": settings.epochs, **gain(ours, scratch)})
    return {"rows": rows, "confidence": 0.95}


def gain(ours: Right | None, scratch: Right | None) -> dict[str, Any]:
    """Returns both accuracies, their difference, and its 95 % interval by resampling pictures (paired bootstrap)."""
    found: dict[str, Any] = {
        "transferred_top1": None if ours is None else float(ours.mean()),
        "scratch_top1": None if scratch is None else float(scratch.mean()),
        "gain": None,
        "interval": None,
    }
    if ours is not None and scratch is not None:
        each = ours.astype(np.float64) - scratch.astype(np.float64)
        rng = np.random.default_rng(0)
        means = [float(each[rng.integers(0, len(each), len(each))].mean()) for _ in range(_RESAMPLES)]
        found |= {"gain": float(each.mean()), "interval": [float(end) for end in np.quantile(means, (0.025, 0.975))]}
    return found
