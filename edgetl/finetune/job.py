"""What a strategy does with network and pictures, stage after stage."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetl.backbones import Network, WeightsReport
from edgetl.dataset import Item
from edgetl.errors import InputError
from edgetl.finetune.balance import Balance
from edgetl.finetune.config import FinetuneConfig, parse_strategy
from edgetl.finetune.fit import FitResult, Row, Settings, compiled, evaluate_logits, fit
from edgetl.finetune.head_start import init_classifier, init_from_ridge, is_solvable, quieten, solve
from edgetl.finetune.inputs import Inputs, Loaders
from edgetl.finetune.loggers import HistoryLog
from edgetl.finetune.objective import Mixer, Objective, Penalty, Teacher
from edgetl.finetune.optimizers import Descent, Groups
from edgetl.finetune.prefix import UpperPart, upper_part
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.rate_range import find_rate
from edgetl.finetune.run_folder import RunFolder
from edgetl.finetune.settle import reestimate_statistics
from edgetl.finetune.strategies import Freezing, frozen_blocks, parameter_groups
from edgetl.finetune.watch import DriftWatch
from edgetl.spec import ModelSpec

__all__ = ["Job", "Outcome", "Reporter"]

_PROBE_EPOCHS_PER_EPOCH = 5
# The head alone bears, and needs, a higher rate than a network that must not forget.
_PROBE_RATE = 6.0
_ROUTE = "frozen_blocks"  # whether they run once or at each step


class Reporter(Protocol):
    """Whoever shows what is going on."""

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Is called often."""

    def note(self, text: str) -> None:
        """Is called with a line that the user should read."""

    def weights(self, report: WeightsReport) -> None:
        """Is called with what a file of weights gave."""


@dataclass(frozen=True)
class Outcome:
    """What training gave.

    Attributes:
        rows: History of all stages.
        kept: Number of the row whose weights the network has.
        diverged: The epoch of tuning in which the loss exploded, or 0.
    """

    rows: list[Row]
    kept: int
    diverged: int = 0


