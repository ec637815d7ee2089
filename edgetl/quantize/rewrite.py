"""Writes quantizers into a graph: explicit QuantizeLinear and DequantizeLinear, nothing hidden in flags."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgetl.errors import QuantizationError
from edgetl.quantize.graph import Graph
from edgetl.quantize.placement import Placement, weight_axis
from edgetl.quantize.targets import Target

__all__ = ["Range", "activation_parameters", "quantize_graph", "weight_parameters"]

Range = tuple[float, float]
_ENDINGS = ("_scale", "_zero", "_q", "_dq", "_int8")
_WEIGHT_LIMIT = 127
_SMALLEST_PEAK = 1e-7
_BIAS_LIMIT = 2.0**30


def activation_parameters(limits: Range, target: Target) -> tuple[np.float32, NDArray[np.generic]]:
    """Returns (scale, zero point) for values from ``limits[0]`` to ``limits[1]``; zero is always exact.

    A tensor that is always zero gets a range of 1, so that its scale is a usable number.
    """
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    if max(-low, high) < _SMALLEST_PEAK:
        low, high = 0.0, 1.0
    smallest, largest = target.levels
    if target.signed:
        return np.float32(max(-low, high) / largest), np.array(0, target.dtype)
    scale = np.float32((high - low) / (largest - smallest))
    zero_point = np.clip(np.round(smallest - low / scale), smallest, largest)
    return scale, np.asarray(zero_point, dtype=target.dtype)


def weight_parameters(
    weight: NDArray[np.floating], axis: int, smallest: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Returns (int8 values from -127 to 127, scale per channel) of a weight, symmetric.

    Args:
        weight: Float.
        axis: Of the output channels.
        smallest: Lower bounds of the scales, or None.

    Raises:
        QuantizationError: It holds NaN or infinity.
    """
    if not np.isfinite(weight).all():
        raise QuantizationError("a weight holds NaN or infinity; train again at a lower rate")
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=others)
    scale = np.where(peak < _SMALLEST_PEAK, 1.0, peak / _WEIGHT_LIMIT).astype(np.float32)
    if smallest is not None:
        scale = np.maximum(scale, smallest.astype(np.float32))
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    rounded = np.round(weight / scale.reshape(shape))
    return np.clip(rounded, -_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int8), scale


def quantize_graph(graph: Graph, placement: Placement, ranges: Mapping[str, Range], target: Target) -> onnx.ModelProto:
    """Returns the graph with a Q/DQ pair wherever the placement says; what is not quantized stays FP32.

    Args:
        graph: FP32.
        placement: For this graph and target.
        ranges: (low, high) of every tensor that the placement names.
        target: Gives types and levels.
    """
    return _Rewriter(graph, ranges, target).rewrite(placement)


class _Rewriter:
    def __init__(self, graph: Graph, ranges: Mapping[str, Range], target: Target) -> None:
        self._graph = graph
        self._ranges = ranges
        self._target = target
        self._pairs: dict[str, list[onnx.NodeProto]] = {}
        self._dequantized_weights: dict[tuple[str, int], str] = {}
        self._weight_nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._taken = {name for node in graph.nodes for name in [node.name, *node.input, *node.output]}
        self._bases: dict[str, str] = {}

    def rewrite(self, placement: Placement) -> onnx.ModelProto:
        edges, weights, results = set(placement.edges), set(placement.weights), set(placement.results)
        ordered: list[onnx.NodeProto] = []
        for original in self._graph.nodes:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            for index, name in enumerate(original.input):
                key = (original.name, index)
                if key in weights:
                    node.input[index] = self._weight(original, name)
                elif key in edges or name in results:
                    node.input[index] = self._activation(name)
            ordered.append(node)
        return self._assemble(ordered)

    def _assemble(self, ordered: list[onnx.NodeProto]) -> onnx.ModelProto:
        """Puts each pair right behind what makes its tensor, so that the order stays topological."""
        model = onnx.ModelProto()
        model.CopyFrom(self._graph.model)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self._weight_nodes)
        for value in self._graph.model.graph.input:
            model.graph.node.extend(self._pairs.get(value.name, []))
        for node in ordered:
            model.graph.node.append(node)
            for name in node.output:
                model.graph.node.extend(self._pairs.get(name, []))
        used = {name for node in model.graph.node for name in node.input}
        originals = [t for t in self._graph.model.graph.initializer if t.name in used]
        model.graph.initializer.extend(originals + self._initializers)
        return model

    def _activation(self, name: str) -> str:
        if name not in self._pairs:
            scale, zero_point = activation_parameters(self._ranges[name], self._target)
            self._pairs[name] = self._pair(name, np.asarray(scale), zero_point)
        return f"{self._base(name)}_dq"

    def _base(self, name: str) -> str:
        """Returns what new names begin with, such that none of them is the user's already."""
        if name not in self._bases:
            base = name
            while any(f"{start}{base}{end}" in self._taken for start in ("", "q_", "dq_") for end in _ENDINGS):
                base = f"{base}_"
            self._bases[name] = base
        return self._bases[name]

    def _pair(self, name: str, scale: NDArray[np.generic], zero_point: NDArray[np.generic]) -> list[onnx.NodeProto]:
        base = self._base(name)
        parameters = [self._constant(f"{base}_scale", scale), self._constant(f"{base}_zero", zero_point)]
        return [
            helper.make_node("QuantizeLinear", [name, *parameters], [f"{base}_q"], name=f"q_{base}"),
            helper.make_node("DequantizeLinear", [f"{base}_q", *parameters], [f"{base}_dq"], name=f"dq_{base}"),
        ]

    def _weight(self, node: onnx.NodeProto, name: str) -> str:
        axis = weight_axis(node)
        key = (name, axis)
        if key not in self._dequantized_weights:
            weight = self._graph.constant(name).astype(np.float32)
            try:
                values, scale = weight_parameters(weight, axis, self._smallest_scales(node))
            except QuantizationError as error:
                raise QuantizationError(f'weight "{name}": {error}') from None
            base = self._base(f"{name}_axis{axis}")
            inputs = [
                self._constant(f"{base}_int8", values),
                self._constant(f"{base}_scale", scale),
                self._constant(f"{base}_zero", np.zeros(len(scale), np.int8)),
            ]
            self._weight_nodes.append(
                helper.make_node("DequantizeLinear", inputs, [f"{base}_dq"], name=f"dq_{base}", axis=axis)
            )
            self._dequantized_weights[key] = f"{base}_dq"
        return self._dequantized_weights[key]

    def _smallest_scales(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        """Returns the scales below which a bias would overflow: integer kernels hold it as int32 at this scale."""
        bias = node.input[2] if len(node.input) > 2 else ""
        if not self._target.outputs or not self._graph.is_constant(bias) or node.input[0] not in self._ranges:
            return None
        activation, _ = activation_parameters(self._ranges[node.input[0]], self._target)
        return np.abs(self._graph.constant(bias).astype(np.float64)).ravel() / (float(activation) * _BIAS_LIMIT)

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self._initializers.append(numpy_helper.from_array(values, name))
        return name
