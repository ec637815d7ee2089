"""The selection stage: pictures and candidates in, a ranking out; nothing is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.backbones import load_pretrained, new_network
from edgetl.bench import BenchConfig, Contender, Result, bench, latency_ms
from edgetl.bundle import Variant, write_manifest
from edgetl.dataset import Dataset, Item, calibration_sample, input_batches
from edgetl.errors import DatasetError, EdgetlError, InputError
from edgetl.export import onnx_from_module
from edgetl.finetune import FinetuneConfig, compute_features, fit_ridge
from edgetl.quantize import TARGETS, Calibrator, QuantizeConfig, write_int8
from edgetl.selection.candidates import Candidate
from edgetl.selection.logme import logme
from edgetl.spec import ModelSpec

__all__ = ["Measured", "Ranking", "Reporter", "select", "write_timed_bundle"]

_CALIBRATION_PICTURES = 16  # of latency alone: the values do not matter
_MOST_PICTURES = 5000
_BATCH = 16

OnBoard = Callable[[Sequence[Contender], BenchConfig], Result]


class Reporter(Protocol):
    """Whoever shows what is going on."""

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Is called often."""

    def note(self, text: str) -> None:
        """Is called with a line that the user should read."""


@dataclass(frozen=True)
class Measured:
    """What is known of a candidate.

    Attributes:
        candidate: Which.
        probe_top1: Of a ridge probe on its features, each training picture judged by a probe that did not see it.
        logme: See `logme`.
        latency_ms: Median in INT8, one picture at a time.
        variant: What was timed, or empty where nothing of it runs.
        parameters: Of the backbone.
    """

    candidate: Candidate
    probe_top1: float
    logme: float
    latency_ms: float | None
    variant: str
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        c = self.candidate
        return {
            "name": c.name,
            "backbone": c.backbone,
            "weights": c.weights,
            "size": None if c.size is None else list(c.size),
            "probe_top1": self.probe_top1,
            "logme": self.logme,
            "latency_ms": self.latency_ms,
            "variant": self.variant,
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Ranking:
    """Candidates, the most promising first.

    Attributes:
        rows: Sorted by ``probe_top1``, then LogME.
        budget_ms: Latency that must not be exceeded, or None.
        left_out: (name, reason) of those that could not be had.
    """

    rows: tuple[Measured, ...]
    budget_ms: float | None
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def front(self) -> tuple[Measured, ...]:
        """Those that no other beats in both latency and probe, the fastest first."""
        found: list[Measured] = []
        timed = [row for row in self.rows if row.latency_ms is not None]
        for row in sorted(timed, key=lambda row: (row.latency_ms or 0.0, -row.probe_top1)):
            if not found or row.probe_top1 > found[-1].probe_top1:
                found.append(row)
        return tuple(found)

    @property
    def choice(self) -> Measured | None:
        """The most promising within the budget; None where none is."""
        within = [r for r in self.rows if self.budget_ms is None or (r.latency_ms or np.inf) <= self.budget_ms]
        return within[0] if within else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "candidates": [row.to_dict() for row in self.rows],
            "front": [row.candidate.name for row in self.front],
            "latency_budget_ms": self.budget_ms,
            "choice": None if self.choice is None else self.choice.candidate.name,
            "left_out": [{"name": name, "reason": reason} for name, reason in self.left_out],
        }


