"""The export stage: a trained network in, a bundle with its proof out, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import edgetl
from edgetl import host
from edgetl.artifacts import OnnxModel, new_folder, write_json
from edgetl.backbones import load_network
from edgetl.bench import Side, answers, label_indices, measure_latency, paired_ratio, scores
from edgetl.bundle import Bundle, Variant, check_free, open_bundle, write_manifest
from edgetl.dataset import Dataset, Item, calibration_sample
from edgetl.errors import ExportError, GateError, InputError
from edgetl.export.foreign import onnx_from_foreign
from edgetl.export.onnx import check_agreement, onnx_from_module
from edgetl.finetune import open_run
from edgetl.metrics import classification_report, sqnr_db
from edgetl.preprocess import preprocess
from edgetl.quantize import TARGETS, QuantizeConfig, calibrate, write_fp16, write_int8
from edgetl.spec import ModelSpec

__all__ = [
    "ExportConfig",
    "Reporter",
    "check_original",
    "export_onnx_file",
    "export_original",
    "export_run",
    "original_name",
]

_BATCH = 8
_COMPARED = 8
_LARGEST_MATRIX = 64


class Reporter(Protocol):
    """Whoever shows what is going on."""

    def progress(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Is called often."""

    def variants(self, variants: Sequence[Variant]) -> None:
        """Is called with the measured variants, before the gate."""


@dataclass(frozen=True)
class ExportConfig:
    """What is exported, and how much worse it may be.

    Attributes:
        int8: Whether the three INT8 forms are made.
        fp16: Whether the FP16 form is made.
        quantize: Settings of the calibration.
        max_drop: Largest loss of top-1 accuracy of a variant against FP32, a fraction.
        seconds: Of latency measuring in each of 3 processes.
    """

    int8: bool = False
    fp16: bool = True
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    max_drop: float = 0.01
    seconds: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise InputError(f"--max-drop is {self.max_drop}: it must be between 0pt and 100pt")


def export_run(
    run: Path, dataset: Dataset, config: ExportConfig, out: Path, *, reporter: Reporter, force: bool = False
) -> Bundle:
    """Exports a fine-tuned network.

    Args:
        run: Folder of `edgetl.finetune`.
        dataset: The very pictures it was trained and judged on: INT8 is calibrated on ``train`` and judged on ``val``.
        config: Settings.
        out: Bundle to write.
        reporter: See there.
        force: Replace an existing bundle.

    Raises:
        ExportError: The data is not the run's, or the graph disagrees with torch.
        GateError: A variant loses more than allowed, or overflows; nothing is written.
    """
    check_free(out, force=force)
    checkpoint, _ = open_run(run)
    if dataset.digest != checkpoint.dataset_digest:
        raise ExportError(
            f"{dataset.root}: is not the data that {run} was trained on (pictures, labels or split differ); "
            "calibration could meet pictures it is judged on; give the same --data, or train again"
        )
    network, spec = load_network(checkpoint.path)
    origin = {"kind": "run", "checkpoint_sha256": checkpoint.sha256}
    with new_folder(out, force=force) as folder:
        job = _Job(folder, spec, dataset, config, reporter)
        graph = job.from_module(network, checkpoint.sha256)
        job.finish(graph, origin)
    return open_bundle(out)


def export_original(
    run: Path, dataset: Dataset, config: ExportConfig, out: Path, *, reporter: Reporter, force: bool = False
) -> Bundle:
    """Exports the pretrained network that a run began with, its own head and labels in place.

    It is there to be compared with, so a loss of accuracy is stated and no error. It is judged on the data where
    the data's classes are among its labels; what a linear probe on its frozen features reaches is stated beside.

    Raises:
        ExportError: The run's weights brought no head of their own.
    """
    check_original(run, out, force=force)
    network, spec = load_network(run / "source.safetensors")
    with new_folder(out, force=force) as folder:
        job = _Job(folder, spec, dataset, config, reporter, gated=False)
        graph = job.from_module(network, "")
        job.finish(graph, {"kind": "original"}, extra={"probe_top1": _probe(graph, dataset, reporter)})
    return open_bundle(out)


def check_original(run: Path, out: Path, *, force: bool = False) -> None:
    """Says early what `export_original` would refuse.

    Raises:
        ExportError: The run's weights brought no head of their own.
        InputError: Something is in the way.
    """
    check_free(out, force=force)
    if not (run / "source.safetensors").exists():
        raise ExportError(
            f"{run}: its weights had no head of their own, so there is no original to export; leave out --with-original"
        )


