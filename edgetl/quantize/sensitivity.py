"""Which layers INT8 hurts, and the smallest set of them that must stay in float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from edgetl.quantize.graph import Graph
from edgetl.quantize.judge import Judge, Score
from edgetl.quantize.placement import Placement

__all__ = ["ENOUGH_DB", "LARGEST_SHARE", "LayerCost", "multiply_adds", "rank_layers", "smallest_set"]

# Logits this far from FP32's: on the networks of docs/decisions/0007, 98 % and more of the decisions stay.
ENOUGH_DB = 22.0
_SHARE_FOR_DB = 0.15
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
    weight, made = graph.shape(node.input[1]) or (0,), graph.shape(node.output[0]) or ()
    if node.op_type == "ConvTranspose":
        made = graph.shape(node.input[0]) or ()
    return int(np.prod(weight)) * int(np.prod(made[2:]) if len(made) > 2 else 1)


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
        placement: Of everything.
        build: Returns the graph with the quantizers of a placement.
        judge: Compares.
        on_progress: Called with (layers done, layers).
    """
    nodes = {node.name: node for node in graph.nodes}
    total = max(1, sum(multiply_adds(graph, nodes[name]) for name, _ in placement.weights))
    found = []
    for number, (name, index) in enumerate(placement.weights):
        edges = tuple(edge for edge in placement.edges if edge[0] == name)
        score = judge.score(build(Placement(edges, ((name, index),), (), ())), briefly=True)
        share = multiply_adds(graph, nodes[name]) / total
        found.append(LayerCost(name, score.sqnr_db, score.flip_rate, share))
        on_progress(number + 1, len(placement.weights))
    return sorted(found, key=lambda cost: cost.sqnr_db)


def smallest_set(
    ranked: Callable[[], Sequence[LayerCost]], evaluate: Callable[[Sequence[str]], Score], max_drop: float
) -> tuple[str, ...]:
    """Returns the fewest of the most expensive layers whose sparing meets the goal.

    Noises nearly add up, so the ranking foretells how many are needed; the graph itself decides. Logits within
    `ENOUGH_DB` are worth 15 % of the multiply-adds, an accuracy within ``max_drop`` half of them; where that is not
    enough, the best set is returned.

    Args:
        ranked: Gives the result of `rank_layers`; not asked where nothing need be spared.
        evaluate: Scores the graph with the named layers in float.
        max_drop: Largest loss of accuracy, a fraction.
    """
    whole = evaluate(())
    tried, count = {0: whole}, 0
    while not (tried[count].may_drop(max_drop) and tried[count].sqnr_db >= ENOUGH_DB):
        ranking = ranked()
        allowed = _SHARE_FOR_DB if tried[count].may_drop(max_drop) else LARGEST_SHARE
        following = min(_next(ranking, whole, count), _most(ranking, allowed))
        if following <= count:
            count = min(tried, key=lambda n: (not tried[n].may_drop(max_drop), tried[n].noise, n))
            break
        count = following
        tried[count] = evaluate([cost.layer for cost in ranking[:count]])
    return tuple(cost.layer for cost in ranked()[:count]) if count else ()


def _most(ranking: Sequence[LayerCost], share: float) -> int:
    """Returns how many layers of the ranking make up at most a share of the multiply-adds."""
    return int((np.cumsum([cost.share for cost in ranking]) <= share + 1e-9).sum())


def _next(ranking: Sequence[LayerCost], whole: Score, count: int) -> int:
    """Returns how many layers to spare next: as many as must be to be near enough, or half as many again."""
    noise = whole.noise
    for number, cost in enumerate(ranking, start=1):
        noise -= float(10 ** (-cost.sqnr_db / 10))
        if number > count and noise <= float(10 ** (-ENOUGH_DB / 10)):
            return max(number, count + count // 2)
    return count + max(1, count // 2)
