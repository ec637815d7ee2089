"""Decides how a graph becomes INT8: each choice is kept only where the reserved pictures say that it helps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import onnx

from edgetl.quantize.calibration import Decisions, Repairs
from edgetl.quantize.evidence import Evidence, Progress
from edgetl.quantize.graph import Graph
from edgetl.quantize.judge import Judge, Score
from edgetl.quantize.observe import Observation
from edgetl.quantize.placement import Placement
from edgetl.quantize.rewrite import Range, quantize_graph
from edgetl.quantize.sensitivity import LARGEST_SHARE, LayerCost, affordable, rank_layers, smallest_set
from edgetl.quantize.targets import TARGETS, Target, target_named
from edgetl.quantize.thresholds import METHODS, range_of

__all__ = ["EQUALIZE", "UNJUDGED_METHOD", "Decider", "Measure", "untried"]

Measure = Callable[[str, onnx.ModelProto], float | None]

UNJUDGED_METHOD = "max"  # where nothing can be judged, nothing is cut
EQUALIZE = 0.5
_FOR_SIDES = "mse"
_GATES = frozenset({"HardSigmoid", "Sigmoid"})  # bounded, and what multiplies a whole channel must not be cut
_NO_REPAIR = Repairs()
_REPAIRS = (
    Repairs(False, "analytic"),
    Repairs(True, "none"),
    Repairs(True, "analytic"),
    Repairs(False, "empirical"),
    Repairs(True, "empirical"),
)
# A threshold or a bias costs nothing, a changed graph must earn its place.
_HELPS_DB = 0.05
_EARNS_DB = 0.5
_HOPELESS_DB = 1.0
_ALIKE = 0.03


def untried(graph: Graph, observations: Mapping[str, Observation], methods: Mapping[str, str]) -> Decisions:
    """Returns ranges by the given methods, and nothing else."""
    gates = {name for node in graph.nodes if node.op_type in _GATES for name in node.output}
    methods = {name: "max" if name in gates else method for name, method in methods.items()}
    ranges = {name: range_of(seen, methods[name]) for name, seen in observations.items()}
    for node in graph.nodes:  # a maximum changes no scale, and integer kernels insist on it
        if node.op_type == "MaxPool" and node.input[0] in ranges and node.output[0] in ranges:
            ranges[node.output[0]] = ranges[node.input[0]]
    observed = {name: (seen.low, seen.high) for name, seen in observations.items()}
    return Decisions(ranges, observed, methods)


class Decider:
    """Tries, on the TensorRT form first; what is good there is kept for another target if it helps there too.

    Args:
        evidence: Of the float graph.
        judge: Holds the reserved pictures.
        on_progress: Called with (stage, done, total).
        measure: Returns a graph's latency, in any unit, or None for a target that is not at hand.
    """

    def __init__(
        self,
        evidence: Evidence,
        judge: Judge,
        on_progress: Progress,
        measure: Measure | None = None,
    ) -> None:
        self._plain = evidence
        self._judge = judge
        self._progress = on_progress
        self._main = target_named("tensorrt")
        self._measure = measure or (lambda target, model: None)
        self._trials: list[Mapping[str, Any]] = []
        self._ranked: Sequence[LayerCost] = ()

    def decide(self, method: str, *, repair: bool, max_drop: float | None) -> Decisions:
        """Returns what is best.

        Args:
            method: A threshold method, or ``auto``.
            repair: Whether weights, biases and channels may be changed.
            max_drop: Loss of accuracy above which layers are left in float; None leaves none.
        """
        main = self._main
        evidence, equalize = self._best_side(main) if repair else (self._plain, 0.0)
        methods = self._methods(evidence, main) if method == "auto" else dict.fromkeys(evidence.observations, method)
        decisions = untried(evidence.graph, evidence.observations, methods)
        ranges = decisions.ranges
        repairs = {target.name: Repairs() for target in TARGETS}
        if repair:
            repairs[main.name] = self._repairs(evidence, ranges, main, _REPAIRS)
            for target in TARGETS:
                twin = self._twin(evidence, target)
                if twin is not None:
                    repairs[target.name] = repairs[twin.name]
                elif target is not main and repairs[main.name] != Repairs():
                    repairs[target.name] = self._repairs(evidence, ranges, target, (repairs[main.name],))
        decisions = replace(decisions, equalize=equalize, repairs=repairs)
        if max_drop is not None:
            decisions = self._spared(evidence, decisions, max_drop)
        return replace(decisions, trials=tuple(self._trials))

    def _score(
        self,
        what: str,
        evidence: Evidence,
        placement: Placement,
        ranges: Mapping[str, Range],
        target: Target,
        repairs: Repairs = _NO_REPAIR,
    ) -> Score:
        model = self._built(evidence, placement, ranges, target, repairs)
        score = self._judge.score(model)
        self._trials.append({"target": target.name, "what": what, **score.to_dict()})
        self._progress("trials", len(self._trials), 0)
        return score

    def _built(
        self, evidence: Evidence, placement: Placement, ranges: Mapping[str, Range], target: Target, repairs: Repairs
    ) -> onnx.ModelProto:
        return quantize_graph(evidence.graph, placement, ranges, target, evidence.layers(ranges, target, repairs))

    def _best_side(self, target: Target) -> tuple[Evidence, float]:
        """Returns the graph as it is or equalized, whichever INT8 hurts less after its biases are corrected."""
        other = self._plain.equalized(EQUALIZE)
        if other is self._plain:
            return self._plain, 0.0
        scores = []
        for what, evidence in (("as it is", self._plain), ("equalized", other)):
            methods = dict.fromkeys(evidence.observations, _FOR_SIDES)
            ranges = untried(evidence.graph, evidence.observations, methods).ranges
            placement = evidence.place(target)
            scores.append(self._score(what, evidence, placement, ranges, target, Repairs(True, "analytic")))
        return (other, EQUALIZE) if scores[1].sqnr_db > scores[0].sqnr_db + _EARNS_DB else (self._plain, 0.0)

    def _methods(self, evidence: Evidence, target: Target) -> dict[str, str]:
        """Returns the best threshold method for each group of tensors, weights left in float meanwhile."""
        whole = evidence.place(target)
        alone = Placement(whole.edges, (), whole.results, whole.spared)

        def ranges_by(methods: Mapping[str, str]) -> Mapping[str, Range]:
            return untried(evidence.graph, evidence.observations, methods).ranges

        def score(what: str, ranges: Mapping[str, Range]) -> Score:
            return self._score(f"thresholds: {what}", evidence, alone, ranges, target)

        uniform = {m: ranges_by(dict.fromkeys(evidence.observations, m)) for m in METHODS}
        everywhere = {m: score(m, uniform[m]) for m in METHODS}
        first = max(METHODS, key=lambda method: everywhere[method].sqnr_db)
        methods, best, ranges = dict.fromkeys(evidence.observations, first), everywhere[first], uniform[first]
        others = [m for m in METHODS if best.sqnr_db - _HOPELESS_DB < everywhere[m].sqnr_db and m != first]
        for group, names in _tensor_groups(evidence.graph, whole.tensors(evidence.graph)).items():
            for method in others:
                tried = {**methods, **dict.fromkeys(names, method)}
                following = ranges_by(tried)
                if _are_alike(following, ranges):
                    continue
                found = score(f"{method} for {group}", following)
                if _helps(found, best):
                    methods, best, ranges = tried, found, following
        return methods

    def _repairs(
        self, evidence: Evidence, ranges: Mapping[str, Range], target: Target, candidates: Iterable[Repairs]
    ) -> Repairs:
        placement = evidence.place(target)
        chosen = Repairs()
        best = self._score("no repair", evidence, placement, ranges, target)
        for repairs in candidates:
            what = f"{'compensated' if repairs.compensate else 'plain'} rounding, {repairs.correct} bias correction"
            found = self._score(what, evidence, placement, ranges, target, repairs)
            if _helps(found, best):
                chosen, best = repairs, found
        return chosen

    def _spared(self, evidence: Evidence, decisions: Decisions, max_drop: float) -> Decisions:
        """Spares the smallest set for each target, and ranks the layers if one is not good enough as it is."""
        found: dict[str, tuple[tuple[str, ...], bool]] = {}
        spared: dict[str, tuple[str, ...]] = {}
        for target in TARGETS:
            twin = self._twin(evidence, target)
            if twin is not None:
                found[target.name] = found[twin.name]
            else:
                found[target.name] = self._smallest_set(target, evidence, decisions, max_drop)
            names, is_optional = found[target.name]
            is_dropped = names and is_optional and self._is_slower(target, evidence, decisions, names)
            spared[target.name] = () if is_dropped else names
        return replace(decisions, spared=spared, ranking=tuple(self._ranked))

    def _smallest_set(
        self, target: Target, evidence: Evidence, decisions: Decisions, max_drop: float
    ) -> tuple[tuple[str, ...], bool]:
        """Returns the set, and whether the accuracy would hold without it."""
        scores: dict[tuple[str, ...], Score] = {}

        def evaluate(names: Sequence[str]) -> Score:
            what = f"{len(names)} layers in float" if names else "everything in INT8"
            placement, repairs = evidence.place(target, names), decisions.repairs[target.name]
            score = self._score(what, evidence, placement, decisions.ranges, target, repairs)
            scores[tuple(names)] = score
            return score

        names = smallest_set(lambda: self._ranking(evidence, decisions), evaluate, max_drop)
        return names, scores[()].may_drop(max_drop)

    def _is_slower(self, target: Target, evidence: Evidence, decisions: Decisions, names: tuple[str, ...]) -> bool:
        """Tells whether the graph with some layers in float was measured no faster than that with none."""

        def measured(spared: tuple[str, ...]) -> float | None:
            placement, repairs = evidence.place(target, spared), decisions.repairs[target.name]
            return self._measure(target.name, self._built(evidence, placement, decisions.ranges, target, repairs))

        whole = measured(())
        mixed = None if whole is None else measured(names)
        return whole is not None and mixed is not None and whole <= mixed

    def _twin(self, evidence: Evidence, target: Target) -> Target | None:
        """Returns an earlier target whose graph answers alike: int8 and uint8 of equal placement differ in offset."""
        for earlier in TARGETS[: TARGETS.index(target)]:
            if earlier.symmetric == target.symmetric and evidence.place(earlier) == evidence.place(target):
                return earlier
        return None

    def _ranking(self, evidence: Evidence, decisions: Decisions) -> Sequence[LayerCost]:
        """Returns what each layer costs on the TensorRT form, found out once."""
        if not self._ranked:
            target = self._main
            layers = evidence.layers(decisions.ranges, target, decisions.repairs[target.name])
            self._ranked = rank_layers(
                evidence.graph,
                evidence.place(target),
                lambda placement: quantize_graph(evidence.graph, placement, decisions.ranges, target, layers),
                self._judge,
                lambda done, total: self._progress("layer by layer", done, total),
            )
        return self._ranked

    def spare_more(self, decisions: Decisions, target: Target) -> Decisions | None:
        """Returns the decisions with twice as many layers in float, or None where half of the network is already."""
        self._ranked = self._ranked or list(decisions.ranking)
        ranking = self._ranking(self._plain.equalized(decisions.equalize), decisions)
        now = decisions.spared.get(target.name, ())
        more = affordable(ranking, LARGEST_SHARE)[: max(1, 2 * len(now))]
        if len(more) <= len(now):
            return None
        spared = {**decisions.spared, target.name: tuple(cost.layer for cost in more)}
        return replace(decisions, spared=spared, ranking=tuple(ranking))


def _helps(found: Score, best: Score) -> bool:
    return found.sqnr_db > best.sqnr_db + _HELPS_DB


def _are_alike(ranges: Mapping[str, Range], others: Mapping[str, Range]) -> bool:
    """Tells whether no range differs by more than a few percent, so that no trial could tell them apart."""
    return all(
        abs(a - b) <= _ALIKE * max(abs(a), abs(b))
        for name, limits in ranges.items()
        for a, b in zip(limits, others[name], strict=True)
    )


def _tensor_groups(graph: Graph, names: Iterable[str]) -> dict[str, list[str]]:
    """Returns groups of alike tensors: what made them, in the first or second half of the network."""
    names = sorted(names, key=lambda name: graph.depth[name])
    deepest = max((graph.depth[name] for name in names), default=0)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        producer = graph.producer.get(name)
        half = "early" if graph.depth[name] <= deepest / 2 else "late"
        groups[f"{half} {producer.op_type if producer is not None else 'input'}"].append(name)
    return dict(groups)