@dataclass
class Job:
    """Everything the stages of one training share.

    Attributes:
        network: Changed in place.
        spec: Of it.
        config: Settings.
        train: Pictures to learn from.
        select: Pictures on which the best epoch is chosen; may be none.
        val: Pictures on which it is reported.
        balance: What is done about uneven classes.
        teacher: Or None.
        folder: Of the run, or None where nothing is kept.
        reporter: See there.
        ranks: Processes that train together; all but the first give up when training is over.
        log: Where the history is told as well, or None.
    """

    network: Network
    spec: ModelSpec
    config: FinetuneConfig
    train: tuple[Item, ...]
    select: tuple[Item, ...]
    val: tuple[Item, ...]
    balance: Balance
    teacher: Teacher | None
    folder: RunFolder | None
    reporter: Reporter
    ranks: Ranks = ALONE
    log: HistoryLog | None = None

    @cached_property
    def inputs(self) -> Inputs:
        """What the network is fed."""
        return Inputs(
            self.network,
            self.spec.preprocess,
            self.config,
            self.train,
            self.select,
            self.val,
            self.balance.shares,
            self.ranks,
            self.reporter.progress,
            self.reporter.note,
        )

    @property
    def device(self) -> torch.device:
        """Where the network is trained."""
        return self.ranks.device()

    def run(self, *, resume: bool) -> Outcome:
        """Trains by the strategy."""
        kind, _ = parse_strategy(self.config.strategy)
        going_on = self.ranks.gathered(resume and self.folder is not None and self.folder.last.exists())[0]
        probes = kind in ("probe", "lp-ft")
        solved = kind == "lp-ft" and is_solvable(self.network, self.config, len(self.train))
        if not solved:
            self._init_head(probes)
        if kind == "probe":
            result = self._probe(self._config_of_probe())
            return Outcome(result.rows, result.kept_epoch)
        probed: list[Row] = []
        if probes:  # seconds, and the same each time: a resumed run repeats it
            config = self.config if self.config.lr != "auto" else dataclasses.replace(self.config, lr=None)
            probed = self._solve_probe() if solved else self._probe(config).rows
        loud = copy.deepcopy(self.network.head.classifier.state_dict()) if solved else None
        if solved and self.ranks.first:
            self._quieten()
        result = self._tune(probed, resume=going_on)
        if loud is not None and result.diverged and not result.kept_epoch:
            self.network.head.classifier.load_state_dict(loud)  # what is kept is the probe, which should be sure
        return Outcome(probed + result.rows, len(probed) + result.kept_epoch, result.diverged)

    def answers(self, items: tuple[Item, ...], stage: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns (logits (N, C), labels (N,)) of the finished network; a probe's come from the features it has.

        Args:
            items: Of train or val.
            stage: Name for progress.
        """
        known = self.inputs.known_features(items) if self.config.strategy == "probe" else None
        if known is not None:
            with torch.inference_mode():
                logits = self._head().eval().cpu()(torch.from_numpy(known))
            return logits.numpy(), np.array([item.label for item in items])
        return evaluate_logits(
            self.network.to(self.device),
            self.inputs.as_on_a_device(items),
            lambda done, total: self.reporter.progress(stage, done, total),
        )

    def _init_head(self, probes: bool) -> None:
        """Starts the last layer; from zero a linear probe is convex and free of the seed."""
        kind, layer = self.config.head_init, self.network.head.classifier
        if kind == "ridge":
            hidden = copy.deepcopy(self.network.head.hidden).cpu()
            with torch.no_grad():
                seen = hidden(torch.from_numpy(self.inputs.features("train")))
            labels = self.inputs.labels("train")
            init_from_ridge(layer, seen.numpy(), labels, self.balance.weights_of(labels))
        elif kind != "auto":
            init_classifier(layer, kind)
        elif probes:
            init_classifier(layer, "zero")

    def _solve_probe(self) -> list[Row]:
        """Takes a linear head from ridge regression."""
        features = {name: self.inputs.features(name) for name in self.inputs.parts}
        if not self.ranks.first:  # the first one's head is sent to all when they tune together
            return []
        labels = {name: self.inputs.labels(name) for name in features}
        layer = self.network.head.classifier.cpu()
        scores = solve(layer, features, labels, self.balance.weights_of(labels["train"]))
        row: Row = {"stage": "probe", "epoch": 1, **scores}
        self.reporter.progress("probe", 1, 1)
        self._write([row])
        return [row]

    def _quieten(self) -> None:
        layer = self.network.head.classifier
        with torch.inference_mode():
            logits = layer(torch.from_numpy(self.inputs.features("train")))
        quieten(layer, logits)

    def _config_of_probe(self) -> FinetuneConfig:
        """Returns the settings, their rate found."""
        if self.config.lr != "auto":
            return self.config
        head, loaders = self._head().to(self.device), self.inputs.of_features()
        objective = Objective(self.config.label_smoothing, self._class_weights())
        return self._with_rate(head, lambda rate: self._groups_of_probe(head, rate), objective, loaders, [])

    def _with_rate(
        self,
        network: nn.Module,
        groups: Callable[[float], Groups],
        objective: Objective,
        loaders: Loaders,
        in_eval: list[nn.Module],
    ) -> FinetuneConfig:
        """Returns the settings with the rate of a range test, or of the run that is being resumed."""
        saved = self.folder.resolved().get("lr") if self.folder is not None and self.ranks.first else None
        if saved is None and self.ranks.first:
            saved = find_rate(
                network,
                groups,
                objective,
                self._descent(clipped=False),
                loaders.rates,
                in_eval,
                seed=self.config.seed,
                on_progress=lambda done, total: self.reporter.progress("learning rate", done, total),
            )
            if saved is None:
                saved = dataclasses.replace(self.config, lr=None).peak_lr
                self.reporter.note(f"--lr auto: no rate made the loss fall, so it is the optimizer's own, {saved:.2g}")
            else:
                self.reporter.note(f"--lr auto: {saved:.2g} by a range test")
            if self.folder is not None:
                self.folder.resolve(lr=saved)
        return dataclasses.replace(self.config, lr=float(self.ranks.gathered(saved)[0] or 0.0))

    def _head(self) -> nn.Sequential:
        head = self.network.head
        return nn.Sequential(head.hidden, head.dropout, head.classifier)

    def _groups_of_probe(self, head: nn.Module, rate: float) -> Groups:
        return [{"params": list(head.parameters()), "lr": rate * _PROBE_RATE, "weight_decay": self.config.weight_decay}]

    def _probe(self, config: FinetuneConfig) -> FitResult:
        """Trains the head alone, on features that are computed once."""
        loaders = self.inputs.of_features()
        if not self.ranks.first:  # the first one's head is sent to all when they tune together
            return FitResult([], 0)
        head = self._head()
        objective = Objective(config.label_smoothing, self._class_weights(), penalty=self._penalty(head.parameters()))
        result = fit(
            head,
            self._groups_of_probe(head, config.peak_lr),
            loaders.train,
            loaders.evaluate,
            Settings(
                "probe",
                config.epochs * _PROBE_EPOCHS_PER_EPOCH,
                objective,
                self._descent(clipped=False),
                precision=config.precision,
                seed=config.seed,
                patience=config.patience * _PROBE_EPOCHS_PER_EPOCH,
            ),
            on_row=lambda rows: self._write(rows) if len(rows) % 10 == 0 else None,
            on_progress=self.reporter.progress,
        )
        self._write(result.rows)
        return result

    def _tune(self, before: list[Row], *, resume: bool) -> FitResult:
        """Trains on pictures, or on what the frozen blocks give of them."""
        self.network.to(self.device).to(memory_format=torch.channels_last)
        maps = self._maps()
        if maps is None:
            result, following = self._fit(self.network, self.inputs.of_pictures(), before, resume=resume)
        else:
            with upper_part(self.network, frozen_blocks(self.network, self.config.strategy)) as upper:
                result, following = self._fit(upper, maps, before, resume=resume)
        seen = self.inputs.for_statistics()
        if following and seen is not None and self.ranks.first:
            reestimate_statistics(
                self.network.to(self.device),
                following,
                seen,
                lambda done, total: self.reporter.progress("statistics", done, total),
            )
        self.network.to(memory_format=torch.contiguous_format)
        return result

    def _maps(self) -> Loaders | None:
        """Returns what the frozen blocks give, if they are run once; a resumed run does as it did."""
        if not frozen_blocks(self.network, self.config.strategy) or self.ranks.count > 1:
            return None  # of several processes each would compute all of them, and on other machines there is no folder
        before = self.folder.resolved().get(_ROUTE) if self.folder is not None else None
        maps = self.inputs.of_maps() if before != "each step" else None
        if maps is None and before == "once":
            raise InputError(
                "this run began with frozen blocks run once, and that cannot be had now: make room on disk"
            )
        if self.folder is not None and self.ranks.first:
            self.folder.resolve(**{_ROUTE: "each step" if maps is None else "once"})
        return maps

    def _fit(
        self, trained: nn.Module, loaders: Loaders, before: list[Row], *, resume: bool
    ) -> tuple[FitResult, list[Any]]:
        """Returns how it went, and the normalizations that followed the batches."""
        config, freezing = self.config, Freezing(self.network, self.config)
        objective = Objective(
            config.label_smoothing,
            self._class_weights(),
            Mixer(config.mix, len(self.spec.labels)) if config.mix != "none" else None,
            self._penalty(self.network.parameters(), self.network.backbone.parameters()),
            self.teacher,
        )
        if config.lr == "auto":
            in_eval = list(freezing.begin_epoch(config.epochs - 1))
            config = self._with_rate(
                trained,
                lambda rate: parameter_groups(self.network, dataclasses.replace(self.config, lr=rate)),
                objective,
                loaders,
                in_eval,
            )
        drift = DriftWatch(self.network)
        settings = Settings(
            "tune",
            config.epochs,
            objective,
            self._descent(clipped=True),
            config.ema,
            config.precision,
            config.seed,
            config.patience,
            self.folder.last if self.folder is not None else None,
            resume,
            config.strategy == "lp-ft",
            freezing.begin_epoch,
            lambda network: drift.row(network.network if isinstance(network, UpperPart) else network),
        )
        with compiled(trained) if config.compile else nullcontext():
            result = fit(
                trained,
                parameter_groups(self.network, config),
                loaders.train,
                loaders.evaluate,
                settings,
                ranks=self.ranks,
                shared=loaders.shared,
                on_row=lambda rows: self._write(before + rows),
                on_progress=self.reporter.progress,
            )
        freezing.begin_epoch(max(0, result.kept_epoch - 1))  # as it was when these weights were made, also if resumed
        return result, freezing.following()

    def _class_weights(self) -> Tensor | None:
        weights = self.balance.class_weights
        return None if weights is None else torch.from_numpy(weights).float()

    def _penalty(self, free: Iterable[nn.Parameter], bound: Iterable[nn.Parameter] = ()) -> Penalty | None:
        config = self.config
        if not (config.l1 or config.l2 or config.l2_sp):
            return None
        return Penalty(free, bound, l1=config.l1, l2=config.l2, l2_sp=config.l2_sp)

    def _descent(self, *, clipped: bool) -> Descent:
        config = self.config
        largest = (config.max_gradient_norm or None) if clipped else None
        return Descent(config.optimizer, config.momentum, config.schedule, config.warmup, largest)

    def _write(self, rows: list[Row]) -> None:
        """Keeps and tells the history; a resumed run that repeats its probe does not shorten what is kept."""
        if self.folder is not None and self.ranks.first and len(rows) >= len(self.folder.read_history()):
            self.folder.write_history(rows)
        if self.log is not None:
            self.log.tell(rows)
