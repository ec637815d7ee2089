"""The fine-tuning stage: data and settings in, a checkpoint out."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.artifacts import Checkpoint, sha256_of
from edgetl.backbones import (
    Network,
    Pretrained,
    WeightsReport,
    load_network,
    load_pretrained,
    new_network,
    reset_weights,
    save_network,
)
from edgetl.dataset import Dataset, Item, calibration_sample
from edgetl.errors import CheckpointError, DatasetError, InputError, Interrupted, PictureError
from edgetl.finetune.balance import balance_of
from edgetl.finetune.config import FinetuneConfig
from edgetl.finetune.data import in_one_line
from edgetl.finetune.fit import precision_of
from edgetl.finetune.job import Job, Outcome, Reporter
from edgetl.finetune.launch import launched
from edgetl.finetune.loggers import HistoryLog
from edgetl.finetune.objective import Teacher
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.run_folder import RunFolder, open_run
from edgetl.finetune.scratch import compare_with_scratch
from edgetl.finetune.signals import signals_interrupt
from edgetl.finetune.strategies import Freezing
from edgetl.finetune.trust import judge_robustness
from edgetl.finetune.verdict import verdict_of
from edgetl.metrics import classification_report, top1
from edgetl.spec import ModelSpec, PreprocessSpec

__all__ = ["Reporter", "finetune", "finetune_source", "open_run", "take_part"]

_SELECT_SALT = 0x5E1EC7
_JUDGED_OF_TRAIN = 512  # pictures, to tell overfitting
_CORRUPTED = 200  # pictures, each 71 times
# What changes nothing of a finished network but rounding.
_BESIDE = ("devices", "nodes", "workers", "precision", "compile", "loggers", "robustness", "compare_scratch")


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
    if config.devices * config.nodes > 1:
        take_part(dataset, config, out, reporter=reporter, resume=resume, force=force)
        return open_run(out)[0]
    folder = RunFolder(out)
    _finetune(dataset, config, folder, reporter, ALONE, resume=resume, force=force)
    return open_run(out)[0]


def take_part(
    dataset: Dataset,
    config: FinetuneConfig,
    out: Path,
    *,
    reporter: Reporter,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Starts this machine's processes of a training on several devices, and returns when it is over.

    `finetune` does so on the first machine; on others (``NODE_RANK`` above 0) there is no run to open unless ``out``
    is on a file system that they share.

    Raises:
        EdgetlError: As `finetune`.
    """
    RunFolder(out).check_free(resume=resume, force=force)
    launched(partial(_in_rank, dataset, config, out, resume, force), config, reporter)


def _in_rank(
    dataset: Dataset, config: FinetuneConfig, out: Path, resume: bool, force: bool, ranks: Ranks, reporter: Reporter
) -> None:
    _finetune(dataset, config, RunFolder(out), reporter, ranks, resume=resume, force=force)


def _finetune(
    dataset: Dataset,
    config: FinetuneConfig,
    folder: RunFolder,
    reporter: Reporter,
    ranks: Ranks,
    *,
    resume: bool,
    force: bool,
) -> None:
    """Does it all in this process, or its part of what several do."""
    if ranks.first:
        folder.check_free(resume=resume, force=force)
    job, pretrained = _prepared(dataset, config, folder, reporter, ranks=ranks)
    if ranks.first:
        folder.begin(config, dataset, resume=resume, force=force)
    ranks.wait()
    if not ranks.first:
        with in_one_line():
            job.run(resume=resume)
        return
    try:
        with signals_interrupt(), in_one_line():
            _write_source(pretrained, folder)
            if config.loggers:
                job.log = HistoryLog(config.loggers, folder, config.to_dict())
            outcome = job.run(resume=resume)
            _finish(job, dataset, outcome, folder)
    except Interrupted as stop:
        if not folder.last.exists():
            folder.discard()
            raise Interrupted(f"{stop}: nothing was worth keeping yet") from None
        raise Interrupted(f"{stop}; go on with the same command and --resume (in {folder.root})") from None
    except PictureError as error:
        if not folder.last.exists():
            folder.discard()
            raise
        raise PictureError(f"{error}; bring it back as it was, then go on with the same command and --resume") from None
    except BaseException:
        if not folder.last.exists():
            folder.discard()
        raise
    finally:
        if job.log is not None:
            job.log.close()