def select(
    dataset: Dataset,
    candidates: Sequence[Candidate],
    *,
    reporter: Reporter,
    budget_ms: float | None = None,
    seconds: float = 1.0,
    measure: OnBoard | None = None,
) -> Ranking:
    """Ranks backbones by what their features are worth on the training pictures, and times them in INT8.

    Args:
        dataset: Its training split is looked at, no other.
        candidates: At least one.
        reporter: See there.
        budget_ms: Latency that must not be exceeded, or None.
        seconds: Of timing in each of 3 processes.
        measure: Times bundles elsewhere; None does it here.

    Raises:
        InputError: None of the candidates can be had; the last one's reason is quoted.
        DatasetError: There are no pictures to learn from.
    """
    items = calibration_sample(dataset.split("train"), _MOST_PICTURES)
    if not items:
        raise DatasetError(f"{dataset.root}: has no training pictures")
    found: list[tuple[Candidate, float, float, int]] = []
    left_out: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="edgetl-select-") as folder:
        contenders: list[Contender] = []
        for number, candidate in enumerate(candidates):
            reporter.progress(f"{candidate.name}", number, len(candidates))
            root = Path(folder) / f"c{number}.edgetl"
            try:
                scores = _look(candidate, dataset, items, root, reporter)
            except EdgetlError as error:
                left_out.append((candidate.name, str(error)))
                reporter.note(f"{candidate.name}: left out: {error}")
                continue
            found.append((candidate, *scores))
            contenders.append(Contender(root.name, root, None))
        if not found:
            raise InputError(f"none of the candidates can be used; {left_out[-1][0]}: {left_out[-1][1]}")
        config = BenchConfig(variants=tuple(f"int8-{target.name}" for target in TARGETS), seconds=seconds)
        result = (
            bench(contenders, config, on_progress=reporter.progress) if measure is None else measure(contenders, config)
        )
    rows = [
        Measured(candidate, probe, evidence, *_fastest(result, contender.name), parameters)
        for (candidate, probe, evidence, parameters), contender in zip(found, contenders, strict=True)
    ]
    rows.sort(key=lambda row: (-row.probe_top1, -row.logme))
    return Ranking(tuple(rows), budget_ms, tuple(left_out))


def _look(
    candidate: Candidate, dataset: Dataset, items: Sequence[Item], root: Path, reporter: Reporter
) -> tuple[float, float, int]:
    """Returns (probe, LogME, parameters) of a candidate, and writes a bundle of it to be timed."""
    pretrained = load_pretrained(
        candidate.backbone,
        candidate.weights,
        size=candidate.size,
        mean=candidate.mean,
        std=candidate.std,
        decode=FinetuneConfig.decode,  # what the next command looks at
    )
    torch.manual_seed(0)
    network, spec = new_network(pretrained, dataset.classes)
    features = compute_features(
        network,
        items,
        spec.preprocess,
        batch_size=_BATCH,
        workers=0,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        on_progress=lambda done, total: reporter.progress(f"{candidate.name}: features", done, total),
    )
    labels = np.array([item.label for item in items])
    left_out = fit_ridge(features, labels, len(dataset.classes)).left_out
    probe = float((left_out.argmax(1) == labels).mean())
    evidence = logme(features, labels, len(dataset.classes))
    sample = calibration_sample(items, _CALIBRATION_PICTURES)
    write_timed_bundle(network, spec, input_batches(sample, spec.preprocess), root)
    return probe, evidence, sum(p.numel() for p in network.backbone.parameters())


def write_timed_bundle(network: nn.Module, spec: ModelSpec, batches: Iterable[NDArray[np.uint8]], root: Path) -> None:
    """Writes a bundle that is good for timing alone: FP32 and every INT8 form, calibrated in one quick pass.

    Args:
        network: Of any weights.
        spec: Of it.
        batches: uint8 (N, H, W, C), a few.
        root: Folder to make.
    """
    root.mkdir()
    model = onnx_from_module(network.cpu().eval(), spec, root / "model.fp32.onnx")
    variants = [Variant("fp32", "fp32", "any", model.path.name, model.sha256, model.path.stat().st_size, None, "")]
    with Calibrator(model, batches, QuantizeConfig(method="max", repair=False, mixed=False)) as calibrator:
        calibration = calibrator.calibrate()
    for target in TARGETS:
        made = write_int8(model, calibration, target.name, root / f"model.int8-{target.name}.onnx")
        size = made.path.stat().st_size
        variants.append(
            Variant(f"int8-{target.name}", "int8", target.name, made.path.name, made.sha256, size, None, "to be timed")
        )
    write_manifest(root, spec, variants, provenance={"source": {"kind": "candidate"}}, proof={})


def _fastest(result: Result, bundle: str) -> tuple[float | None, str]:
    """Returns the lowest median of a bundle's variants, and which one has it."""
    timed = [
        (latency["p50"], entry.variant)
        for entry in result.entries
        if entry.bundle == bundle and (latency := latency_ms(entry.samples_ns)) is not None
    ]
    return min(timed) if timed else (None, "")
