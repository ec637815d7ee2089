"""Which layers INT8 hurts, and the smallest set of them that must stay in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from edgetl.quantize.graph import Graph
from edgetl.quantize.judge import Judge, Score, nearness
from edgetl.quantize.placement import Placement

__all__ = ["ENOUGH_DB", "LARGEST_SHARE", "LayerCost", "affordable", "multiply_adds", "rank_layers", "smallest_set"]

# Logits this far from FP32's: on the networks of docs/decisions/0007, 98 % and more of the decisions stay.
ENOUGH_DB = 22.0
_SHARE_FOR_DB = 0.15
_BATCHES = 4  # of the reserved pictures: a layer's noise on 32 of them orders it among the others
LARGEST_SHARE = 0.5


@dataclass(frozen=True)
class LayerCost:
    """What quantizing one layer alone costs.

    Attributes:
        layer: Name of its node.
        sqnr_db: Of the logits with only this layer in INT8.
        flip_rate: Share of decisions that change by it.
        share: Of the network's multiply-adds, 0 to 1.
    """

    layer: str
    sqnr_db: float
    flip_rate: float
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {name: round(v, 5) if isinstance(v, float) else v for name, v in asdict(self).items()}


def multiply_adds(graph: Graph, node: onnx.NodeProto) -> int:
    """Returns the multiplications of a layer for one picture, 0 where a shape is unknown."""
    weight = graph.shape(node.input[1]) or (0,)
    made = graph.shape(node.input[0] if node.op_type == "ConvTranspose" else node.output[0]) or ()
    positions = made[1:-1] if node.op_type in ("Gemm", "MatMul") else made[2:]
    return math.prod(weight) * math.prod(positions)


def rank_layers(
    graph: Graph,
    placement: Placement,
    build: Callable[[Placement], onnx.ModelProto],
    judge: Judge,
    on_progress: Callable[[int, int], None],
) -> list[LayerCost]:
    """Quantizes one layer at a time, and returns all of them, the most expensive first.

    Args:
        graph: FP32.
        placement: Of everything that is quantized.
        build: Returns the graph with the quantizers of a placement.
        judge: Compares.
        on_progress: Called with (layers done, layers).
    """
    weighted = [*placement.weights, *(name for name, _ in placement.spared)]
    total = max(1, sum(multiply_adds(graph, graph.node(name)) for name in weighted))
    found = []
    for number, name in enumerate(placement.weights):
        edges = tuple(edge for edge in placement.edges if edge[0] == name)
        score = judge.score(build(Placement(edges, (name,), (), ())), _BATCHES)
        share = multiply_adds(graph, graph.node(name)) / total
        found.append(LayerCost(name, score.sqnr_db, score.flip_rate, share))
        on_progress(number + 1, len(placement.weights))
    return sorted(found, key=lambda cost: nearness(cost.sqnr_db, cost.flip_rate))


def smallest_set(
    ranked: Callable[[], Sequence[LayerCost]], evaluate: Callable[[Sequence[str]], Score], max_drop: float
) -> tuple[str, ...]:
    """Returns the fewest of the most expensive layers whose sparing meets the goal.

    Noises nearly add up, so the ranking foretells how many are needed; the graph itself decides. Logits within
    `ENOUGH_DB` are worth 15 % of the multiply-adds, an accuracy within ``max_drop`` half of them; a layer that is
    too large for that is passed over. Where it is not enough, the best set is returned.

    Args:
        ranked: Gives the result of `rank_layers`; not asked where nothing need be spared.
        evaluate: Scores the graph with the named layers in float.
        max_drop: Largest loss of accuracy, a fraction.
    """
    names: tuple[str, ...] = ()
    tried = {names: evaluate(names)}
    while not (tried[names].may_drop(max_drop) and tried[names].sqnr_db >= ENOUGH_DB):
        share = _SHARE_FOR_DB if tried[names].may_drop(max_drop) else LARGEST_SHARE
        candidates = affordable(ranked(), share, names)
        following = candidates[: _next(candidates, tried[()], len(names))]
        if len(following) <= len(names):
            return max(tried, key=lambda n: (tried[n].may_drop(max_drop), tried[n].nearness, -len(n)))
        names = tuple(cost.layer for cost in following)
        tried[names] = evaluate(names)
    return names


def affordable(ranking: Sequence[LayerCost], share: float, spared: Sequence[str] = ()) -> list[LayerCost]:
    """Returns the layers that can stay in float beside those that are anyway: the spared, then the most expensive.

    Args:
        ranking: All layers that are not in float anyway.
        share: Of the network's multiply-adds that may be in float.
        spared: Layers that were chosen before.
    """
    found: list[LayerCost] = []
    left = share + 1e-9 - (1 - sum(cost.share for cost in ranking))
    for cost in sorted(ranking, key=lambda cost: cost.layer not in spared):
        if cost.share <= left:
            found.append(cost)
            left -= cost.share
    return found


def _next(candidates: Sequence[LayerCost], whole: Score, count: int) -> int:
    """Returns how many layers to spare next: as many as must be to be near enough, or half as many again."""
    noise = whole.noise
    for number, cost in enumerate(candidates, start=1):
        noise -= float(10 ** (-cost.sqnr_db / 10))
        if number > count and noise <= float(10 ** (-ENOUGH_DB / 10)):
            return max(number, count + count // 2)
    return count + max(1, count // 2)
