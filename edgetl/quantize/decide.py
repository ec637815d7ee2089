"""Decides how a graph becomes INT8: each choice is kept only where the reserved pictures say that it helps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
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
    methods = _without_gates(graph, methods)
    ranges = _ranges(graph, methods, lambda name, method: range_of(observations[name], method))
    observed = {name: (seen.low, seen.high) for name, seen in observations.items()}
    return Decisions(ranges, observed, methods)


def _without_gates(graph: Graph, methods: Mapping[str, str]) -> dict[str, str]:
    gates = {name for node in graph.nodes if node.op_type in _GATES for name in node.output}
    return {name: "max" if name in gates else method for name, method in methods.items()}


def _ranges(graph: Graph, methods: Mapping[str, str], range_by: Callable[[str, str], Range]) -> dict[str, Range]:
    ranges = {name: range_by(name, method) for name, method in methods.items()}
    for node in graph.nodes:  # a maximum changes no scale, and integer kernels insist on it
        if node.op_type == "MaxPool" and node.input[0] in ranges and node.output[0] in ranges:
            ranges[node.output[0]] = ranges[node.input[0]]
    return ranges


@dataclass(frozen=True)
class _Candidate:
    """One way to make a target's INT8 graph.

    Attributes:
        evidence: Of the float graph.
        target: Rules.
        ranges: By tensor.
        repairs: Of weights and biases.
        spared: Layers left in float for their cost.
        weights: Whether weights are quantized too.
    """

    evidence: Evidence
    target: Target
    ranges: Mapping[str, Range]
    repairs: Repairs = _NO_REPAIR
    spared: tuple[str, ...] = ()
    weights: bool = True

    def build(self, placement: Placement | None = None) -> onnx.ModelProto:
        """Returns the graph, quantized where a placement says, or everywhere."""
        placement = placement or self.evidence.place(self.target, self.spared)
        if not self.weights:
            placement = replace(placement, weights=())
        layers = self.evidence.layers(self.ranges, self.target, self.repairs)
        return quantize_graph(self.evidence.graph, placement, self.ranges, self.target, layers)


@dataclass(frozen=True)
class _Search:
    """For the smallest set of layers in float that is good enough.

    Attributes:
        best: It, or where none is good enough, the nearest.
        tried: All of them, none of the layers first.
    """

    best: tuple[str, ...]
    tried: Mapping[tuple[str, ...], Score]


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
        self._searched: dict[str, _Search] = {}

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
            repairs[main.name] = self._repairs(_Candidate(evidence, main, ranges), _REPAIRS)
            for target in TARGETS:
                twin = self._twin(evidence, target)
                if twin is not None:
                    repairs[target.name] = repairs[twin.name]
                elif target is not main and repairs[main.name] != Repairs():
                    repairs[target.name] = self._repairs(_Candidate(evidence, target, ranges), (repairs[main.name],))
        decisions = replace(decisions, equalize=equalize, repairs=repairs)
        if max_drop is not None:
            decisions = self._spared(evidence, decisions, max_drop)
        return replace(decisions, trials=tuple(self._trials))

    def _score(self, what: str, candidate: _Candidate) -> Score:
        score = self._judge.score(candidate.build())
        self._trials.append({"target": candidate.target.name, "what": what, **score.to_dict()})
        self._progress("trials", len(self._trials), 0)
        return score

    def _best_side(self, target: Target) -> tuple[Evidence, float]:
        """Returns the graph as it is or equalized, whichever INT8 hurts less after its biases are corrected."""
        other = self._plain.equalized(EQUALIZE)
        if other is self._plain:
            return self._plain, 0.0
        scores = []
        for what, evidence in (("as it is", self._plain), ("equalized", other)):
            methods = dict.fromkeys(evidence.observations, _FOR_SIDES)
            ranges = untried(evidence.graph, evidence.observations, methods).ranges
            scores.append(self._score(what, _Candidate(evidence, target, ranges, Repairs(True, "analytic"))))
        return (other, EQUALIZE) if scores[1].beats(scores[0], _EARNS_DB) else (self._plain, 0.0)

    def _methods(self, evidence: Evidence, target: Target) -> dict[str, str]:
        """Returns the best threshold method for each group of tensors, weights left in float meanwhile."""
        observations, graph = evidence.observations, evidence.graph
        range_by = cache(lambda name, method: range_of(observations[name], method))

        def ranges_by(methods: Mapping[str, str]) -> Mapping[str, Range]:
            return _ranges(graph, _without_gates(graph, methods), range_by)

        def score(what: str, ranges: Mapping[str, Range]) -> Score:
            return self._score(f"thresholds: {what}", _Candidate(evidence, target, ranges, weights=False))

        uniform = {m: ranges_by(dict.fromkeys(observations, m)) for m in METHODS}
        everywhere = {m: score(m, uniform[m]) for m in METHODS}
        first = max(METHODS, key=lambda method: everywhere[method].nearness)
        methods, best, ranges = dict.fromkeys(observations, first), everywhere[first], uniform[first]
        others = [m for m in METHODS if m != first and not best.beats(everywhere[m], _HOPELESS_DB)]
        for group, names in _tensor_groups(graph, evidence.place(target).tensors(graph)).items():
            for method in others:
                tried = {**methods, **dict.fromkeys(names, method)}
                following = ranges_by(tried)
                if _are_alike(following, ranges):
                    continue
                found = score(f"{method} for {group}", following)
                if found.beats(best, _HELPS_DB):
                    methods, best, ranges = tried, found, following
        return methods

    def _repairs(self, plain: _Candidate, choices: Iterable[Repairs]) -> Repairs:
        chosen = Repairs()
        best = self._score("no repair", plain)
        for repairs in choices:
            what = f"{'compensated' if repairs.compensate else 'plain'} rounding, {repairs.correct} bias correction"
            found = self._score(what, replace(plain, repairs=repairs))
            if found.beats(best, _HELPS_DB):
                chosen, best = repairs, found
        return chosen

    def _spared(self, evidence: Evidence, decisions: Decisions, max_drop: float) -> Decisions:
        """Spares layers for each target, and ranks them if one is not good enough as it is."""
        spared: dict[str, tuple[str, ...]] = {}
        for target in TARGETS:
            whole = _Candidate(evidence, target, decisions.ranges, decisions.repairs[target.name])
            twin = self._twin(evidence, target)
            found = self._search(whole, decisions, max_drop) if twin is None else self._searched[twin.name]
            self._searched[target.name] = found
            spared[target.name] = self._worth_its_time(whole, found)
        return replace(decisions, spared=spared, ranking=tuple(self._ranked))

    def _search(self, whole: _Candidate, decisions: Decisions, max_drop: float) -> _Search:
        scores: dict[tuple[str, ...], Score] = {}

        def evaluate(names: Sequence[str]) -> Score:
            what = f"{len(names)} layers in float" if names else "everything in INT8"
            scores[tuple(names)] = self._score(what, replace(whole, spared=tuple(names)))
            return scores[tuple(names)]

        best = smallest_set(lambda: self._ranking(whole.evidence, decisions), evaluate, max_drop)
        return _Search(best, scores)

    def _worth_its_time(self, whole: _Candidate, found: _Search) -> tuple[str, ...]:
        """Returns the best set; on a target that can be measured, the nearest that is no slower than all in INT8.

        There, accuracy is bought with time only where ``val`` asks for it, by `spare_more`.
        """

        def latency(names: tuple[str, ...]) -> float | None:
            return self._measure(whole.target.name, replace(whole, spared=names).build())

        all_in_int8 = latency(()) if found.best else None
        if all_in_int8 is None:
            return found.best
        for names in sorted(found.tried, key=lambda names: found.tried[names].nearness, reverse=True):
            if not names:
                break
            measured = latency(names)
            if measured is not None and measured <= all_in_int8:
                return names
        return ()

    def _twin(self, evidence: Evidence, target: Target) -> Target | None:
        """Returns an earlier target whose graph answers alike: int8 and uint8 of equal placement differ in offset."""
        for earlier in TARGETS[: TARGETS.index(target)]:
            if earlier.symmetric == target.symmetric and evidence.place(earlier) == evidence.place(target):
                return earlier
        return None

    def _ranking(self, evidence: Evidence, decisions: Decisions) -> Sequence[LayerCost]:
        """Returns what each layer costs on the TensorRT form, found out once."""
        if not self._ranked:
            main = self._main
            self._ranked = rank_layers(
                evidence.graph,
                evidence.place(main),
                _Candidate(evidence, main, decisions.ranges, decisions.repairs[main.name]).build,
                self._judge,
                lambda done, total: self._progress("layer by layer", done, total),
            )
        return self._ranked

    def spare_more(self, decisions: Decisions, target: Target) -> Decisions | None:
        """Returns the decisions with more layers in float, or None where half of the network is already.

        Those are the ones that the reserved pictures ask for, where latency forbade them, or else twice as many.
        """
        self._ranked = self._ranked or list(decisions.ranking)
        ranking = self._ranking(self._plain.equalized(decisions.equalize), decisions)
        now = decisions.spared.get(target.name, ())
        more = tuple(cost.layer for cost in affordable(ranking, LARGEST_SHARE, now)[: max(1, 2 * len(now))])
        if target.name in self._searched and len(self._searched[target.name].best) > len(now):
            more = self._searched[target.name].best
        if len(more) <= len(now):
            return None
        return replace(decisions, spared={**decisions.spared, target.name: more}, ranking=tuple(ranking))


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
