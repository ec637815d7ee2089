"""One step of training and of validation, as Lightning calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from edgetl.finetune.objective import Objective, logits_of
from edgetl.finetune.optimizers import Descent, Groups, optimizer_of, schedule_of
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.seeding import seed_step

__all__ = ["Diverged", "Task"]

_LOOK_EVERY = 50  # steps on a GPU: to look at a loss is to wait for it


class Diverged(Exception):  # noqa: N818
    """The loss is no number any more; says in which epoch, counted from 1."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch


class Task(lightning.LightningModule):
    """The loss, the optimizer, and what is counted during an epoch.

    Args:
        network: Called with a batch's first part, answers (logits, ...) or logits.
        groups: Optimizer groups.
        objective: The loss.
        descent: Optimizer and schedule.
        begin_epoch: Called with an epoch's number from 0 before its first step, also of a resumed one; returns the
            modules that stay in eval mode during it.
        ema: Decay of the averaged weights; 0 for none.
        seed: For dropout and mixing.
        epochs: How many.
        steps: Of an epoch.
        evaluations: Names of the validation loaders, and whether each process has its own part of the pictures.
        ranks: Processes that train together.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Groups,
        objective: Objective,
        descent: Descent,
        begin_epoch: Callable[[int], Sequence[nn.Module]],
        *,
        ema: float,
        seed: int,
        epochs: int,
        steps: int,
        evaluations: dict[str, bool],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__()
        self.network = network
        self.average = AveragedModel(network, multi_avg_fn=_averaging(ema)) if ema else None
        if self.average is not None:
            self.average.requires_grad_(False)
        self._groups = groups
        self._objective = objective
        self._descent = descent
        self._begin_epoch = begin_epoch
        self._frozen: Sequence[nn.Module] = ()
        self._begun = -1
        self._seed = seed
        self._epochs = epochs
        self._steps = steps
        self._evaluations = evaluations
        self._ranks = ranks
        self.sums = {name: torch.zeros(()) for name in ("loss", "hits", "seen", "gradient", "steps")}
        self.outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.scores: dict[str, float] = {}

    @property
    def judged(self) -> nn.Module:
        """The network whose answers count: the averaged one where there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self._steps * self._epochs

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Returns the loss of one batch."""
        inputs, labels = batch
        loss, hits = self._objective(self.network, inputs, labels)
        self._look_at(loss)
        count = len(labels)
        for name, value in (("loss", loss.detach() * count), ("hits", hits), ("seen", count), ("steps", 1)):
            self.sums[name] = self.sums[name].to(loss.device) + value
        return loss

    def _look_at(self, loss: Tensor) -> None:
        if self._ranks.count > 1 or (loss.device.type != "cpu" and self.global_step % _LOOK_EVERY):
            return  # of several processes, all have to stop at the same step
        if not math.isfinite(float(loss)):
            raise Diverged(self.current_epoch + 1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Freezes what is to be frozen, and makes dropout and mixing a function of seed and step.

        An epoch's start would not do: a training resumed in the middle of one has none.
        """
        if self._begun != self.current_epoch:
            self._frozen, self._begun = self._begin_epoch(self.current_epoch), self.current_epoch
            self.network.train()  # what was frozen in the epoch before may be no longer
        for module in self._frozen:
            module.eval()
        seed_step(self._seed * 1_000_003 + self.global_step + self._ranks.rank * 7_919_000_003)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clips, and counts the norm of all gradients together as it was before."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        largest = self._descent.largest_gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if largest is None else largest)
        finite = torch.where(norm.isfinite(), norm, torch.zeros_like(norm))  # fp16 skips steps that overflow
        self.sums["gradient"] = self.sums["gradient"].to(norm.device) + finite.detach()

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Takes the new weights into the average at once: callbacks that save run before this module's own hooks."""
        super().optimizer_step(*arguments, **named)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def take_sums(self) -> dict[str, float]:
        """Returns the epoch's means, and begins to count anew.

        Raises:
            Diverged: The loss was no number at some step.
        """
        sums = self._ranks.total({name: float(value) for name, value in self.sums.items()})
        self.sums = {name: torch.zeros(()) for name in sums}
        if not math.isfinite(sums["loss"]):
            raise Diverged(self.current_epoch + 1)
        seen, steps = max(1.0, sums["seen"]), max(1.0, sums["steps"])
        return {
            "train_loss": sums["loss"] / seen,
            "train_top1": sums["hits"] / seen,
            "gradient_norm": sums["gradient"] / steps,
        }

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's answers."""
        self.outputs = {name: [] for name in self._evaluations}
        self.judged.eval()

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int, dataloader_idx: int = 0) -> None:
        """Collects answers."""
        inputs, labels = batch
        self.outputs[list(self._evaluations)[dataloader_idx]].append((logits_of(self.judged, inputs), labels))

    def on_validation_epoch_end(self) -> None:
        """Scores the answers of all batches together."""
        self.scores = {}
        for name, pairs in self.outputs.items():
            logits, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
            if self._evaluations[name]:
                parts = self._ranks.gathered((logits.cpu(), labels.cpu()))
                logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            self.scores[f"{name}_loss"] = float(F.cross_entropy(logits, labels))
            self.scores[f"{name}_top1"] = float((logits.argmax(1) == labels).float().mean())
        self.outputs = {}

    def configure_optimizers(self) -> Any:
        """Returns optimizer and schedule."""
        optimizer = optimizer_of(self._descent, self._groups)
        schedule = schedule_of(self._descent, optimizer, self._steps, self._epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _averaging(decay: float) -> Callable[..., None]:
    """Returns a moving average that trusts the first weights less: min(decay, (1 + n) / (10 + n)) after n steps."""

    def average(averaged: Any, current: Any, count: Any) -> None:
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return average
