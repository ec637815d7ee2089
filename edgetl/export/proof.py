"""The proof of an export: what every variant is worth against FP32, measured on pictures nobody trained on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl import host
from edgetl.artifacts import OnnxModel, sha256_of, write_json
from edgetl.bench import Side, answers, fidelity_report, label_indices, measure_latency, paired_ratio, scores
from edgetl.bundle import Decision, Variant, open_bundle, write_manifest
from edgetl.confidence import confidence_report, rejection_report
from edgetl.dataset import Dataset, Item, pictures_in
from edgetl.errors import GateError, InputError
from edgetl.metrics import classification_report, sqnr_db
from edgetl.quantize import save_onnx
from edgetl.spec import ModelSpec

__all__ = ["Prover", "Reporter", "is_too_much"]

_LARGEST_MATRIX = 64


class Reporter(Protocol):
    """Whoever shows what is going on."""

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Is called often."""

    def variants(self, variants: Sequence[Variant]) -> None:
        """Is called with the measured variants, before the gate."""


class Prover:
    """Judges the graphs of one folder; what was judged once is not judged again until its file changes.

    Args:
        folder: That holds the graphs.
        spec: Of the model.
        dataset: Its ``val`` is what is judged on.
        max_drop: Largest loss of top-1 accuracy against FP32, a fraction.
        seconds: Of latency measuring in each process.
        finite: Whether an answer of NaN or infinity is an error.
        reporter: See there.
    """

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        dataset: Dataset,
        *,
        max_drop: float,
        seconds: float,
        finite: bool,
        reporter: Reporter,
    ) -> None:
        self._folder = folder
        self._spec = spec
        self._dataset = dataset
        self._val = dataset.split("val")
        self._labels = label_indices(spec, dataset, self._val)
        self._max_drop = max_drop
        self._seconds = seconds
        self._finite = finite
        self._reporter = reporter
        self._answers: dict[str, NDArray[np.float32]] = {}
        self._fidelity: dict[str, Any] = {}
        self._timed: dict[str, float | None] = {}

    def prove(self, models: Mapping[str, OnnxModel]) -> list[Variant]:
        """Returns a variant with its metrics for each graph, ``fp32`` among them.

        Raises:
            GateError: One answers with NaN or infinity.
        """
        plain = [_variant(name, model) for name, model in models.items()]
        logits = self._logits(plain)
        reference = logits[models["fp32"].sha256]
        ratio = self._latency_ratio(plain)
        return [self._judged(variant, logits[variant.sha256], reference, ratio.get(variant.name)) for variant in plain]

    def _logits(self, variants: Sequence[Variant]) -> dict[str, NDArray[np.float32]]:
        new = [variant for variant in variants if variant.sha256 not in self._answers]
        write_manifest(self._folder, self._spec, variants, provenance={}, proof={})
        found = answers(
            open_bundle(self._folder),
            [(variant, "cpu") for variant in new],
            self._val,
            on_progress=lambda done, total: self._reporter.progress("accuracy", done, total),
        )
        self._answers |= {variant.sha256: logits for variant, logits in zip(new, found, strict=True)}
        return self._answers

    def _judged(
        self,
        variant: Variant,
        logits: NDArray[np.float32],
        reference: NDArray[np.float32],
        ratio: float | None,
    ) -> Variant:
        if self._finite and not np.isfinite(logits).all():
            raise GateError(f"{variant.name} answers with NaN or infinity, {_overflows(variant)}; nothing was written")
        labels = self._labels
        metrics: dict[str, float | None] = dict(scores(logits, labels, reference))
        best = scores(reference, labels, None)["top1"]
        metrics["top1_drop"] = None if best is None or metrics["top1"] is None else best - metrics["top1"]
        metrics["sqnr_db"] = sqnr_db(logits, reference)
        metrics["latency_ratio"] = ratio
        if not np.isfinite(logits).all():
            return replace(variant, recommended=False, reason="answers with NaN or infinity", metrics=metrics)
        if variant.name != "fp32":
            pictures = [str(item.path.resolve()) for item in self._val]
            self._fidelity[variant.name] = fidelity_report(logits, reference, labels, self._spec.labels, pictures)
        return _recommended(variant, metrics, self._max_drop)

    def measure(self, target: str, model: onnx.ModelProto) -> float | None:
        """Returns a candidate's latency over that of FP32, or None where this machine is not its target."""
        if target != host.arch():
            return None
        with TemporaryDirectory() as name:
            folder = Path(name)
            shutil.copy(self._folder / "model.fp32.onnx", folder)
            save_onnx(model, folder / "candidate.onnx")
            graphs = [("fp32", "any", folder / "model.fp32.onnx"), ("int8", target, folder / "candidate.onnx")]
            variants = [
                _variant(precision, OnnxModel(path, self._spec, precision, target, sha256_of(path), ""))
                for precision, target, path in graphs
            ]
            write_manifest(folder, self._spec, variants, provenance={}, proof={})
            sides = [Side(folder, variant.name) for variant in variants]
            reference, candidate = measure_latency(sides, seconds=self._seconds).samples_ns
        return paired_ratio(candidate, reference)

    def decisions(
        self, variants: Sequence[Variant], false_accept: float | None, unknown: Path | None
    ) -> tuple[dict[str, Decision], dict[str, Any]]:
        """Returns what each variant's logits are worth, and the proof of it.

        Args:
            variants: Judged before.
            false_accept: Largest share of foreign pictures that may pass as one of the classes; None rejects nothing.
            unknown: Folder of pictures of none of the classes; without it each class plays that, left out in turn.

        Raises:
            InputError: There is nothing to find a threshold with.
        """
        labels = self._labels
        if labels is None or not len(labels):
            if false_accept is not None:
                raise InputError("--false-accept needs pictures of the model's classes to judge on")
            return {}, {}
        classes = len(self._spec.labels)
        if false_accept is not None and unknown is None and classes < 3:
            raise InputError(
                f"--false-accept with {classes} classes needs pictures of none of them: give a folder by --unknown"
            )
        foreign: dict[str, NDArray[np.float32]] = {}
        if false_accept is not None and unknown is not None:
            items = [Item(path, 0, "unknown", "") for path in pictures_in(unknown)]
            found = answers(open_bundle(self._folder), [(variant, "cpu") for variant in variants], items)
            foreign = {variant.name: logits for variant, logits in zip(variants, found, strict=True)}
        decisions, reports = {}, {}
        for variant in variants:
            logits = self._answers[variant.sha256]
            if not np.isfinite(logits).all():
                continue
            report = confidence_report(logits, labels)
            limit = None
            if false_accept is not None:
                rejection = rejection_report(logits, labels, foreign.get(variant.name), false_accept)
                limit = rejection["min_log_odds"]
                report["unknown"] = {"source": "classes left out" if unknown is None else "pictures", **rejection}
            decisions[variant.name] = Decision(report["temperature"], limit)
            reports[variant.name] = report
        return decisions, reports

    @property
    def fidelity(self) -> dict[str, Any]:
        """Fidelity reports by variant, with the paths of pictures: for whoever looks, never for a bundle."""
        return dict(self._fidelity)

    def proof(self) -> dict[str, Any]:
        """Returns the manifest's proof of what was judged; it names no picture."""
        labels = self._labels
        proof: dict[str, Any] = {
            "dataset_digest": self._dataset.digest,
            "val_pictures": len(self._val),
            "cpu": host.cpu_name(),
            "int8_dot": host.has_int8_dot(),
            "fidelity": {name: _without_pictures(report) for name, report in self._fidelity.items()},
        }
        if labels is None:
            return {**proof, "fp32": None, "reason": "the data's classes are not among this model's labels"}
        reference = next(iter(self._answers.values()))
        proof["fp32"] = classification_report(reference, labels, self._spec.labels)
        if len(self._spec.labels) > _LARGEST_MATRIX:  # every load reads the manifest
            del proof["fp32"]["confusion_matrix"]
        return proof

    def _latency_ratio(self, variants: Sequence[Variant]) -> dict[str, float | None]:
        native = next((v for v in variants if v.name == f"int8-{host.arch()}"), None)
        if native is None:
            return {"fp32": 1.0}
        if native.sha256 not in self._timed:
            timed = measure_latency(
                [Side(self._folder, "fp32"), Side(self._folder, native.name)],
                seconds=self._seconds,
                on_progress=lambda done, total: self._reporter.progress("latency", done, total),
            ).samples_ns
            samples = {"fp32": timed[0], native.name: timed[1]}
            result = {"format_version": 1, "cpu": host.cpu_name(), "samples_ns": samples}
            write_json(self._folder / "latency.json", result)
            self._timed[native.sha256] = paired_ratio(timed[1], timed[0])
        return {"fp32": 1.0, native.name: self._timed[native.sha256]}


