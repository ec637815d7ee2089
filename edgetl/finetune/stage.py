"""The fine-tuning stage: data and settings in, a checkpoint out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import torch

from edgetl.artifacts import Checkpoint, sha256_of
from edgetl.backbones import Network, Pretrained, WeightsReport, load_pretrained, new_network, save_network
from edgetl.dataset import Dataset, Item, calibration_sample
from edgetl.errors import DatasetError, Interrupted
from edgetl.finetune.config import FinetuneConfig, parse_strategy
from edgetl.finetune.data import FeatureRows, evaluation_loader, shuffled_loader, statistics_loader, training_loader
from edgetl.finetune.features import compute_features
from edgetl.finetune.fit import Row, Settings, evaluate_logits, fit
from edgetl.finetune.run_folder import RunFolder, open_run
from edgetl.finetune.settle import reestimate_statistics
from edgetl.finetune.signals import signals_interrupt
from edgetl.finetune.strategies import freeze, parameter_groups, split_normalizations
from edgetl.metrics import classification_report

__all__ = ["Reporter", "finetune", "open_run"]

_PROBE_EPOCHS_PER_EPOCH = 5
_SELECT_SALT = 0x5E1EC7
_STATISTICS_PICTURES = 2048
# Frozen BatchNorm bounds gradients no longer: SGD at 0.003 diverged without this. A probe has none, and needs none.
_LARGEST_GRADIENT = 1.0


class Reporter(Protocol):
    """Whoever shows what is going on."""

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Is called often."""

    def weights(self, report: WeightsReport) -> None:
        """Is called with what a file of weights gave."""


def finetune(
    dataset: Dataset,
    config: FinetuneConfig,
    out: Path,
    *,
    reporter: Reporter,
    resume: bool = False,
    force: bool = False,
) -> Checkpoint:
    """Fine-tunes a pretrained backbone and writes a run folder.

    Args:
        dataset: With the splits ``train`` and ``val``.
        config: Settings.
        out: The run's folder.
        reporter: See there.
        resume: Go on with the interrupted run in ``out``; the result is the same as without interruption.
        force: Replace what is in ``out``.

    Returns:
        The checkpoint; the network has been scored on ``val``.

    Raises:
        EdgetlError: Settings, weights or pictures cannot be used; nothing is left behind then.
        Interrupted: Stopped by a signal; the run can be resumed.
    """
    folder = RunFolder(out)
    folder.check_free(resume=resume, force=force)
    train, select = _selection(dataset.split("train"), config.select_fraction)
    overrides = {"size": config.size, "mean": config.mean, "std": config.std}
    torch.manual_seed(config.seed)
    reporter.progress("loading weights", 0, 1)  # perhaps a download
    pretrained = load_pretrained(config.backbone, config.weights, **overrides)
    reporter.progress("loading weights", 1, 1)
    if pretrained.report is not None:
        reporter.weights(pretrained.report)
    network, spec = new_network(pretrained, dataset.classes, head=config.head, dropout=config.dropout)
    freeze(network, config.strategy)
    folder.begin(config, dataset, resume=resume, force=force)
    try:
        with signals_interrupt():
            _write_source(pretrained, folder)
            job = _Job(network, spec, config, train, select, dataset.split("val"), folder, reporter)
            rows, kept = job.run(resume=resume)
            return _finish(job, dataset, rows, kept)
    except Interrupted as stop:
        if not folder.last.exists():
            folder.discard()
            raise Interrupted(f"{stop}: nothing was worth keeping yet") from None
        raise Interrupted(f"{stop}; go on with the same command and --resume (in {out})") from None
    except BaseException:
        if not folder.last.exists():
            folder.discard()
        raise