def export_onnx_file(
    source: Path,
    spec: ModelSpec,
    dataset: Dataset,
    config: ExportConfig,
    out: Path,
    *,
    reporter: Reporter,
    force: bool = False,
) -> Bundle:
    """Exports a user's own ONNX classifier.

    Raises:
        ExportError: The file does not fit the spec, or the data's classes are not among its labels.
    """
    check_free(out, force=force)
    missing = [name for name in dataset.classes if name not in spec.labels]
    if missing:
        raise ExportError(
            f'{dataset.root}: class "{missing[0]}" is not among the spec\'s labels ({", ".join(spec.labels[:5])} ...); '
            "rename the folder or mend the labels"
        )
    with new_folder(out, force=force) as folder:
        graph = onnx_from_foreign(source, spec, folder / "model.fp32.onnx")
        _Job(folder, spec, dataset, config, reporter).finish(graph, {"kind": "onnx", "onnx_sha256": graph.parent})
    return open_bundle(out)


def original_name(out: Path) -> Path:
    """Returns where ``--with-original`` writes: ``parts.edgetl`` gives ``parts.original.edgetl``."""
    stem = out.name.removesuffix(".edgetl")
    return out.with_name(f"{stem}.original.edgetl")


@dataclass(frozen=True)
class _Job:
    """One bundle in the making."""

    folder: Path
    spec: ModelSpec
    dataset: Dataset
    config: ExportConfig
    reporter: Reporter
    gated: bool = True

    def from_module(self, network: Any, parent: str) -> OnnxModel:
        """Writes the FP32 graph and proves that it answers as torch does."""
        self.reporter.progress("export to ONNX", 0, 1)
        graph = onnx_from_module(network, self.spec, self.folder / "model.fp32.onnx", parent=parent)
        val = self._val()[:_COMPARED]
        check_agreement(network, self.spec, graph, np.stack([preprocess(i.path, self.spec.preprocess) for i in val]))
        self.reporter.progress("export to ONNX", 1, 1)
        return graph

    def finish(self, graph: OnnxModel, origin: dict[str, Any], extra: dict[str, Any] | None = None) -> None:
        """Adds the other precisions, judges all of them, and completes the folder or raises."""
        models = [("fp32", graph)]
        if self.config.fp16:
            models.append(("fp16", write_fp16(graph, self.folder / "model.fp16.onnx")))
        if self.config.int8:
            models += self._int8(graph)
        variants, proof = self._judge(models)
        self.reporter.variants(variants)
        self._gate(variants)
        opened, quantize = self.dataset.source, self.config.quantize
        provenance = {
            "edgetl": edgetl.__version__,
            "source": origin,
            "dataset_digest": self.dataset.digest,
            "val_fraction": opened.val_fraction,
            "allow_leakage": opened.allow_leakage,
            "max_drop": self.config.max_drop,
            "int8": {"method": quantize.method, "keep_fp16": list(quantize.keep_fp16)} if self.config.int8 else None,
            "calibration_pictures": len(self._calibration()) if self.config.int8 else 0,
            "versions": host.versions(),
        }
        write_manifest(self.folder, self.spec, variants, provenance=provenance, proof={**proof, **(extra or {})})

    def _val(self) -> tuple[Item, ...]:
        return self.dataset.split("val")

    def _calibration(self) -> tuple[Item, ...]:
        """Pictures of the training split that are not in any other, whatever the data set allows."""
        judged = {item.sha256 for item in self.dataset.items if item.split != "train"}
        free = [item for item in self.dataset.split("train") if item.sha256 not in judged]
        return calibration_sample(free, self.config.quantize.calib_images)

    def _int8(self, graph: OnnxModel) -> list[tuple[str, OnnxModel]]:
        items = self._calibration()
        calibration = calibrate(
            graph,
            _batches(items, self.spec),
            self.config.quantize,
            on_progress=lambda done: self.reporter.progress("calibration", done, len(items)),
        )
        pictures = hashlib.sha256("".join(item.sha256 for item in items).encode()).hexdigest()
        made_with = {"pictures_sha256": pictures, "preprocess": self.spec.preprocess.to_dict()}
        write_json(self.folder / "calibration.json", {**calibration.to_dict(), **made_with})
        keep = self.config.quantize.keep_fp16
        models = []
        for name in (target.name for target in TARGETS):
            path = self.folder / f"model.int8-{name}.onnx"
            models.append((f"int8-{name}", write_int8(graph, calibration, name, path, keep_fp16=keep)))
        return models

    def _judge(self, models: Sequence[tuple[str, OnnxModel]]) -> tuple[list[Variant], dict[str, Any]]:
        """Scores every variant on ``val`` and times those that this machine runs."""
        plain = [_variant(name, model) for name, model in models]
        write_manifest(self.folder, self.spec, plain, provenance={}, proof={})
        bundle = open_bundle(self.folder)
        val = self._val()
        found = answers(
            bundle, plain, val, on_progress=lambda done, total: self.reporter.progress("accuracy", done, total)
        )
        labels = label_indices(bundle, self.dataset, val)
        ratio = self._latency_ratio(plain)
        variants = []
        for variant, logits in zip(plain, found, strict=True):
            metrics: dict[str, float | None] = dict(scores(logits, labels, found[0]))
            best = scores(found[0], labels, None)["top1"]
            metrics["top1_drop"] = None if best is None or metrics["top1"] is None else best - metrics["top1"]
            metrics["sqnr_db"] = sqnr_db(logits, found[0])
            metrics["latency_ratio"] = ratio.get(variant.name)
            if self.gated and not np.isfinite(logits).all():
                raise GateError(
                    f"{variant.name} answers with NaN or infinity, {_overflows(variant)}; nothing was written"
                )
            variants.append(_recommended(variant, metrics, self.config.max_drop))
        proof: dict[str, Any] = {
            "dataset_digest": self.dataset.digest,
            "val_pictures": len(val),
            "cpu": host.cpu_name(),
            "int8_dot": host.has_int8_dot(),
        }
        if labels is None:
            proof["fp32"] = None
            proof["reason"] = "the data's classes are not among this model's labels"
        else:
            proof["fp32"] = classification_report(found[0], labels, self.spec.labels)
            if len(self.spec.labels) > _LARGEST_MATRIX:  # every load reads the manifest
                del proof["fp32"]["confusion_matrix"]
        return variants, proof

    def _latency_ratio(self, variants: Sequence[Variant]) -> dict[str, float | None]:
        native = f"int8-{host.arch()}"
        if native not in {v.name for v in variants}:
            return {"fp32": 1.0}
        timed = measure_latency(
            [Side(self.folder, "fp32"), Side(self.folder, native)],
            seconds=self.config.seconds,
            on_progress=lambda done, total: self.reporter.progress("latency", done, total),
        )
        samples = {"format_version": 1, "cpu": host.cpu_name(), "samples_ns": {"fp32": timed[0], native: timed[1]}}
        write_json(self.folder / "latency.json", samples)
        return {"fp32": 1.0, native: paired_ratio(timed[1], timed[0])}

    def _gate(self, variants: Sequence[Variant]) -> None:
        for variant in variants if self.gated else ():
            drop = variant.metrics["top1_drop"]
            if drop is not None and _is_too_much(drop, self.config.max_drop):
                remedy = "leave it out by --no-fp16"
                if variant.precision == "int8":
                    remedy = "try another --method, more --calib-images, --keep-fp16 for sensitive layers"
                raise GateError(
                    f"{variant.name} loses {drop * 100:.2f} points of top-1 on {len(self._val())} pictures, "
                    f"allowed are {self.config.max_drop * 100:g}; nothing was written: {remedy}, or allow more by "
                    "--max-drop"
                )


