"""The quantization stage: an FP32 graph and pictures in, one INT8 graph for each target out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.artifacts import OnnxModel, sha256_of
from edgetl.errors import InputError, QuantizationError
from edgetl.quantize.graph import Graph, load_onnx, save_onnx
from edgetl.quantize.observe import observe
from edgetl.quantize.placement import names_of, place
from edgetl.quantize.precision import fp16_from_fp32
from edgetl.quantize.rewrite import Range, quantize_graph
from edgetl.quantize.targets import TARGETS, Target, target_named
from edgetl.quantize.thresholds import METHODS, range_of

__all__ = ["Calibration", "QuantizeConfig", "calibrate", "write_fp16", "write_int8"]


@dataclass(frozen=True)
class QuantizeConfig:
    """How INT8 is made.

    Attributes:
        method: ``max``, ``percentile``, ``mse`` or ``entropy``.
        calib_images: Pictures taken from the training split, equally from each class.
        keep_fp16: Patterns of layers, weights or tensors that stay in float.
    """

    method: str = "mse"
    calib_images: int = 300
    keep_fp16: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f'--method is "{self.method}": it must be one of {", ".join(METHODS)}')
        if not 1 <= self.calib_images <= 1_000_000:
            raise InputError(f"--calib-images is {self.calib_images}: it must be 1 to 1000000")


@dataclass(frozen=True)
class Calibration:
    """Ranges of activations, good for every target.

    Attributes:
        ranges: (low, high) by tensor of the float graph.
        observed: Exact extremes by tensor.
        method: That chose the ranges.
        pictures: How many were looked at.
        graph_sha256: The float graph that the tensors belong to.
    """

    ranges: dict[str, Range]
    observed: dict[str, Range] = field(repr=False)
    method: str
    pictures: int
    graph_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "format_version": 1,
            "graph_sha256": self.graph_sha256,
            "method": self.method,
            "pictures": self.pictures,
            "tensors": {
                name: {"low": low, "high": high, "observed": list(self.observed[name])}
                for name, (low, high) in sorted(self.ranges.items())
            },
        }


def calibrate(
    float_model: OnnxModel,
    batches: Iterable[NDArray[np.uint8]],
    config: QuantizeConfig,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Observes an FP32 graph on calibration pictures and chooses a range for each tensor that any target quantizes.

    Args:
        float_model: FP32.
        batches: uint8 (N, H, W, C); read once.
        config: Settings.
        on_progress: Called with the number of pictures done.

    Raises:
        QuantizationError: There are no pictures, or the graph cannot be quantized.
    """
    model = load_onnx(float_model.path)
    graph = Graph(model)
    names: set[str] = set()
    for target in TARGETS:
        names |= place(graph, target, config.keep_fp16).tensors(graph)
    if not names:
        raise QuantizationError(f"{float_model.path.name}: has no layer that INT8 would help; export it without --int8")
    counted = _Counted(batches)
    observations = observe(model, names, counted, on_progress=on_progress)
    ranges = {name: range_of(seen, config.method) for name, seen in observations.items()}
    for node in graph.nodes:  # a maximum changes no scale, and integer kernels insist on it
        if node.op_type == "MaxPool" and node.input[0] in ranges and node.output[0] in ranges:
            ranges[node.output[0]] = ranges[node.input[0]]
    observed = {name: (seen.low, seen.high) for name, seen in observations.items()}
    return Calibration(ranges, observed, config.method, counted.pictures, float_model.sha256)


class _Counted:
    """Passes batches on and counts their pictures."""

    def __init__(self, batches: Iterable[NDArray[np.uint8]]) -> None:
        self._batches = batches
        self.pictures = 0

    def __iter__(self) -> Any:
        for batch in self._batches:
            self.pictures += len(batch)
            yield batch


def write_int8(
    float_model: OnnxModel,
    calibration: Calibration,
    target_name: str,
    path: Path,
    *,
    keep_fp16: Sequence[str] = (),
) -> OnnxModel:
    """Writes the INT8 graph that a target wants.

    Args:
        float_model: The FP32 graph that was calibrated.
        calibration: Its ranges.
        target_name: ``tensorrt``, ``x86`` or ``arm``.
        path: File to write.
        keep_fp16: Patterns of what stays in float.

    Raises:
        QuantizationError: The calibration belongs to another graph, or a pattern names nothing.
    """
    if calibration.graph_sha256 != float_model.sha256:
        raise QuantizationError(f"{float_model.path.name}: these ranges belong to another graph; calibrate again")
    target: Target = target_named(target_name)
    graph = Graph(load_onnx(float_model.path))
    placement = place(graph, target, keep_fp16)
    _check_patterns(graph, keep_fp16)
    unknown = sorted(placement.tensors(graph) - calibration.ranges.keys())
    if unknown:
        raise QuantizationError(f'no range of "{unknown[0]}": calibrate again with the same --keep-fp16')
    model = quantize_graph(graph, placement, calibration.ranges, target)
    save_onnx(fp16_from_fp32(model) if target.half else model, path)
    return OnnxModel(path, float_model.spec, "int8", target.name, sha256_of(path), float_model.sha256)


def _check_patterns(graph: Graph, patterns: Sequence[str]) -> None:
    """A pattern must name something that some target quantizes; not every target does."""
    quantized = frozenset[str]().union({"Add"}, *(target.weighted | target.carried for target in TARGETS))
    layers = [node for node in graph.nodes if node.op_type in quantized]
    names = {name for node in layers for name in names_of(node)}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantizationError(f"--keep-fp16 {pattern}: names no layer; see edgetl inspect --layers")


def write_fp16(float_model: OnnxModel, path: Path) -> OnnxModel:
    """Writes the FP16 form of an FP32 graph."""
    save_onnx(fp16_from_fp32(load_onnx(float_model.path)), path)
    return OnnxModel(path, float_model.spec, "fp16", "any", sha256_of(path), float_model.sha256)