def _selection(train: tuple[Item, ...], fraction: float) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Cuts pictures from train, every class alike, on which the best epoch is chosen."""
    if not fraction:
        return train, ()
    chosen: list[Item] = []
    for label in sorted({item.label for item in train}):
        members = sorted((i for i in train if i.label == label), key=lambda i: int(i.sha256[:16], 16) ^ _SELECT_SALT)
        chosen += members[: round(len(members) * fraction)]
    if not chosen:
        raise DatasetError(f"--select-fraction {fraction} of so few pictures is none; give more pictures or 0")
    ids = {id(item) for item in chosen}
    return tuple(item for item in train if id(item) not in ids), tuple(chosen)


def _write_source(pretrained: Pretrained, folder: RunFolder) -> None:
    if pretrained.source is not None and pretrained.source_spec is not None:
        save_network(pretrained.source, pretrained.source_spec, folder.source)


@dataclasses.dataclass
class _Job:
    """Everything the strategies share."""

    network: Network
    spec: Any
    config: FinetuneConfig
    train: tuple[Item, ...]
    select: tuple[Item, ...]
    val: tuple[Item, ...]
    folder: RunFolder
    reporter: Reporter

    def run(self, *, resume: bool) -> tuple[list[Row], int]:
        """Returns the history and the number of the row whose weights were kept."""
        kind, _ = parse_strategy(self.config.strategy)
        going_on = resume and self.folder.last.exists()
        probed: list[Row] = []
        kept = 0
        if kind in ("probe", "lp-ft"):  # seconds, and the same each time: a resumed run repeats it
            probed, kept = self._probe(self.config.epochs * _PROBE_EPOCHS_PER_EPOCH)
        if kind == "probe":
            return probed, kept
        result = self._tune(probed, resume=going_on)
        return probed + result[0], len(probed) + result[1]

    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _probe(self, epochs: int) -> tuple[list[Row], int]:
        """Trains the head alone, on features that are computed once."""
        parts = {"train": self.train, "val": self.val, "select": self.select}
        tensors = {name: self._features(name, items) for name, items in parts.items() if items}
        batch = self.config.batch_size
        evaluate = {
            name: torch.utils.data.DataLoader(
                data, batch_size=1024, generator=torch.Generator().manual_seed(self.config.seed)
            )
            for name, data in tensors.items()
            if name != "train"
        }
        # From zero a linear probe is convex and free of the seed; measured 1 point better than from noise.
        torch.nn.init.zeros_(self.network.head.classifier.weight)
        torch.nn.init.zeros_(self.network.head.classifier.bias)
        head = torch.nn.Sequential(self.network.head.hidden, self.network.head.dropout, self.network.head.classifier)
        rate = self.config.peak_lr * _PROBE_RATE
        result = fit(
            head,
            [{"params": list(head.parameters()), "lr": rate, "weight_decay": self.config.weight_decay}],
            [],
            shuffled_loader(tensors["train"], len(self.train), batch_size=batch, seed=self.config.seed),
            evaluate,
            self._settings("probe", epochs, None, resume=False),
            on_row=lambda rows: self.folder.write_history(rows) if len(rows) % 10 == 0 else None,
            on_progress=self.reporter.progress,
        )
        self.folder.write_history(result.rows)
        return result.rows, result.kept_epoch

    def _features(self, name: str, items: tuple[Item, ...]) -> FeatureRows:
        features = compute_features(
            self.network,
            items,
            self.spec.preprocess,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
            device=self._device(),
            on_progress=lambda done, total: self.reporter.progress(f"features of {name}", done, total),
        )
        return FeatureRows(torch.from_numpy(features), torch.tensor([item.label for item in items]))

    def _tune(self, before: list[Row], *, resume: bool) -> tuple[list[Row], int]:
        """Trains on pictures."""
        loaders = self._picture_loaders()
        self.network.to(memory_format=torch.channels_last)
        kept, following = split_normalizations(self.network, self.config.batchnorm)
        result = fit(
            self.network,
            parameter_groups(self.network, self.config),
            kept,
            loaders.pop("train"),
            loaders,
            self._settings("tune", self.config.epochs, self.folder.last, resume=resume),
            on_row=lambda rows: self.folder.write_history(before + rows),
            on_progress=self.reporter.progress,
        )
        seen = calibration_sample(self.train, _STATISTICS_PICTURES)
        if following and len(seen) > 1:  # one picture alone has no variance
            reestimate_statistics(
                self.network.to(self._device()),
                following,
                statistics_loader(seen, self.spec.preprocess, workers=self.config.workers),
                lambda done, total: self.reporter.progress("statistics", done, total),
            )
        self.network.to(memory_format=torch.contiguous_format)
        return result.rows, result.kept_epoch

    def _picture_loaders(self) -> dict[str, Any]:
        config = self.config
        loaders: dict[str, Any] = {
            "train": training_loader(
                self.train,
                self.spec.preprocess,
                augment=config.augment,
                batch_size=config.batch_size,
                seed=config.seed,
                workers=config.workers,
            )
        }
        for name, items in (("val", self.val), ("select", self.select)):
            if items:
                loaders[name] = self.evaluation_loader(items)
        return loaders

    def evaluation_loader(self, items: tuple[Item, ...]) -> Any:
        """Returns the items as a device sees them."""
        return evaluation_loader(
            items, self.spec.preprocess, batch_size=self.config.batch_size, workers=self.config.workers
        )

    def _settings(self, stage: str, epochs: int, last: Path | None, *, resume: bool) -> Settings:
        config, probe = self.config, stage == "probe"
        return Settings(
            stage,
            epochs,
            config.optimizer,
            config.label_smoothing,
            config.warmup,
            config.seed,
            largest_gradient=None if probe else _LARGEST_GRADIENT,
            patience=config.patience * (_PROBE_EPOCHS_PER_EPOCH if probe else 1),
            last=last,
            resume=resume,
        )


# The head alone bears, and needs, a higher rate than a network that must not forget.
_PROBE_RATE = 6.0


def _finish(job: _Job, dataset: Dataset, rows: list[Row], kept: int) -> Checkpoint:
    """Scores the network on ``val`` as a device would see it, and completes the folder."""
    network = job.network.to(job._device())
    logits, labels = evaluate_logits(
        network,
        job.evaluation_loader(job.val),
        lambda done, total: job.reporter.progress("scoring on val", done, total),
    )
    save_network(network, job.spec, job.folder.checkpoint)
    report = classification_report(logits, labels, dataset.classes)
    job.folder.write_history([*rows, {"stage": "final", "epoch": rows[kept - 1]["epoch"], "val_top1": report["top1"]}])
    job.folder.write_spec(job.spec)
    sha256 = sha256_of(job.folder.checkpoint)
    metrics = {
        "format_version": 1,
        "checkpoint_sha256": sha256,
        "dataset": {"source": dataset.root, "digest": dataset.digest, "audit": dataset.audit.to_dict()},
        "strategy": job.config.strategy,
        "kept_row": kept,
        "val": report,
    }
    job.folder.finish(metrics)
    return Checkpoint(job.folder.root, job.folder.checkpoint, job.spec, sha256, dataset.digest)
