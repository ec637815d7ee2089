"""The export stage: a trained network in, a bundle with its proof out, or nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgetl
from edgetl import host
from edgetl.artifacts import OnnxModel, new_folder, write_json
from edgetl.backbones import load_network
from edgetl.bench import label_indices
from edgetl.bundle import EXEMPLARS, Bundle, Variant, check_free, open_bundle, write_manifest
from edgetl.dataset import Dataset, Item, calibration_sample, input_batches
from edgetl.errors import ExportError, GateError, InputError
from edgetl.export.foreign import onnx_from_foreign
from edgetl.export.onnx import check_agreement, onnx_from_module
from edgetl.export.proof import Prover, Reporter, is_too_much
from edgetl.finetune import open_run
from edgetl.preprocess import preprocess
from edgetl.quantize import (
    TARGETS,
    Calibration,
    Calibrator,
    Graph,
    QuantizeConfig,
    known_patterns,
    load_onnx,
    write_fp16,
    write_int8,
)
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

OnFidelity = Callable[[Mapping[str, Any]], None]

_COMPARED = 8
_MOST_EXEMPLARS = 1000


@dataclass(frozen=True)
class ExportConfig:
    """What is exported, and how much worse it may be.

    Attributes:
        int8: Whether the three INT8 forms are made.
        fp16: Whether the FP16 form is made.
        quantize: Settings of the calibration.
        max_drop: Largest loss of top-1 accuracy of a variant against FP32, a fraction.
        seconds: Of latency measuring in each of 3 processes.
        calibration: A calibration.json of the very same graph, pictures and settings, to be used again.
        false_accept: Largest share of foreign pictures that may pass as one of the classes; less sure answers then
            have no label. None rejects nothing.
        unknown: Folder of pictures of none of the classes, to find that out with; without it each class plays it in
            turn.
        exemplars: Training pictures of each class whose embeddings go into the bundle, so that a device can learn
            further classes; at most 1000 in all, 0 for none.
    """

    int8: bool = False
    fp16: bool = True
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    max_drop: float = 0.01
    seconds: float = 1.5
    calibration: Path | None = None
    false_accept: float | None = None
    unknown: Path | None = None
    exemplars: int = 30

    def __post_init__(self) -> None:
        if self.false_accept is not None and not 0 <= self.false_accept < 1:
            raise InputError(f"--false-accept is {self.false_accept}: it must be from 0% to below 100%")
        if self.unknown is not None and self.false_accept is None:
            raise InputError("--unknown needs --false-accept: how many of such pictures may pass, like 5%")
        if self.exemplars < 0:
            raise InputError(f"--exemplars is {self.exemplars}: it must be 0 or more")
        if not 0 <= self.max_drop <= 1:
            raise InputError(f"--max-drop is {self.max_drop}: it must be between 0pt and 100pt")


def export_run(
    run: Path,
    dataset: Dataset,
    config: ExportConfig,
    out: Path,
    *,
    reporter: Reporter,
    force: bool = False,
    on_fidelity: OnFidelity | None = None,
) -> Bundle:
    """Exports a fine-tuned network.

    Args:
        run: Folder of `edgetl.finetune`.
        dataset: The very pictures it was trained and judged on: INT8 is calibrated on ``train`` and judged on ``val``.
        config: Settings.
        out: Bundle to write.
        reporter: See there.
        force: Replace an existing bundle.
        on_fidelity: Called with the fidelity reports by variant: they hold the paths of pictures, a bundle does not.

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
        job = _Job(folder, spec, dataset, config, reporter, on_fidelity)
        graph = job.from_module(network, checkpoint.sha256)
        job.finish(graph, origin)
    return open_bundle(out)


