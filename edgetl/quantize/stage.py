"""The quantization stage: an FP32 graph and pictures in, one INT8 graph for each target out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgetl.artifacts import OnnxModel, sha256_of
from edgetl.errors import InputError, QuantizationError
from edgetl.quantize.calibration import PROCEDURE, Calibration, Decisions, Prepared, decisions_from_file
from edgetl.quantize.decide import UNJUDGED_METHOD, Decider, Measure, untried
from edgetl.quantize.evidence import Evidence, Progress, judged_of
from edgetl.quantize.graph import Graph, load_onnx, save_onnx
from edgetl.quantize.judge import Judge
from edgetl.quantize.pictures import Pictures
from edgetl.quantize.placement import names_of, place
from edgetl.quantize.precision import fp16_from_fp32
from edgetl.quantize.rewrite import quantize_graph
from edgetl.quantize.targets import TARGETS, target_named
from edgetl.quantize.thresholds import METHODS

__all__ = ["Calibrator", "QuantizeConfig", "calibrate", "known_patterns", "write_fp16", "write_int8"]

Batches = Iterable[NDArray[np.uint8]]


@dataclass(frozen=True)
class QuantizeConfig:
    """How INT8 is made.

    Attributes:
        method: ``max``, ``percentile``, ``mse``, ``entropy``, or ``auto``: the best for each group of tensors.
        calib_images: Pictures taken from the training split, equally from each class.
        keep_fp16: Patterns of layers, weights or tensors that stay in float.
        repair: Whether weights, biases and channels are changed where that helps.
        mixed: Whether layers are left in float where INT8 costs too much.
        max_drop: Loss of accuracy on the reserved pictures above which half of the multiply-adds may be left in
            float, a fraction. Below it 15 % of them may, until the logits are within 22 dB of FP32's.
    """

    method: str = "auto"
    calib_images: int = 300
    keep_fp16: tuple[str, ...] = ()
    repair: bool = True
    mixed: bool = True
    max_drop: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in (*METHODS, "auto"):
            raise InputError(f'--method is "{self.method}": it must be one of auto, {", ".join(METHODS)}')
        if not 1 <= self.calib_images <= 1_000_000:
            raise InputError(f"--calib-images is {self.calib_images}: it must be 1 to 1000000")

    @property
    def one_pass(self) -> bool:
        """Whether nothing is tried, so that each picture is needed once."""
        return self.method != "auto" and not self.repair and not self.mixed


class Calibrator:
    """Looks at calibration pictures in an FP32 graph, and decides how each target's INT8 graph is made.

    Usable as long as it is open; `calibrate` is the short way for those who want the calibration alone.

    Args:
        float_model: FP32.
        batches: uint8 (N, H, W, C) in random order; read once, the rest comes from a temporary file. The last quarter,
            64 pictures at most, is reserved for judging what was learned from the others; with fewer than 16 pictures
            nothing is judged, so nothing is tried.
        config: Settings.
        labels: True classes of the pictures, in their order; without them every changed decision counts as lost.
        pictures_sha256: Names the pictures in the calibration's key.
        reuse: A calibration.json whose decisions are taken over.
        measure: Returns the latency of a target's graph, in any unit, or None where the target is not at hand.
        on_progress: Called with (stage, done, total); a total of 0 is unknown.

    Raises:
        QuantizationError: There are no pictures, the graph cannot be quantized, a pattern names nothing, or ``reuse``
            belongs to something else.
    """

    def __init__(
        self,
        float_model: OnnxModel,
        batches: Batches,
        config: QuantizeConfig,
        *,
        labels: ArrayLike | None = None,
        pictures_sha256: str = "",
        reuse: Path | None = None,
        measure: Measure | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        graph = Graph(load_onnx(float_model.path))
        self._spec = float_model.spec
        self._config = config
        self._measure = measure
        self._tell = on_progress or (lambda stage, done, total: None)
        known = known_patterns(graph, config.keep_fp16)
        for pattern in config.keep_fp16:
            if pattern not in known:
                raise QuantizationError(f"--keep-fp16 {pattern}: names no layer; see edgetl inspect --layers")
        self._labels = None if labels is None else np.asarray(labels, np.int64)
        self._keyed_by = _keyed_by(float_model, config, pictures_sha256, self._labels)
        self._taken_over = None if reuse is None else decisions_from_file(reuse, self._keyed_by)
        self._pictures = Pictures(batches, limit=0) if self._is_one_pass else Pictures(batches)
        self._evidence = Evidence(graph, self._pictures, config.keep_fp16, self._tell)
        if not self._evidence.tensors:
            self._pictures.close()
            left = " beside --keep-fp16" if config.keep_fp16 else ""
            raise QuantizationError(
                f"{float_model.path.name}: has no layer{left} that INT8 would help; export it without --int8"
            )

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pictures.close()

    @property
    def _is_one_pass(self) -> bool:
        return self._config.one_pass and self._taken_over is None

    def calibrate(self) -> Calibration:
        """Returns what was decided; takes a pass over the pictures, or many short ones where things are tried."""
        if self._is_one_pass:
            return self._in_one_pass()
        for _ in self._pictures.first():
            self._tell("reading pictures", self._pictures.seen, 0)
        if not self._pictures.count:
            raise QuantizationError("no calibration pictures: INT8 needs some; give --data")
        return self._calibration(self._taken_over or self._decided())

    def _in_one_pass(self) -> Calibration:
        graph, seen = self._evidence.graph, self._evidence.observed_in(self._pictures.first())
        decisions = untried(graph, seen, dict.fromkeys(seen, self._config.method))
        return Calibration(self._keyed_by, self._pictures.seen, 0, decisions, Prepared(graph, {}))

    @cached_property
    def _decider(self) -> Decider | None:
        judged = judged_of(self._pictures.count)
        if not judged:
            return None
        learned = self._pictures.count - judged
        labels = None if self._labels is None else self._labels[learned : self._pictures.count]
        judge = Judge(self._evidence.graph.model, self._spec, lambda: self._pictures.batches(learned), labels)
        return Decider(self._evidence, judge, self._tell, self._measure)

    def _decided(self) -> Decisions:
        config = self._config
        if self._decider is not None:
            max_drop = config.max_drop if config.mixed else None
            return self._decider.decide(config.method, repair=config.repair, max_drop=max_drop)
        method = UNJUDGED_METHOD if config.method == "auto" else config.method
        seen = self._evidence.observations
        return untried(self._evidence.graph, seen, dict.fromkeys(seen, method))

    def _calibration(self, decisions: Decisions) -> Calibration:
        evidence = self._evidence.equalized(decisions.equalize)
        repairs = decisions.repairs
        layers = {t.name: evidence.layers(decisions.ranges, t, repairs[t.name]) for t in TARGETS if t.name in repairs}
        judged = judged_of(self._pictures.count)
        return Calibration(self._keyed_by, self._pictures.count, judged, decisions, Prepared(evidence.graph, layers))

    def spare_more(self, calibration: Calibration, target_name: str) -> Calibration | None:
        """Returns the same with more layers of a target left in float, or None where half of the network is already.

        Args:
            calibration: Of this calibrator.
            target_name: Whose graph was not good enough.
        """
        if not self._config.mixed or self._config.one_pass or self._decider is None:
            return None
        decisions = self._decider.spare_more(calibration.decisions, target_named(target_name))
        return None if decisions is None else replace(calibration, decisions=decisions)


def calibrate(float_model: OnnxModel, batches: Batches, config: QuantizeConfig, **options: Any) -> Calibration:
    """Returns what `Calibrator` decides; see there."""
    with Calibrator(float_model, batches, config, **options) as calibrator:
        return calibrator.calibrate()


def _keyed_by(
    float_model: OnnxModel, config: QuantizeConfig, pictures_sha256: str, labels: NDArray[np.int64] | None
) -> dict[str, Any]:
    return {
        "graph_sha256": float_model.sha256,
        "pictures_sha256": pictures_sha256,
        "labels_sha256": None if labels is None else hashlib.sha256(labels.tobytes()).hexdigest(),
        "preprocess": float_model.spec.preprocess.to_dict(),
        "method": config.method,
        "keep_fp16": list(config.keep_fp16),
        "repair": config.repair,
        "mixed": config.mixed,
        "max_drop": config.max_drop,
        "procedure": PROCEDURE,
    }


def write_int8(float_model: OnnxModel, calibration: Calibration, target_name: str, path: Path) -> OnnxModel:
    """Writes the INT8 graph that a target wants.

    Args:
        float_model: The FP32 graph that was calibrated.
        calibration: Of it.
        target_name: ``tensorrt``, ``x86`` or ``arm``.
        path: File to write.

    Raises:
        QuantizationError: The calibration belongs to another graph.
    """
    if calibration.keyed_by["graph_sha256"] != float_model.sha256:
        raise QuantizationError(f"{float_model.path.name}: these ranges belong to another graph; calibrate again")
    target = target_named(target_name)
    graph, decisions = calibration.prepared.graph, calibration.decisions
    placement = place(graph, target, calibration.keyed_by["keep_fp16"], decisions.spared.get(target.name, ()))
    layers = calibration.prepared.layers.get(target.name, {})
    model = quantize_graph(graph, placement, decisions.ranges, target, layers)
    save_onnx(fp16_from_fp32(model) if target.half else model, path)
    return OnnxModel(path, float_model.spec, "int8", target.name, sha256_of(path), float_model.sha256)


def known_patterns(graph: Graph, patterns: Sequence[str]) -> tuple[str, ...]:
    """Returns the patterns that name something which some target quantizes; not every target does."""
    quantized = frozenset[str]().union({"Add"}, *(target.weighted | target.carried for target in TARGETS))
    names = {name for node in graph.nodes if node.op_type in quantized for name in names_of(node)}
    return tuple(pattern for pattern in patterns if any(fnmatchcase(name, pattern) for name in names))


def write_fp16(float_model: OnnxModel, path: Path) -> OnnxModel:
    """Writes the FP16 form of an FP32 graph."""
    save_onnx(fp16_from_fp32(load_onnx(float_model.path)), path)
    return OnnxModel(path, float_model.spec, "fp16", "any", sha256_of(path), float_model.sha256)