def is_too_much(drop: float, max_drop: float) -> bool:
    """Tells whether a drop is above the limit; both are fractions of few pictures, so rounding decides nothing."""
    return drop > max_drop + 1e-9


def _without_pictures(report: Mapping[str, Any]) -> dict[str, Any]:
    flips = [{name: value for name, value in flip.items() if name != "picture"} for flip in report["worst_flips"]]
    return {**report, "worst_flips": flips}


def _overflows(variant: Variant) -> str:
    if variant.precision == "fp16":
        return "its values leave the range of FP16: leave it out by --no-fp16"
    if variant.precision == "int8":
        return "calibrate by another --method, or leave INT8 out: its float layers are FP16 on TensorRT"
    return "train again at a lower rate"


def _variant(name: str, model: OnnxModel) -> Variant:
    return Variant(name, model.precision, model.target, model.path.name, model.sha256, model.path.stat().st_size)


def _recommended(variant: Variant, metrics: dict[str, float | None], max_drop: float) -> Variant:
    drop, ratio = metrics["top1_drop"], metrics["latency_ratio"]
    recommended: bool | None = None
    if variant.name == "fp32":
        recommended, reason = True, "the reference"
    elif drop is None:
        recommended, reason = False, "its accuracy could not be measured on this data"
    elif is_too_much(drop, max_drop):
        recommended, reason = False, f"loses {drop * 100:.2f} points of top-1"
    elif ratio is not None:
        recommended = ratio < 1.0
        reason = f"{ratio:.2f}x the latency of fp32 on {host.cpu_name()}"
    else:
        where = "a GPU" if variant.precision == "fp16" else variant.target
        reason = f"latency not measured: made for {where}"
    return replace(variant, recommended=recommended, reason=reason, metrics=metrics)