def export_original(
    run: Path,
    dataset: Dataset,
    config: ExportConfig,
    out: Path,
    *,
    reporter: Reporter,
    force: bool = False,
    on_fidelity: OnFidelity | None = None,
) -> Bundle:
    """Exports the pretrained network that a run began with, its own head and labels in place.

    It is there to be compared with, so a loss of accuracy is stated and no error. It is judged on the data where
    the data's classes are among its labels; what a linear probe on its frozen features reaches is stated beside.
    It is calibrated for itself, whatever calibration.json the config names.

    Raises:
        ExportError: The run's weights brought no head of their own.
    """
    check_original(run, out, force=force)
    network, spec = load_network(run / "source.safetensors")
    with new_folder(out, force=force) as folder:
        job = _Job(
            folder,
            spec,
            dataset,
            replace(config, calibration=None, false_accept=None, unknown=None),
            reporter,
            on_fidelity,
            gated=False,
        )
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
    on_fidelity: OnFidelity | None = None,
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
        job = _Job(folder, spec, dataset, config, reporter, on_fidelity)
        job.finish(graph, {"kind": "onnx", "onnx_sha256": graph.parent})
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
    on_fidelity: OnFidelity | None
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
        prover = Prover(
            self.folder,
            self.spec,
            self.dataset,
            max_drop=self.config.max_drop,
            seconds=self.config.seconds,
            finite=self.gated,
            reporter=self.reporter,
        )
        models = {"fp32": graph}
        if self.config.fp16:
            models["fp16"] = write_fp16(graph, self.folder / "model.fp16.onnx")
        int8 = None
        if self.config.int8:
            variants, int8 = self._with_int8(models, prover)
        else:
            variants = prover.prove(models)
        self.reporter.variants(variants)
        self._gate(variants)
        if self.on_fidelity is not None:
            self.on_fidelity(prover.fidelity)
        decisions, confidence = prover.decisions(variants, self.config.false_accept, self.config.unknown)
        proof = {**prover.proof(), "confidence": confidence, **(extra or {})}
        write_manifest(
            self.folder,
            self.spec,
            variants,
            provenance=self._provenance(origin, int8),
            proof=proof,
            decisions=decisions,
            exemplars=self._write_exemplars(graph),
        )

    def _write_exemplars(self, graph: OnnxModel) -> list[int] | None:
        """Writes embeddings of some training pictures, and returns how many of each class, or None for none."""
        from edgetl.runtime.ort import OrtSession

        classes = len(self.spec.labels)
        wanted = min(self.config.exemplars * classes, max(classes, _MOST_EXEMPLARS))
        items = calibration_sample(self.dataset.split("train"), wanted, each=self.config.exemplars)
        labels = label_indices(self.spec, self.dataset, items)
        if not self.gated or labels is None or len(set(labels.tolist())) < classes:
            return None
        items = tuple(items[i] for i in np.argsort(labels, kind="stable"))
        rows: list[NDArray[np.float32]] = []
        with OrtSession(graph.path, self.spec) as session:
            for batch in input_batches(items, self.spec.preprocess):
                rows.append(session.infer(batch)["embedding"])
                self.reporter.progress("exemplars", sum(map(len, rows)), len(items))
        embeddings = np.concatenate(rows).astype(np.float16)
        if not np.isfinite(embeddings).all():
            return None
        with (self.folder / EXEMPLARS).open("wb") as file:
            np.save(file, embeddings, allow_pickle=False)
        return [int(count) for count in np.bincount(labels, minlength=classes)]

    def _provenance(self, origin: dict[str, Any], calibration: Calibration | None) -> dict[str, Any]:
        opened = self.dataset.source
        return {
            "edgetl": edgetl.__version__,
            "source": origin,
            "dataset_digest": self.dataset.digest,
            "val_fraction": opened.val_fraction,
            "allow_leakage": opened.allow_leakage,
            "max_drop": self.config.max_drop,
            "int8": None if calibration is None else self._int8_settings(calibration),
            "calibration_pictures": 0 if calibration is None else calibration.pictures,
            "versions": host.versions(),
        }

    def _int8_settings(self, calibration: Calibration) -> dict[str, Any]:
        quantize = self.config.quantize
        return {
            "method": quantize.method,
            "keep_fp16": list(quantize.keep_fp16),
            "repair": quantize.repair,
            "mixed": quantize.mixed,
            "spared": {target: list(layers) for target, layers in calibration.decisions.spared.items()},
        }

    def _val(self) -> tuple[Item, ...]:
        return self.dataset.split("val")

    def _calibration(self) -> tuple[Item, ...]:
        """Pictures of the training split that are not in any other, whatever the data set allows."""
        judged = {item.sha256 for item in self.dataset.items if item.split != "train"}
        free = [item for item in self.dataset.split("train") if item.sha256 not in judged]
        return calibration_sample(free, self.config.quantize.calib_images)

    def _with_int8(self, models: dict[str, OnnxModel], prover: Prover) -> tuple[list[Variant], Calibration]:
        """Adds the INT8 forms; one that loses too much gets more and more of its costliest layers back in float.

        Which layers those are, pictures of ``train`` have said; ``val`` only says how many.
        """
        items = self._calibration()
        quantize = replace(self.config.quantize, max_drop=self.config.max_drop)
        if not self.gated:  # the original: what the network in question keeps in float need not be there
            graph = Graph(load_onnx(models["fp32"].path))
            quantize = replace(quantize, keep_fp16=known_patterns(graph, quantize.keep_fp16))
        with Calibrator(
            models["fp32"],
            input_batches(items, self.spec.preprocess),
            quantize,
            labels=label_indices(self.spec, self.dataset, items),
            pictures_sha256=hashlib.sha256("".join(item.sha256 for item in items).encode()).hexdigest(),
            reuse=self.config.calibration,
            measure=prover.measure,
            on_progress=lambda stage, done, total: self.reporter.progress(f"INT8: {stage}", done, total),
        ) as calibrator:
            calibration = calibrator.calibrate()
            targets = [target.name for target in TARGETS]
            while True:
                for name in targets:
                    path = self.folder / f"model.int8-{name}.onnx"
                    models[f"int8-{name}"] = write_int8(models["fp32"], calibration, name, path)
                write_json(self.folder / "calibration.json", calibration.to_dict())
                variants = prover.prove(models)
                targets = [variant.target for variant in self._losing(variants) if variant.precision == "int8"]
                for name in targets:
                    more = calibrator.spare_more(calibration, name)
                    if more is None:
                        return variants, calibration
                    calibration = more
                if not targets:
                    return variants, calibration

    def _losing(self, variants: Sequence[Variant]) -> list[Variant]:
        """Returns the variants that lose more than allowed; none where nothing is gated."""
        drops = [(variant, variant.metrics["top1_drop"]) for variant in variants if self.gated]
        return [v for v, drop in drops if drop is not None and is_too_much(drop, self.config.max_drop)]

    def _gate(self, variants: Sequence[Variant]) -> None:
        for variant in self._losing(variants):
            remedy = "leave it out by --no-fp16"
            if variant.precision == "int8":
                remedy = "try another --method, more --calib-images, --keep-fp16 for sensitive layers"
            raise GateError(
                f"{variant.name} loses {(variant.metrics['top1_drop'] or 0) * 100:.2f} points of top-1 on "
                f"{len(self._val())} pictures, allowed are {self.config.max_drop * 100:g}; nothing was written: "
                f"{remedy}, or allow more by --max-drop"
            )


def _probe(graph: OnnxModel, dataset: Dataset, reporter: Reporter) -> float:
    """Returns the top-1 accuracy on ``val`` of a logistic regression on the graph's embedding of ``train``."""
    from sklearn.linear_model import LogisticRegression

    from edgetl.runtime.ort import OrtSession

    parts = {}
    with OrtSession(graph.path, graph.spec) as session:
        for split in ("train", "val"):
            items = dataset.split(split)
            rows = []
            for batch in input_batches(items, graph.spec.preprocess):
                rows.append(session.infer(batch)["embedding"])
                reporter.progress(f"probe of the original: {split}", sum(map(len, rows)), len(items))
            parts[split] = np.concatenate(rows), np.array([item.label for item in items])
    scale = float(parts["train"][0].std()) or 1.0
    model = LogisticRegression(C=0.1, max_iter=1000)
    model.fit(parts["train"][0] / scale, parts["train"][1])
    return float(model.score(parts["val"][0] / scale, parts["val"][1]))