def finetune_source(
    dataset: Dataset, config: FinetuneConfig, out: Path, *, reporter: Reporter, force: bool = False
) -> Path:
    """Trains the network that another transfer starts from; what is there already is used, or gone on with.

    Args:
        dataset: Of the source task.
        config: Settings.
        out: The run's folder.
        reporter: See there.
        force: Replace a run that was made with other settings or pictures.

    Returns:
        The file of its weights.

    Raises:
        CheckpointError: A run is there that was made with other settings or pictures.
        EdgetlError: As `finetune`.
    """
    folder = RunFolder(out)
    if folder.config.exists() and force:
        try:
            folder.check_same(config, dataset.digest, beside=_BESIDE)
        except CheckpointError:
            return finetune(dataset, config, out, reporter=reporter, force=True).path
    if folder.metrics.exists():
        folder.check_same(config, dataset.digest, beside=_BESIDE)
        checkpoint, _ = open_run(out)
        reporter.note(f"{out}: is there already, and used")
    else:
        checkpoint = finetune(dataset, config, out, reporter=reporter, resume=folder.config.exists())
    return checkpoint.path


def _prepared(
    dataset: Dataset,
    config: FinetuneConfig,
    folder: RunFolder | None,
    reporter: Reporter,
    train: tuple[Item, ...] | None = None,
    ranks: Ranks = ALONE,
    preprocess: PreprocessSpec | None = None,
) -> tuple[Job, Pretrained]:
    """Builds the network and everything that can be refused before a folder is made.

    Args:
        dataset: With the splits ``train`` and ``val``.
        config: Settings.
        folder: Of the run, or None where nothing is kept.
        reporter: See there.
        train: Pictures to learn from instead of the data set's own.
        ranks: Processes that train together.
        preprocess: Instead of the weights' own.
    """
    precision_of(config.precision)
    train, select = _selection(dataset.split("train") if train is None else train, config.select_fraction)
    overrides = {"size": config.size, "mean": config.mean, "std": config.std, "decode": config.decode}
    torch.manual_seed(config.seed)
    reporter.progress("loading weights", 0, 1)  # perhaps a download
    pretrained = load_pretrained(config.backbone, config.weights, **overrides)
    reporter.progress("loading weights", 1, 1)
    if pretrained.report is not None:
        reporter.weights(pretrained.report)
    if preprocess is not None:
        pretrained = replace(pretrained, preprocess=preprocess)
    network, spec = new_network(pretrained, dataset.classes, head=config.head, dropout=config.dropout)
    Freezing(network, config)  # refuses more blocks than there are
    if config.compare_scratch and _is_own(config.backbone):
        _check_can_begin_anew(network, config.backbone)
    balance = balance_of([item.label for item in train], dataset.classes, config.imbalance)
    if balance.reason:
        reporter.note(balance.reason)
    teacher = _teacher(config, spec)
    val = dataset.split("val")
    job = Job(network, spec, config, train, select, val, balance, teacher, folder, reporter, ranks)
    return job, pretrained


def _check_can_begin_anew(network: Network, name: str) -> None:
    """Refuses a comparison with random weights where a user's function leaves some that no layer can begin anew."""
    with torch.random.fork_rng(devices=[]):
        left = reset_weights(copy.deepcopy(network.backbone))
    if left:
        raise InputError(
            f"--compare-scratch cannot be had of {name}: nothing says how {left[0]} begins; give its module "
            "a method reset_parameters, or leave the option out"
        )


def _is_own(backbone: str) -> bool:
    """Tells a user's function, which may bring weights whatever is asked; all others' "none" is as published."""
    return ":" in backbone


def _teacher(config: FinetuneConfig, spec: ModelSpec) -> Teacher | None:
    if config.teacher is None:
        return None
    checkpoint, _ = open_run(Path(config.teacher))
    network, theirs = load_network(checkpoint.path)
    if not isinstance(network, Network) or sorted(theirs.labels) != sorted(spec.labels):
        missing = next((label for label in spec.labels if label not in theirs.labels), "its own")
        raise InputError(
            f'{config.teacher}: knows other classes than these pictures (not "{missing}"); give a run on them'
        )
    order = [theirs.labels.index(label) for label in spec.labels]
    return Teacher(
        network,
        theirs.preprocess.size,
        order,
        weight=config.teacher_weight,
        temperature=config.teacher_temperature,
    )


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


