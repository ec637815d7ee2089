"""What is kept while a network trains: history, the best weights, the file to resume from."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from edgetl.errors import InputError, Interrupted
from edgetl.finetune.data import EpochSampler
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.signals import STOP_SIGNALS
from edgetl.finetune.task import Diverged

__all__ = ["Keeper", "Progress", "Row"]

Row = dict[str, float | int | str]
Progress = Callable[[str, int, int, str], None]

_STOP, _SAVE, _BAD = 1, 2, 4  # bits
# A kill costs at most so much work.
_SAVE_EVERY_S = 300.0
# A loss so many times as high as the first epoch's, with answers no better than then, does not come down again.
_EXPLODED = 3.0


class Keeper(Callback):
    """History, the best weights, the file to resume from, and stopping when asked to.

    Args:
        stage: Name in history and progress.
        epochs: How many.
        patience: Epochs without a better selection score before it stops; 0 never stops.
        last: File that the training can be resumed from, or None.
        watch: Called with the network at each epoch's end; returns columns for the history.
        on_row: Called with the whole history after each epoch.
        on_progress: Called with (stage, step, steps, text).
        ranks: Processes that train together.
    """

    def __init__(
        self,
        stage: str,
        epochs: int,
        patience: int,
        last: Path | None,
        watch: Callable[[nn.Module], Row],
        on_row: Callable[[list[Row]], None],
        on_progress: Progress,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._stage = stage
        self._epochs = epochs
        self._patience = patience
        self._last = last
        self._watch = watch
        self._on_row = on_row
        self._on_progress = on_progress
        self._saved_at = time.monotonic()
        self.rows: list[Row] = []
        self.best: dict[str, Tensor] | None = None
        self.best_epoch = 0
        self.best_score: tuple[float, float] = (-1.0, -math.inf)
        self.good: dict[str, Tensor] | None = None  # weights of the last epoch that was over
        self._is_epoch_end = False
        self.complete = False  # the last epoch is over, or patience is
        self.stop_requested = False

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training has to know."""
        return {
            "rows": self.rows,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_score": list(self.best_score),
            "complete": self.complete,
            "good": None if self._is_epoch_end else self.good,  # at an epoch's end they are the network's
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.rows = list(state_dict["rows"])
        self.best = state_dict["best"]
        self.best_epoch = int(state_dict["best_epoch"])
        self.best_score = tuple(state_dict["best_score"])
        self.complete = bool(state_dict["complete"])
        self.good = state_dict["good"]

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds what the epoch has counted so far."""
        checkpoint["edgetl_epoch_sums"] = self._ranks.total({n: float(value) for n, value in pl_module.sums.items()})

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Sets the sampler before the data iterator is made, which is before `on_train_start`."""
        loop = checkpoint["loops"]["fit_loop"]
        sampler, batch_size = _sampler(trainer), trainer.fit_loop._data_source.instance.batch_size
        sampler.epoch = loop["epoch_progress"]["current"]["processed"]
        sampler.start = loop["epoch_loop.batch_progress"]["current"]["ready"] * batch_size * self._ranks.count
        if loop["epoch_loop.batch_progress"]["is_last_batch"]:
            sampler.start = 0
        share = 1.0 if self._ranks.first else 0.0  # they are those of all processes together
        pl_module.sums = {n: torch.tensor(value * share) for n, value in checkpoint["edgetl_epoch_sums"].items()}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Takes Ctrl-C and SIGTERM over from Lightning, which would stop without saving."""
        if self.complete:  # resumed, with nothing left to train
            trainer.should_stop = True
        if self.rows and self.good is None:  # resumed at an epoch's end
            self.good = _on_cpu(pl_module.judged)
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, _: Any) -> None:
        """The first signal asks to save and stop, a second Ctrl-C stops at once."""
        if self.stop_requested and number == signal.SIGINT:
            raise Interrupted("stopped at once; the last saved step remains")
        self.stop_requested = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves where it was asked to stop, and every few minutes."""
        text = f"epoch {trainer.current_epoch + 1}/{self._epochs}"
        if self.rows:
            text += f"  val top-1 {self.rows[-1]['val_top1']:.1%}"
        self._on_progress(self._stage, trainer.global_step, pl_module.total_steps, text)
        if trainer.is_last_batch:
            return
        due = self._last is not None and time.monotonic() - self._saved_at > _SAVE_EVERY_S
        wanted = self._ranks.flags(_STOP * self.stop_requested | _SAVE * due)
        if wanted:
            self._save(trainer)
        if wanted & _STOP:
            raise Interrupted("stopped")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Adds a row, and saves.

        Raises:
            Diverged: A loss or a weight is no number any more, or the loss has exploded.
            Interrupted: A signal asked to stop.
        """
        row: Row = {
            "stage": self._stage,
            "epoch": trainer.current_epoch + 1,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            **pl_module.take_sums(),
            **pl_module.scores,
            **self._watch(pl_module.judged),
        }
        self._check_finite(row, pl_module.judged)
        self._check_explosion(row)
        self.rows.append(row)
        self.good = _on_cpu(pl_module.judged)
        if "select_top1" in row:
            self._consider(trainer, (float(row["select_top1"]), -float(row["select_loss"])))
        self.complete = trainer.should_stop or trainer.current_epoch + 1 == self._epochs
        self._is_epoch_end = True
        self._save(trainer)
        self._is_epoch_end = False
        self._on_row(self.rows)
        if self._ranks.flags(_STOP * self.stop_requested):
            raise Interrupted("stopped")

    def _check_finite(self, row: Row, network: nn.Module) -> None:
        """An epoch's last step may spoil the weights, and its own loss, taken before, says nothing of it."""
        losses = [float(value) for name, value in row.items() if name.endswith("_loss")]
        bad = not all(map(math.isfinite, losses)) or not _is_finite(network)
        if self._ranks.flags(_BAD * bad):  # statistics of BatchNorm differ from process to process
            raise Diverged(int(row["epoch"]))

    def _check_explosion(self, row: Row) -> None:
        if not self.rows:
            return
        first, now = float(self.rows[0]["train_loss"]), float(row["train_loss"])
        if now > _EXPLODED * max(first, 1.0) and float(row["val_top1"]) <= float(self.rows[0]["val_top1"]):
            raise Diverged(int(row["epoch"]))

    def _consider(self, trainer: Any, score: tuple[float, float]) -> None:
        if score > self.best_score:
            self.best_score, self.best_epoch = score, len(self.rows)
            self.best = self.good
        elif self._patience and len(self.rows) - self.best_epoch >= self._patience:
            trainer.should_stop = True

    def _save(self, trainer: Any) -> None:
        if self._last is None:
            return
        temporary = self._last.with_name(f".{self._last.name}.new")
        try:
            trainer.save_checkpoint(temporary)
            if self._ranks.first:
                temporary.replace(self._last)
        except (OSError, RuntimeError) as error:  # torch's writer wraps what the disk says
            temporary.unlink(missing_ok=True)
            kept = "the one before it remains" if self._last.exists() else "there is none yet"
            raise InputError(
                f"{self._last}: cannot be written ({' '.join(str(error).split())[:120]}), {kept}; make room, then go "
                "on with --resume"
            ) from None
        self._saved_at = time.monotonic()


def _is_finite(network: nn.Module) -> bool:
    return all(bool(t.isfinite().all()) for t in network.state_dict().values() if t.is_floating_point())


def _on_cpu(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _sampler(trainer: Any) -> EpochSampler:
    sampler: EpochSampler = trainer.fit_loop._data_source.instance.sampler
    return sampler
