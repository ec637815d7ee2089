"""Writes quantizers into a graph: explicit QuantizeLinear and DequantizeLinear, nothing hidden in flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgetl.errors import QuantizationError
from edgetl.quantize.graph import Graph
from edgetl.quantize.placement import Placement, weight_axis
from edgetl.quantize.targets import Target

__all__ = [
    "QuantizedLayer",
    "Range",
    "activation_parameters",
    "hard_swish_parameters",
    "quantize_graph",
    "weight_parameters",
]

Range = tuple[float, float]
_ENDINGS = ("_scale", "_zero", "_q", "_dq", "_int8", "_corrected", "_six")
_WEIGHT_LIMIT = 127
_SMALLEST_PEAK = 1e-7
_BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer's constants, where rounding to the nearest is not what is wanted.

    Attributes:
        values: int8, in the weight's shape.
        scale: float32, one for each output channel.
        bias_change: What is added to the bias, one for each output channel, or None.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias_change: NDArray[np.float64] | None = None


def activation_parameters(limits: Range, target: Target) -> tuple[np.float32, NDArray[np.generic]]:
    """Returns (scale, zero point) for values from ``limits[0]`` to ``limits[1]``; zero is always exact.

    A tensor that is always zero gets a range of 1, so that its scale is a usable number.
    """
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    if max(-low, high) < _SMALLEST_PEAK:
        low, high = 0.0, 1.0
    smallest, largest = target.levels
    if target.symmetric:
        return np.float32(max(-low, high) / largest), np.array(0, target.dtype)
    scale = np.float32((high - low) / (largest - smallest))
    zero_point = np.clip(np.round(smallest - low / scale), smallest, largest)
    return scale, np.asarray(zero_point, dtype=target.dtype)


def hard_swish_parameters(high: float, target: Target) -> tuple[np.float32, NDArray[np.generic]]:
    """Returns (scale, zero point) for values from -3, exactly the smallest level, to ``high`` or a little above."""
    smallest, largest = target.levels
    below = max(1, int(3 * (largest - smallest) / (max(high, 0.0) + 3)))
    return np.float32(3 / below), np.array(smallest + below, target.dtype)


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


def quantize_graph(
    graph: Graph,
    placement: Placement,
    ranges: Mapping[str, Range],
    target: Target,
    layers: Mapping[str, QuantizedLayer] | None = None,
) -> onnx.ModelProto:
    """Returns the graph with a Q/DQ pair wherever the placement says; what is not quantized stays FP32.

    Args:
        graph: FP32.
        placement: For this graph and target.
        ranges: (low, high) of every tensor that the placement names.
        target: Gives types and levels.
        layers: By node name; the weights of others are rounded to the nearest.
    """
    return _Rewriter(graph, ranges, target, layers or {}).rewrite(placement)


class _Rewriter:
    def __init__(
        self, graph: Graph, ranges: Mapping[str, Range], target: Target, layers: Mapping[str, QuantizedLayer]
    ) -> None:
        self._graph = graph
        self._layers = layers
        self._ranges = ranges
        self._target = target
        self._pairs: dict[str, list[onnx.NodeProto]] = {}
        self._dequantized_weights: dict[tuple[str, int], str] = {}
        self._changed_biases: dict[str, NDArray[np.float64]] = {}
        self._weight_nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._taken = {name for node in graph.nodes for name in [node.name, *node.input, *node.output]}
        self._bases: dict[str, str] = {}
        self._cut: set[str] = set()

    def rewrite(self, placement: Placement) -> onnx.ModelProto:
        edges, weights, results = set(placement.edges), set(placement.weights), set(placement.results)
        self._cut = {n.input[0] for n in self._graph.nodes if n.op_type == "HardSwish" and (n.name, 0) in edges}
        ordered: list[onnx.NodeProto] = []
        for original in self._graph.nodes:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            for index, name in enumerate(original.input):
                if index == 1 and original.name in weights:
                    node.input[index] = self._weight(original, name)
                elif (original.name, index) in edges or name in results:
                    node.input[index] = self._activation(name)
            if original.name in self._changed_biases:
                self._correct_bias(node, self._changed_biases[original.name])
            is_cut = original.op_type == "HardSwish" and original.input[0] in self._cut
            ordered += self._hard_swish(original.input[0], node) if is_cut else [node]
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
            scale, zero_point = self._activation_parameters(name)
            self._pairs[name] = self._pair(name, np.asarray(scale), zero_point)
        return f"{self._base(name)}_dq"

    def _activation_parameters(self, name: str) -> tuple[np.float32, NDArray[np.generic]]:
        if name in self._cut:
            return hard_swish_parameters(self._ranges[name][1], self._target)
        return activation_parameters(self._ranges[name], self._target)

    def _hard_swish(self, source: str, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Returns x * min(x + 3, 6) / 6 as a minimum and a product of integers.

        x is cut at -3, below which HardSwish is 0; then the levels above the smallest are x + 3 already.
        """
        scale, zero_point = self._activation_parameters(source)
        smallest, largest = self._target.levels
        six = min(2 * int(zero_point) - smallest, largest)
        base = self._base(f"{node.output[0]}_gate")
        limit = self._constant(f"{base}_six", np.array(six, self._target.dtype))
        parameters = [
            self._constant(f"{base}_scale", np.asarray(scale / np.float32(6))),
            self._constant(f"{base}_zero", np.array(smallest, self._target.dtype)),
        ]
        return [
            helper.make_node("Clip", [f"{self._base(source)}_q", "", limit], [f"{base}_q"], name=f"q_{base}"),
            helper.make_node("DequantizeLinear", [f"{base}_q", *parameters], [f"{base}_dq"], name=f"dq_{base}"),
            helper.make_node("Mul", [node.input[0], f"{base}_dq"], list(node.output), name=node.name),
        ]

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
            layer = self._layer(node, name, axis)
            if layer.bias_change is not None:
                self._changed_biases[node.name] = layer.bias_change
            base = self._base(f"{name}_axis{axis}")
            inputs = [
                self._constant(f"{base}_int8", layer.values),
                self._constant(f"{base}_scale", layer.scale),
                self._constant(f"{base}_zero", np.zeros(len(layer.scale), np.int8)),
            ]
            self._weight_nodes.append(
                helper.make_node("DequantizeLinear", inputs, [f"{base}_dq"], name=f"dq_{base}", axis=axis)
            )
            self._dequantized_weights[key] = f"{base}_dq"
        return self._dequantized_weights[key]

    def _layer(self, node: onnx.NodeProto, name: str, axis: int) -> QuantizedLayer:
        """Returns what was prepared for a layer, or the nearest integers where its bias would overflow or nothing was.

        Integer kernels hold a bias as int32, at the scale of the weight times that of the activation.
        """
        smallest = None
        if self._target.outputs and node.input[0] in self._ranges:
            activation, _ = self._activation_parameters(node.input[0])
            smallest = np.abs(self._bias(node)) / (float(activation) * _BIAS_LIMIT)
        layer = self._layers.get(node.name)
        if layer is not None and (smallest is None or (layer.scale >= smallest).all()):
            return layer
        weight = self._graph.constant(name).astype(np.float32)
        try:
            return QuantizedLayer(*weight_parameters(weight, axis, smallest))
        except QuantizationError as error:
            raise QuantizationError(f'weight "{name}": {error}') from None

    def _bias(self, node: onnx.NodeProto) -> NDArray[np.float64]:
        """Returns a layer's bias before any change, 0 where it has none or one that is no constant."""
        bias = node.input[2] if len(node.input) > 2 else ""
        return self._graph.constant(bias).astype(np.float64).ravel() if self._graph.is_constant(bias) else np.zeros(1)

    def _correct_bias(self, node: onnx.NodeProto, change: NDArray[np.float64]) -> None:
        """Gives a layer a bias of its own that holds the change."""
        corrected = (self._bias(node) + change).astype(np.float32)
        del node.input[2:]
        node.input.append(self._constant(f"{self._base(f'{node.name}_bias')}_corrected", corrected))

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self._initializers.append(numpy_helper.from_array(values, name))
        return name
