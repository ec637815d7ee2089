"""Training by Lightning's Trainer: loss, schedule, history, and checkpoints that resume exactly."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from edgetl.errors import InputError, Interrupted
from edgetl.finetune.data import EpochSampler
from edgetl.finetune.signals import STOP_SIGNALS, signals_restored
from edgetl.quiet import quiet

__all__ = ["FitResult", "Row", "Settings", "evaluate_logits", "fit"]

Row = dict[str, float | int | str]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """What the loop needs to know.

    Attributes:
        stage: Name in history and progress.
        epochs: Passes over the training data.
        optimizer: ``adamw`` or ``sgd``.
        label_smoothing: Of the training loss.
        warmup: Share of the steps.
        seed: For dropout.
        largest_gradient: Norm of all gradients together, to which larger ones are clipped; None clips nothing.
        patience: Epochs without a better selection score before it stops; 0 never stops.
        last: File that the training can be resumed from, or None.
        resume: Whether to begin with that file.
    """

    stage: str
    epochs: int
    optimizer: str
    label_smoothing: float
    warmup: float
    seed: int
    largest_gradient: float | None = None
    patience: int = 0
    last: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class FitResult:
    """Rows of history, and the epoch whose weights the network now has."""

    rows: list[Row]
    kept_epoch: int


def fit(
    network: nn.Module,
    groups: list[dict[str, Any]],
    frozen: Sequence[nn.Module],
    train: DataLoader[Any],
    evaluate: dict[str, DataLoader[Any]],
    settings: Settings,
    *,
    on_row: Callable[[list[Row]], None],
    on_progress: Progress,
) -> FitResult:
    """Trains a network in place.

    Args:
        network: Called with a batch's first part, answers (logits, ...) or logits.
        groups: Optimizer groups.
        frozen: Modules that stay in eval mode.
        train: Batches; its sampler must be an `EpochSampler`.
        evaluate: Loaders by name: ``val``, and ``select`` where epochs are to be chosen.
        settings: See there.
        on_row: Called with the whole history after each epoch.
        on_progress: Called with (stage, step, steps, text).

    Raises:
        Interrupted: A signal asked to stop; ``settings.last`` is written.
    """
    network.train()  # Lightning leaves modes as it finds them
    task = _Task(network, groups, frozen, settings, len(train), tuple(evaluate))
    keeper = _Keeper(settings, on_row, on_progress)
    with quiet("lightning.pytorch", "lightning.fabric"), signals_restored():
        trainer = lightning.Trainer(
            max_epochs=settings.epochs,
            accelerator="auto",
            devices=1,
            precision=_precision(),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            gradient_clip_val=settings.largest_gradient,
            callbacks=[keeper],
        )
        trainer.fit(
            task,
            train,
            list(evaluate.values()),
            ckpt_path=str(settings.last) if settings.resume else None,
            weights_only=True if settings.resume else None,
        )
    if keeper.best is not None:
        network.load_state_dict(keeper.best)
    return FitResult(keeper.rows, keeper.best_epoch if keeper.best is not None else len(keeper.rows))


def _precision() -> Any:
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


class _Task(lightning.LightningModule):
    """The loss, the optimizer, and what is counted during an epoch."""

    def __init__(
        self,
        network: nn.Module,
        groups: list[dict[str, Any]],
        frozen: Sequence[nn.Module],
        settings: Settings,
        steps_per_epoch: int,
        evaluations: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.network = network
        self._groups = groups
        self._frozen = frozen
        self._settings = settings
        self._steps = steps_per_epoch * settings.epochs
        self._evaluations = evaluations
        self.loss_sum = torch.zeros(())
        self.seen = 0
        self.outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.scores: dict[str, float] = {}

    def _logits(self, inputs: Tensor) -> Tensor:
        answer = self.network(inputs)
        logits: Tensor = answer[0] if isinstance(answer, tuple) else answer
        return logits.float()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Returns the loss of one batch."""
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self._logits(inputs), labels, label_smoothing=self._settings.label_smoothing)
        self.loss_sum = self.loss_sum.to(loss.device) + loss.detach() * len(labels)
        self.seen += len(labels)
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keeps frozen normalizations as they were pretrained, and makes dropout a function of seed and step.

        An epoch's start would not do: a training resumed in the middle of one has none.
        """
        for module in self._frozen:
            module.eval()
        torch.manual_seed(self._settings.seed * 1_000_003 + self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's answers."""
        self.outputs = {name: [] for name in self._evaluations}

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int, dataloader_idx: int = 0) -> None:
        """Collects answers."""
        inputs, labels = batch
        self.outputs[self._evaluations[dataloader_idx]].append((self._logits(inputs), labels))

    def on_validation_epoch_end(self) -> None:
        """Scores the answers of all batches together."""
        self.scores = {}
        for name, pairs in self.outputs.items():
            logits, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
            self.scores[f"{name}_loss"] = float(nn.functional.cross_entropy(logits, labels))
            self.scores[f"{name}_top1"] = float((logits.argmax(1) == labels).float().mean())
        self.outputs = {}

    def configure_optimizers(self) -> Any:
        """Returns optimizer and schedule: linear warm-up, then a cosine to zero."""
        optimizer: torch.optim.Optimizer
        if self._settings.optimizer == "sgd":
            optimizer = torch.optim.SGD(self._groups, lr=1.0, momentum=0.9, nesterov=True)
        else:
            optimizer = torch.optim.AdamW(self._groups, lr=1.0)
        warm = round(self._settings.warmup * self._steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warm, self._steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _rate(step: int, warm: int, steps: int) -> float:
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


class _Keeper(Callback):
    """History, the best weights, the file to resume from, and stopping when asked to."""

    def __init__(self, settings: Settings, on_row: Callable[[list[Row]], None], on_progress: Progress) -> None:
        self._settings = settings
        self._on_row = on_row
        self._on_progress = on_progress
        self.rows: list[Row] = []
        self.best: dict[str, Tensor] | None = None
        self.best_epoch = 0
        self.best_score: tuple[float, float] = (-1.0, -math.inf)
        self.complete = False  # the last epoch is over, or patience is
        self.stop_requested = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": list(self.best_score),
            "complete": self.complete,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.best = state_dict["best"]
        self.best_epoch = int(state_dict["best_epoch"])
        self.best_score = tuple(state_dict["best_score"])
        self.complete = bool(state_dict["complete"])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["edgetl_epoch_sums"] = [float(pl_module.loss_sum), pl_module.seen]

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        loop = checkpoint["loops"]["fit_loop"]
        sampler, batch_size = _sampler(trainer), trainer.fit_loop._data_source.instance.batch_size
        sampler.epoch = loop["epoch_progress"]["current"]["processed"]
        sampler.start = loop["epoch_loop.batch_progress"]["current"]["ready"] * batch_size
        if loop["epoch_loop.batch_progress"]["is_last_batch"]:
            sampler.start = 0
        loss_sum, seen = checkpoint["edgetl_epoch_sums"]
        pl_module.loss_sum, pl_module.seen = torch.tensor(loss_sum), int(seen)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Takes Ctrl-C and SIGTERM over from Lightning, which would stop without saving."""
        if self.complete:  # resumed, with nothing left to train
            trainer.should_stop = True
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, _: Any) -> None:
        """The first signal asks to save and stop, a second Ctrl-C stops at once."""
        if self.stop_requested and number == signal.SIGINT:
            raise Interrupted("stopped at once; the last saved step remains")
        self.stop_requested = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        text = f"epoch {trainer.current_epoch + 1}/{self._settings.epochs}"
        if self.rows:
            text += f"  val top-1 {self.rows[-1]['val_top1']:.1%}"
        self._on_progress(self._settings.stage, trainer.global_step, pl_module._steps, text)
        if self.stop_requested and not trainer.is_last_batch:
            self._save(trainer)
            raise Interrupted("stopped")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._check_finite(trainer.current_epoch + 1, float(pl_module.loss_sum))
        row: Row = {
            "stage": self._settings.stage,
            "epoch": trainer.current_epoch + 1,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train_loss": float(pl_module.loss_sum) / max(1, pl_module.seen),
            **pl_module.scores,
        }
        pl_module.loss_sum, pl_module.seen = torch.zeros(()), 0
        self.rows.append(row)
        if "select_top1" in row:
            self._consider(trainer, pl_module, (float(row["select_top1"]), -float(row["select_loss"])))
        self.complete = trainer.should_stop or trainer.current_epoch + 1 == self._settings.epochs
        self._save(trainer)
        self._on_row(self.rows)
        if self.stop_requested:
            raise Interrupted("stopped")

    def _check_finite(self, epoch: int, loss_sum: float) -> None:
        if math.isfinite(loss_sum):
            return
        if self._settings.last is not None:
            self._settings.last.unlink(missing_ok=True)  # it could only diverge again
        raise InputError(
            f"training diverged in epoch {epoch} of {self._settings.stage}: its loss is no longer finite; "
            "give a lower --lr"
        )

    def _consider(self, trainer: Any, pl_module: Any, score: tuple[float, float]) -> None:
        if score > self.best_score:
            self.best_score, self.best_epoch = score, len(self.rows)
            self.best = {k: v.detach().cpu().clone() for k, v in pl_module.network.state_dict().items()}
        elif self._settings.patience and len(self.rows) - self.best_epoch >= self._settings.patience:
            trainer.should_stop = True

    def _save(self, trainer: Any) -> None:
        if self._settings.last is None:
            return
        temporary = self._settings.last.with_name(f".{self._settings.last.name}.new")
        trainer.save_checkpoint(temporary)
        temporary.replace(self._settings.last)


def _sampler(trainer: Any) -> EpochSampler:
    sampler: EpochSampler = trainer.fit_loop._data_source.instance.sampler
    return sampler


def evaluate_logits(
    network: nn.Module, loader: DataLoader[Any], on_progress: Callable[[int, int], None]
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Returns (logits (N, C), labels (N,)) of a loader's pictures, on the device where the network is."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    logits, labels = [], []
    with torch.inference_mode():
        for number, (inputs, truth) in enumerate(loader, start=1):
            answer = network(inputs.to(device))
            logits.append((answer[0] if isinstance(answer, tuple) else answer).float().cpu().numpy())
            labels.append(truth.numpy())
            on_progress(number, len(loader))
    return np.concatenate(logits), np.concatenate(labels)
