"""Where a target's rules put quantizers in a graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx

from edgetl.quantize.graph import Graph, attribute
from edgetl.quantize.targets import Target

__all__ = ["Placement", "names_of", "place", "weight_axis"]

_COSTLY, _KEPT = "too sensitive", "kept by request"
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_TAIL = frozenset({"Flatten", "Reshape", "Squeeze", "Add", "Identity", "Softmax", "LogSoftmax"})


@dataclass(frozen=True)
class Placement:
    """Decisions for one graph and one target.

    Attributes:
        edges: (node name, input index) that take a quantized activation, in execution order.
        weights: Nodes whose second input, a constant, is quantized for each output channel.
        results: Tensors that are quantized for every taker, because integer kernels make them.
        spared: Weighted nodes left in float, with the reason.
    """

    edges: tuple[tuple[str, int], ...]
    weights: tuple[str, ...]
    results: tuple[str, ...]
    spared: tuple[tuple[str, str], ...]

    def tensors(self, graph: Graph) -> set[str]:
        """Returns the activations whose range must be known."""
        return {graph.node(name).input[index] for name, index in self.edges} | set(self.results)


def place(graph: Graph, target: Target, keep_float: Sequence[str] = (), spared: Iterable[str] = ()) -> Placement:
    """Applies a target's rules.

    Args:
        graph: FP32, every node named.
        target: Rules.
        keep_float: Patterns (``*`` and ``?``) of nodes, weights or tensors to leave in float.
        spared: Names of layers to leave in float for their cost.
    """
    costly = set(spared)
    kept = _kept_names(graph, keep_float)
    edges: list[tuple[str, int]] = []
    weights: list[str] = []
    results: list[str] = []
    left: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in target.weighted and _has_weight(graph, node):
            reason = _COSTLY if node.name in costly else _spare(graph, node, target, kept, first=not weights)
            if reason:
                left[node.name] = reason
                continue
            edges.append((node.name, 0))
            weights.append(node.name)
            if target.outputs:
                results.append(_behind_activation(graph, node.output[0]))
        elif node.op_type == "Add" and target.residual_only and not kept.intersection(names_of(node)):
            edges += [(node.name, index) for index in _residual_inputs(graph, node, target)]
    results = [name for name in results if name not in kept]
    if target.carried:
        asked_for = {name for name, reason in left.items() if reason in (_COSTLY, _KEPT)}
        carried_edges, carried_results = _carry(graph, target, set(results), kept, asked_for, set(left))
        edges += carried_edges
        results += carried_results
    return Placement(tuple(edges), tuple(weights), tuple(dict.fromkeys(results)), tuple(left.items()))


def weight_axis(node: onnx.NodeProto) -> int:
    """Returns the axis of a weight that runs over output channels."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" else 0


def names_of(node: onnx.NodeProto) -> set[str]:
    """Returns the names that a pattern may know a node by: its own, and those of what it takes and makes."""
    return {node.name, *node.input, *node.output}


def _kept_names(graph: Graph, patterns: Sequence[str]) -> set[str]:
    names = {name for node in graph.nodes for name in names_of(node)} if patterns else set()
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _has_weight(graph: Graph, node: onnx.NodeProto) -> bool:
    return (
        len(node.input) > 1
        and graph.is_constant(node.input[1])
        and graph.is_float(node.input[1])
        and not graph.is_constant(node.input[0])
        and _is_matrix_or_kernel(node, len(graph.shape(node.input[1]) or ()))
    )


def _is_matrix_or_kernel(node: onnx.NodeProto, rank: int) -> bool:
    """A MatMul's constant of three axes is a stack of matrices, whose channels no kernel scales one by one."""
    return rank == 2 if node.op_type in ("MatMul", "Gemm") else rank > 2


def _spare(graph: Graph, node: onnx.NodeProto, target: Target, kept: set[str], *, first: bool) -> str:
    if kept.intersection(names_of(node)):
        return _KEPT
    if _leads_to_output(graph, node.output[0]):
        return "last layer"
    shape = graph.shape(node.input[0])
    if node.op_type == "Conv" and shape is not None and shape[2:] == (1, 1):
        return "1 x 1 map"  # squeeze-excite: INT8 gains nothing
    if node.op_type == "ConvTranspose" and attribute(node, "group", 1) > 1:
        return "grouped transposed convolution"
    if first and _is_thin(graph, node, target):
        return "too thin to begin with"
    return ""


def _is_thin(graph: Graph, node: onnx.NodeProto, target: Target) -> bool:
    """Tells whether a convolution has few products to sum and an activation that integer kernels do not absorb."""
    if node.op_type != "Conv" or _behind_activation(graph, node.output[0]) != node.output[0]:
        return False
    return math.prod((graph.shape(node.input[1]) or ())[1:]) < target.first_depth


def _leads_to_output(graph: Graph, name: str) -> bool:
    """Tells whether a tensor is the logits, perhaps behind a reshape, the addition of a bias or a softmax."""
    while name not in graph.outputs:
        node = graph.only_consumer(name)
        if node is None or node.op_type not in _TAIL:
            return False
        name = node.output[0]
    return True


def _behind_activation(graph: Graph, name: str) -> str:
    """Returns the tensor behind a ReLU or Clip that fuses into the layer, or the layer's own output."""
    node = graph.only_consumer(name)
    return node.output[0] if node is not None and node.op_type in _ACTIVATIONS else name


def _residual_inputs(graph: Graph, node: onnx.NodeProto, target: Target) -> list[int]:
    """Returns the skip input of a residual addition: of two, the one with the shorter way from the input."""
    moving = [i for i, name in enumerate(node.input) if not graph.is_constant(name)]
    if len(moving) != 2 or any(len(graph.shape(name) or ()) != 4 for name in node.input):
        return []
    producers = [graph.producer.get(name) for name in node.input]
    if not any(p is not None and p.op_type in target.weighted for p in producers):
        return []
    depths = [graph.depth[name] for name in node.input]
    return [0 if depths[0] < depths[1] else 1]


def _is_fed(graph: Graph, node: onnx.NodeProto, target: Target, known: set[str]) -> bool:
    """Tells whether enough of an op's inputs are quantized for its integer kernel."""
    if node.op_type == "HardSwish" and graph.only_consumer(node.input[0]) is None:
        return False  # its integer form cuts its input at -3
    enough = any if node.op_type in target.gated else all
    return enough(name in known for name in node.input)


def _carry(
    graph: Graph, target: Target, quantized: set[str], kept: set[str], asked_for: set[str], left: set[str]
) -> tuple[list[tuple[str, int]], list[str]]:
    """Spreads quantization through ops that have integer kernels and stand between quantized tensors."""
    edges: list[tuple[str, int]] = []
    results: list[str] = []
    known = set(quantized)
    for node in graph.nodes:
        if node.op_type not in target.carried or any(graph.is_constant(n) or graph.shape(n) == () for n in node.input):
            continue
        if not _is_fed(graph, node, target, known) or not graph.is_float(node.output[0]):
            continue
        result = _behind_activation(graph, node.output[0])
        takers = {taker.name for taker, _ in graph.consumers.get(result, ())}
        if kept.intersection(names_of(node)) or (asked_for.intersection(takers) and takers <= left):
            continue  # a layer that is spared wants its input whole
        edges += [(node.name, index) for index in range(len(node.input))]
        if result not in kept:
            results.append(result)
            known.add(result)
    return edges, results