def _is_too_much(drop: float, max_drop: float) -> bool:
    return drop > max_drop + 1e-9  # both are fractions of few pictures: rounding decides nothing


def _overflows(variant: Variant) -> str:
    if variant.precision == "fp16":
        return "its values leave the range of FP16: leave it out by --no-fp16"
    return "train again at a lower rate" if variant.precision == "fp32" else "calibrate by another --method"


def _variant(name: str, model: OnnxModel) -> Variant:
    return Variant(name, model.precision, model.target, model.path.name, model.sha256, model.path.stat().st_size)


def _recommended(variant: Variant, metrics: dict[str, float | None], max_drop: float) -> Variant:
    drop, ratio = metrics["top1_drop"], metrics["latency_ratio"]
    recommended: bool | None = None
    if variant.name == "fp32":
        recommended, reason = True, "the reference"
    elif drop is None:
        recommended, reason = False, "its accuracy could not be measured on this data"
    elif _is_too_much(drop, max_drop):
        recommended, reason = False, f"loses {drop * 100:.2f} points of top-1"
    elif ratio is not None:
        recommended = ratio < 1.0
        reason = f"{ratio:.2f}x the latency of fp32 on {host.cpu_name()}"
    else:
        where = "a GPU" if variant.precision == "fp16" else variant.target
        reason = f"latency not measured: made for {where}"
    return Variant(**{**variant.to_dict(), "recommended": recommended, "reason": reason, "metrics": metrics})


def _batches(items: Sequence[Item], spec: ModelSpec) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(items), _BATCH):
        yield np.stack([preprocess(item.path, spec.preprocess) for item in items[start : start + _BATCH]])


def _probe(graph: OnnxModel, dataset: Dataset, reporter: Reporter) -> float:
    """Returns the top-1 accuracy on ``val`` of a logistic regression on the graph's embedding of ``train``."""
    from sklearn.linear_model import LogisticRegression

    from edgetl.runtime.ort import OrtSession

    parts = {}
    with OrtSession(graph.path, graph.spec) as session:
        for split in ("train", "val"):
            items = dataset.split(split)
            rows = []
            for batch in _batches(items, graph.spec):
                rows.append(session.infer(batch)["embedding"])
                reporter.progress(f"probe of the original: {split}", sum(map(len, rows)), len(items))
            parts[split] = np.concatenate(rows), np.array([item.label for item in items])
    scale = float(parts["train"][0].std()) or 1.0
    model = LogisticRegression(C=0.1, max_iter=1000)
    model.fit(parts["train"][0] / scale, parts["train"][1])
    return float(model.score(parts["val"][0] / scale, parts["val"][1]))