def _finish(job: Job, dataset: Dataset, outcome: Outcome, folder: RunFolder) -> None:
    """Scores the network on ``val`` as a device would see it, and completes the folder."""
    if outcome.diverged:
        job.reporter.note(
            f"tuning diverged in epoch {outcome.diverged}: the last good weights were kept; "
            "a lower --lr is likely to do better"
        )
    logits, labels = job.answers(job.val, "scoring on val")
    save_network(job.network, job.spec, folder.checkpoint)
    report = classification_report(logits, labels, dataset.classes)
    learned = top1(*job.answers(calibration_sample(job.train, _JUDGED_OF_TRAIN), "scoring on train"))
    rows, kept = outcome.rows, outcome.kept
    verdict = verdict_of(learned, report["top1"], [r for r in rows if r["stage"] == rows[-1]["stage"]], job.config)
    job.reporter.note(verdict.text)
    right = logits.argmax(1) == labels
    folder.write_history([*rows, {"stage": "final", "epoch": rows[kept - 1]["epoch"], "val_top1": report["top1"]}])
    folder.write_spec(job.spec)
    sha256 = sha256_of(folder.checkpoint)
    metrics: dict[str, Any] = {
        "format_version": 1,
        "checkpoint_sha256": sha256,
        "dataset": {"source": dataset.root, "digest": dataset.digest, "audit": dataset.audit.to_dict()},
        "strategy": job.config.strategy,
        "kept_row": kept,
        "diverged_epoch": outcome.diverged or None,
        "imbalance": {"kind": job.balance.kind, "reason": job.balance.reason},
        "train_top1": learned,
        "verdict": verdict.to_dict(),
        "val": report,
        "robustness": _robustness(job) if job.config.robustness else None,
        "scratch": _against_scratch(job, dataset, right) if job.config.compare_scratch else None,
    }
    if job.log is not None:
        job.log.finish({name: report[name] for name in ("top1", "macro_f1", "ece")})
    folder.finish(metrics)


def _robustness(job: Job) -> dict[str, Any]:
    found = judge_robustness(
        job.network.to(job.device),
        calibration_sample(job.val, _CORRUPTED),
        job.spec.preprocess,
        batch_size=job.config.batch_size,
        on_progress=lambda done, total: job.reporter.progress("corrupted pictures", done, total),
    )
    worst = min(found["top1"], key=lambda kind: float(np.mean(found["top1"][kind])))
    job.reporter.note(
        f"corrupted pictures: top-1 {found['mean_top1']:.1%} on the mean of all kinds and strengths, "
        f"{found['clean_top1']:.1%} clean; worst is {worst}, {np.mean(found['top1'][worst]):.1%}"
    )
    return found


def _against_scratch(job: Job, dataset: Dataset, transferred: NDArray[np.bool_]) -> dict[str, Any]:
    def answers(
        config: FinetuneConfig, part: tuple[Item, ...], name: str, *, scratch: bool
    ) -> NDArray[np.bool_] | None:
        reporter = _Renamed(job.reporter, name)
        # Random weights have a preprocessing of their own, and the pictures would then not be the same.
        other, _ = _prepared(dataset, config, None, reporter, train=part, preprocess=job.spec.preprocess)
        if scratch and _is_own(config.backbone):
            reset_weights(other.network.backbone)
        try:
            other.run(resume=False)
        except InputError as error:
            job.reporter.note(f"{name}: {error}")
            return None
        logits, labels = other.answers(other.val, "scoring on val")
        return np.asarray(logits.argmax(1) == labels)

    found = compare_with_scratch(job.train, job.config, answers, transferred)
    for row in found["rows"]:
        count = "all" if row["per_class"] is None else row["per_class"]
        if row["gain"] is not None:
            low, high = row["interval"]
            job.reporter.note(
                f"{count} of each class: {row['transferred_top1']:.1%} transferred, {row['scratch_top1']:.1%} from "
                f"scratch; gain {row['gain'] * 100:+.1f} points ({low * 100:+.1f} to {high * 100:+.1f})"
            )
    return found


@dataclass(frozen=True)
class _Renamed:
    """Shows the progress of a training within another."""

    reporter: Reporter
    name: str

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        self.reporter.progress(f"{self.name}: {stage}", done, total, text)

    def note(self, text: str) -> None:
        """What is said about the run itself was said."""

    def weights(self, report: WeightsReport) -> None:
        """As above."""
