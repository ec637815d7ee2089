"""Training by Lightning's Trainer; what comes back is the network, its history, and how it ended."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

from edgetl.errors import InputError
from edgetl.finetune.keeper import Keeper, Progress, Row
from edgetl.finetune.objective import Objective, logits_of
from edgetl.finetune.optimizers import Descent, Groups
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.signals import signals_restored
from edgetl.finetune.task import Diverged, Task
from edgetl.quiet import quiet

__all__ = ["FitResult", "Row", "Settings", "compiled", "evaluate_logits", "fit", "precision_of"]


def _nothing_frozen(_: int) -> Sequence[nn.Module]:
    return ()


def _nothing_watched(_: nn.Module) -> Row:
    return {}


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know.

    Attributes:
        stage: Name in history and progress.
        epochs: Passes over the training data.
        objective: The loss.
        descent: Optimizer and schedule.
        ema: Decay of averaged weights, which are then what is judged and kept; 0 for none.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        seed: For dropout and mixing.
        patience: Epochs without a better selection score before it stops; 0 never stops.
        last: File that the training can be resumed from, or None.
        resume: Whether to begin with that file.
        start_is_good: Whether the network as given is worth keeping where no epoch is.
        begin_epoch: Freezes for an epoch, counted from 0, and returns modules that stay in eval mode.
        watch: Returns columns for the history, after each epoch.
    """

    stage: str
    epochs: int
    objective: Objective
    descent: Descent
    ema: float = 0.0
    precision: str = "auto"
    seed: int = 0
    patience: int = 0
    last: Path | None = None
    resume: bool = False
    start_is_good: bool = False
    begin_epoch: Callable[[int], Sequence[nn.Module]] = _nothing_frozen
    watch: Callable[[nn.Module], Row] = _nothing_watched


@dataclass(frozen=True)
class FitResult:
    """How a training ended.

    Attributes:
        rows: History.
        kept_epoch: Whose weights the network now has, counted from 1; 0 are those it began with.
        diverged: The epoch in which the loss exploded, or 0.
    """

    rows: list[Row]
    kept_epoch: int
    diverged: int = 0


def fit(
    network: nn.Module,
    groups: Groups,
    train: DataLoader[Any],
    evaluate: dict[str, DataLoader[Any]],
    settings: Settings,
    *,
    ranks: Ranks = ALONE,
    shared: bool = False,
    on_row: Callable[[list[Row]], None],
    on_progress: Progress,
) -> FitResult:
    """Trains a network in place; where it diverges, the last good epoch's weights come back.

    Args:
        network: Called with a batch's first part, answers (logits, ...) or logits.
        groups: Optimizer groups.
        train: Batches; its sampler must be an `EpochSampler`.
        evaluate: Loaders by name: ``val``, and ``select`` where epochs are to be chosen.
        settings: See there.
        ranks: Processes that train together; each calls this with its own parts.
        shared: Whether each process's ``evaluate`` has a part of the pictures.
        on_row: Called with the whole history after each epoch.
        on_progress: Called with (stage, step, steps, text).

    Raises:
        InputError: It diverged before an epoch was over, or ``settings.last`` cannot be written.
        Interrupted: A signal asked to stop; ``settings.last`` is written.
    """
    start = copy.deepcopy(network.state_dict()) if settings.start_is_good else None
    network.train()  # Lightning leaves modes as it finds them
    task = Task(
        network,
        groups,
        settings.objective,
        settings.descent,
        settings.begin_epoch,
        ema=settings.ema,
        seed=settings.seed,
        epochs=settings.epochs,
        steps=len(train),
        evaluations=dict.fromkeys(evaluate, shared),
        ranks=ranks,
    )
    keeper = Keeper(
        settings.stage, settings.epochs, settings.patience, settings.last, settings.watch, on_row, on_progress, ranks
    )
    with quiet("lightning.pytorch", "lightning.fabric"), signals_restored():
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            accelerator="auto",
            **_places(ranks),
            precision=precision_of(settings.precision),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            callbacks=[keeper],
        )
        try:
            trainer.fit(
                task,
                train,
                list(evaluate.values()),
                ckpt_path=str(settings.last) if settings.resume else None,
                weights_only=True if settings.resume else None,
            )
        except Diverged as end:
            return _last_good(network, keeper, settings, end.epoch, start)
    if keeper.best is not None:
        network.load_state_dict(keeper.best)
        return FitResult(keeper.rows, keeper.best_epoch)
    if task.average is not None:
        network.load_state_dict(task.average.module.state_dict())
    return FitResult(keeper.rows, len(keeper.rows))


def _last_good(
    network: nn.Module, keeper: Keeper, settings: Settings, epoch: int, start: dict[str, Any] | None
) -> FitResult:
    """Gives the network the weights of the last epoch that was over, or those it began with."""
    good = keeper.best if keeper.best is not None else keeper.good if keeper.rows else start
    if good is None:
        if settings.last is not None:
            settings.last.unlink(missing_ok=True)  # it could only diverge again
        raise InputError(
            f"training diverged in epoch {epoch} of {settings.stage}: its loss is no longer finite; give a lower --lr"
        )
    network.load_state_dict(good)
    return FitResult(keeper.rows, keeper.best_epoch if keeper.best is not None else len(keeper.rows), diverged=epoch)


def _places(ranks: Ranks) -> dict[str, Any]:
    """Returns the Trainer's arguments that say on which devices it runs."""
    if ranks.count == 1:
        return {"devices": 1}
    return {
        "devices": ranks.devices,
        "num_nodes": ranks.nodes,
        "strategy": DDPStrategy(process_group_backend="nccl" if torch.cuda.is_available() else "gloo"),
        "plugins": [LightningEnvironment()],
        "use_distributed_sampler": False,
    }


def precision_of(asked: str) -> Any:
    """Returns Lightning's name of a precision.

    Raises:
        InputError: This machine has no such arithmetic.
    """
    if asked == "auto":
        if not torch.cuda.is_available():
            return "32-true"
        asked = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if asked == "fp16" and not torch.cuda.is_available():
        raise InputError("--precision fp16 needs a GPU; take bf16 or fp32 on a CPU")
    return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[asked]


@contextmanager
def compiled(network: nn.Module) -> Iterator[None]:
    """Lets torch.compile make a network faster.

    Raises:
        InputError: It cannot be compiled here, most often for want of a C++ compiler.
    """
    from torch._dynamo.exc import TorchDynamoException

    network.compile()
    try:
        yield
    except TorchDynamoException as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"--compile: torch.compile failed ({reason[:160]}); it needs a C++ compiler (g++) and Python's headers; "
            "install them, or leave --compile out"
        ) from None


def evaluate_logits(
    network: nn.Module, loader: DataLoader[Any], on_progress: Callable[[int, int], None]
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Returns (logits (N, C), labels (N,)) of a loader's pictures, on the device where the network is."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    logits, labels = [], []
    with torch.inference_mode():
        for number, (inputs, truth) in enumerate(loader, start=1):
            logits.append(logits_of(network, inputs.to(device)).cpu().numpy())
            labels.append(truth.numpy())
            on_progress(number, len(loader))
    return np.concatenate(logits), np.concatenate(labels)
