"""Cross-layer equalization: channels of one tensor get ranges that fit one scale, and the function stays the same.

A channel of an activation may be multiplied by a factor where its producers' weights take the factor up and its
consumers' weights take it back (Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias
Correction", section 4.1). Tensors that an Add or a pool ties together share their factors. Behind a Clip that begins
at zero, quiet channels may only become louder, up to where the loudest one stood: what the clip then cuts are values
that no calibration picture showed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgetl.quantize.graph import Graph, attribute

__all__ = ["Group", "channel_groups", "equalized", "factors_of"]

Floats = NDArray[np.float64]

# Channel c of the output comes from channel c of the input(s), and a positive factor passes through.
_PASSING = frozenset({"Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Add", "Flatten"})
_LARGEST_FACTOR = 64.0


@dataclass
class Group:
    """Tensors whose channels must be scaled alike.

    Attributes:
        tensors: Of the float graph, in its order.
        producers: Names of the Conv nodes that make some of them.
        consumers: Names of the Conv or Gemm nodes that take some of them.
        only_louder: Whether a Clip is among them, so that no channel may be made quieter.
    """

    tensors: list[str] = field(default_factory=list)
    producers: list[str] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    only_louder: bool = False


def channel_groups(graph: Graph) -> list[Group]:
    """Returns the groups that can be scaled: everything that makes or takes their tensors can take a factor up."""
    parent: dict[str, str] = {}
    fixed: set[str] = {*graph.outputs, *(value.name for value in graph.model.graph.input)}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    clipped: set[str] = set()
    producers: dict[str, list[str]] = {}
    consumers: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op_type in _PASSING and _passes(graph, node):
            moving = [name for name in node.input if name and not graph.is_constant(name)]
            for name in moving:
                parent[root(name)] = root(node.output[0])
            if node.op_type == "Clip":
                clipped.add(node.output[0])
            continue
        if node.op_type == "Conv" and _own_weight(graph, node):
            consumers.setdefault(node.input[0], []).append(node.name)
            producers.setdefault(node.output[0], []).append(node.name)
            root(node.input[0]), root(node.output[0])
        elif node.op_type == "Gemm" and _own_weight(graph, node):
            consumers.setdefault(node.input[0], []).append(node.name)
            root(node.input[0])
            fixed.add(node.output[0])
        else:
            fixed.update(name for name in (*node.input, *node.output) if name)
    groups: dict[str, Group] = {}
    for name in sorted(parent, key=lambda tensor: graph.depth.get(tensor, 0)):
        group = groups.setdefault(root(name), Group())
        group.tensors.append(name)
        group.producers += producers.get(name, [])
        group.consumers += consumers.get(name, [])
        group.only_louder |= name in clipped
    held = {root(name) for name in fixed if name in parent}
    return [g for key, g in groups.items() if key not in held and g.producers and g.consumers]


def _passes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tells whether a positive factor for each channel passes through a node."""
    if node.op_type == "Add":
        shapes = {graph.shape(name) for name in node.input}
        return len(shapes) == 1 and not any(graph.is_constant(name) for name in node.input)
    if node.op_type == "Flatten":
        shape = graph.shape(node.input[0])
        return shape is not None and len(shape) == 4 and shape[2:] == (1, 1)
    if node.op_type == "Clip":
        low = node.input[1] if len(node.input) > 1 else ""
        return graph.is_constant(low) and float(graph.constant(low)) == 0.0
    return True


def _own_weight(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tells whether a layer's constants are its own; shared ones cannot take two factors up."""
    names = [name for name in node.input[1:] if name]
    return bool(names) and all(graph.is_constant(n) and len(graph.consumers[n]) == 1 for n in names)


def factors_of(peaks: Iterable[Floats], strength: float) -> Floats:
    """Returns a factor for each channel.

    Args:
        peaks: (C,), the largest magnitude of each channel, for each quantized tensor of a group.
        strength: 0 changes nothing, 1 makes all channels as loud as the loudest.
    """
    loudest = np.max([peak / max(float(peak.max()), 1e-30) for peak in peaks], axis=0)
    raised = np.where(loudest > 1e-6, 1.0 / np.maximum(loudest, 1e-6), 1.0) ** strength
    return np.asarray(np.minimum(raised, _LARGEST_FACTOR), np.float64)


def equalized(graph: Graph, groups: Mapping[int, Floats], found: list[Group]) -> onnx.ModelProto:
    """Returns the graph with each group's factors moved into the weights around it.

    Args:
        graph: FP32.
        groups: Factors (C,) by index into ``found``.
        found: Of `channel_groups`.
    """
    changed: dict[str, NDArray[np.float64]] = {}

    def values(name: str) -> NDArray[np.float64]:
        return changed.setdefault(name, graph.constant(name).astype(np.float64))

    for index, factors in groups.items():
        for name in found[index].producers:
            node = graph.node(name)
            weight = values(node.input[1])
            weight *= factors.reshape(-1, *[1] * (weight.ndim - 1))
            if len(node.input) > 2 and node.input[2]:
                bias = values(node.input[2])
                bias *= factors
        for name in found[index].consumers:
            _divide(graph.node(name), values(graph.node(name).input[1]), factors)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    return model


def _divide(node: onnx.NodeProto, weight: NDArray[np.float64], factors: Floats) -> None:
    if node.op_type == "Gemm":
        weight /= factors if attribute(node, "transB", 0) else factors[:, None]
        return
    groups = attribute(node, "group", 1)
    per_group = weight.shape[1]
    taken = factors.reshape(groups, 1, per_group)  # group g takes channels g * per_group and on
    weight.reshape(groups, -1, per_group, *weight.shape[2:])[...] /= taken[..., None, None]
