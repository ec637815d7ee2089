"""What is done for a layer before its precision is given up: rounding and biases that fit its real input.

Rounding rests on the moments of the layer's input in the float graph, so it is the same for every target. A bias takes
up the mean error of its layer: what rounding the weight leaves (analytic, from the moments), and what the target's
rounding and saturation do to the mean of the layer's input (empirical, measured on pictures).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.quantize.graph import Graph
from edgetl.quantize.moments import Moments, geometry_of
from edgetl.quantize.placement import weight_axis
from edgetl.quantize.rewrite import QuantizedLayer, weight_parameters
from edgetl.quantize.rounding import round_rows

__all__ = ["corrected_biases", "rounded_layers"]

Floats = NDArray[np.float64]


def rounded_layers(
    graph: Graph, nodes: Iterable[onnx.NodeProto], moments: Mapping[str, Moments], *, compensate: bool
) -> dict[str, QuantizedLayer]:
    """Returns the integers of the layers whose inputs are known and whose weight is their own.

    Args:
        graph: FP32.
        nodes: Conv, Gemm and MatMul nodes with a constant weight.
        moments: Of their inputs, by node name.
        compensate: Whether a rounding's error is made up for by other weights; otherwise each goes to the nearest.
    """
    found = {}
    for node in nodes:
        geometry = geometry_of(graph, node)
        if geometry is None or node.name not in moments or len(graph.consumers[node.input[1]]) > 1:
            continue
        weight = graph.constant(node.input[1]).astype(np.float32)
        values, scale = weight_parameters(weight, weight_axis(node))
        second = moments[node.name].second if compensate else None
        if second is not None:
            scales = scale.astype(np.float64).reshape(geometry.groups, geometry.outputs)
            rows = round_rows(geometry.rows_of(weight), scales, second.astype(np.float64))
            values = np.ascontiguousarray(geometry.weight_of(rows, weight)).astype(np.int8)
        found[node.name] = QuantizedLayer(values, scale)
    return found


def corrected_biases(
    graph: Graph,
    layers: Mapping[str, QuantizedLayer],
    moments: Mapping[str, Moments],
    shifts: Mapping[str, Floats] | None = None,
) -> dict[str, QuantizedLayer]:
    """Returns the layers with what their biases must take up: -(W_int8 - W) E[x] - W_int8 E[Q(x) - x].

    Nagel et al. 2019, section 4.2, with measured means; Finkelstein et al. 2019.

    Args:
        graph: FP32.
        layers: Of `rounded_layers`.
        moments: Of their inputs.
        shifts: Of `input_shifts`; without them the second term is left out.
    """
    found = dict(layers)
    for node in graph.nodes:
        geometry = geometry_of(graph, node) if node.name in layers else None
        takes_bias = node.op_type != "MatMul" and all(graph.is_constant(name) for name in node.input[2:] if name)
        if geometry is None or not takes_bias:
            continue
        layer = layers[node.name]
        scales = layer.scale.astype(np.float64).reshape(geometry.groups, geometry.outputs, 1)
        integers = geometry.rows_of(layer.values) * scales
        error = integers - geometry.rows_of(graph.constant(node.input[1]))
        change = -np.einsum("got,gt->go", error, moments[node.name].first)
        shift = (shifts or {}).get(node.input[0])
        if shift is not None:
            taps = np.repeat(shift.reshape(geometry.groups, -1), geometry.taps * geometry.groups // shift.size, axis=1)
            change -= np.einsum("got,gt->go", integers, taps)
        found[node.name] = replace(layer, bias_change=change.ravel())
    return found
