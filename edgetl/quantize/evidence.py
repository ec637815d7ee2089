"""What calibration pictures show of a float graph, found out when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize.calibration import Repairs
from edgetl.quantize.equalize import channel_groups, equalized, factors_of
from edgetl.quantize.graph import Graph
from edgetl.quantize.moments import Moments, geometry_of, input_moments
from edgetl.quantize.observe import Observation, observe
from edgetl.quantize.pictures import Pictures
from edgetl.quantize.placement import place
from edgetl.quantize.repair import corrected_biases, rounded_layers
from edgetl.quantize.rewrite import QuantizedLayer, Range
from edgetl.quantize.shifts import input_shifts
from edgetl.quantize.targets import TARGETS, Target

__all__ = ["Evidence", "Progress", "judged_of"]

Progress = Callable[[str, int, int], None]

_LARGEST_JUDGED = 64
_FEWEST_JUDGED = 4
_MOMENT_PICTURES = 128
_SHIFT_PICTURES = 64


def judged_of(count: int) -> int:
    """Returns how many of the pictures are reserved for judging: a quarter, 64 at most, none where that is too few."""
    judged = min(_LARGEST_JUDGED, count // 4)
    return judged if judged >= _FEWEST_JUDGED else 0


class Evidence:
    """One float graph and the pictures that are not reserved for judging.

    Args:
        graph: FP32.
        pictures: All of them; the last ones are reserved.
        keep_float: Patterns of what stays in float.
        on_progress: Called with (stage, done, total).
        derived: Gives the moments where they follow from another graph's.
    """

    def __init__(
        self,
        graph: Graph,
        pictures: Pictures,
        keep_float: Sequence[str],
        on_progress: Progress,
        derived: Callable[[], dict[str, Moments]] | None = None,
    ) -> None:
        self.graph = graph
        self._derived = derived
        self._pictures = pictures
        self._keep = tuple(keep_float)
        self._progress = on_progress
        self._learned = pictures.count - judged_of(pictures.count)
        self._rounded: dict[bool, Mapping[str, QuantizedLayer]] = {}
        self._repaired: dict[tuple[str, Repairs], tuple[Mapping[str, Range], Mapping[str, QuantizedLayer]]] = {}

    @cached_property
    def observations(self) -> dict[str, Observation]:
        """What each tensor that any target quantizes looks like."""
        names: set[str] = set()
        for target in TARGETS:
            names |= place(self.graph, target, self._keep).tensors(self.graph)
        batches = self._pictures.batches(0, self._learned)
        return observe(
            self.graph.model, names, batches, on_progress=lambda done: self._progress("ranges", done, self._learned)
        )

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """First and second moments of the input of each layer that any target quantizes."""
        if self._derived is not None:
            return self._derived()
        weighted = {name for target in TARGETS for name, _ in place(self.graph, target, self._keep).weights}
        nodes = [n for n in self.graph.nodes if n.name in weighted and geometry_of(self.graph, n) is not None]
        count = min(self._learned, _MOMENT_PICTURES)
        self._progress("second moments", 0, count)
        found = input_moments(self.graph.model, nodes, lambda: self._pictures.batches(0, count))
        self._progress("second moments", count, count)
        return found

    def layers(self, ranges: Mapping[str, Range], target: Target, repairs: Repairs) -> Mapping[str, QuantizedLayer]:
        """Returns the repaired layers for a target; those that are missing are rounded plainly."""
        if repairs == Repairs():
            return {}
        made_for, layers = self._repaired.get((target.name, repairs), ({}, {}))
        if made_for != ranges:
            layers = self._repair(ranges, target, repairs)
            self._repaired[target.name, repairs] = (dict(ranges), layers)
        return layers

    def _repair(self, ranges: Mapping[str, Range], target: Target, repairs: Repairs) -> Mapping[str, QuantizedLayer]:
        if repairs.compensate not in self._rounded:
            nodes = [node for node in self.graph.nodes if node.name in self.moments]
            self._rounded[repairs.compensate] = rounded_layers(
                self.graph, nodes, self.moments, compensate=repairs.compensate
            )
        rounded = self._rounded[repairs.compensate]
        if repairs.correct == "none":
            return rounded
        shifts = self._shifts(ranges, target) if repairs.correct == "empirical" else None
        return corrected_biases(self.graph, rounded, self.moments, shifts)

    def _shifts(self, ranges: Mapping[str, Range], target: Target) -> dict[str, NDArray[np.float64]]:
        tensors = place(self.graph, target, self._keep).tensors(self.graph)
        batches = self._pictures.batches(0, min(self._learned, _SHIFT_PICTURES))
        return input_shifts(self.graph, {name: ranges[name] for name in tensors}, target, batches)

    @cache  # noqa: B019  (lives as long as the calibration does)
    def equalized(self, strength: float) -> Evidence | None:
        """Returns the same for the graph with equalized channels, or None where there is nothing to equalize.

        Behind a Clip, channels are raised half as far: the other half is room for pictures that nobody has seen.
        """
        groups = channel_groups(self.graph)
        factors: dict[int, NDArray[np.float64]] = {}
        for index, group in enumerate(groups):
            seen = [self.observations[name].peaks for name in group.tensors if name in self.observations]
            peaks = [np.asarray(peak, np.float64) for peak in seen if peak is not None]
            raised = factors_of(peaks, strength) if peaks else np.ones(1)
            raised = np.maximum(raised / 2, 1.0) if group.only_louder else raised
            if np.ptp(raised) > 0:
                factors[index] = raised
        if not factors:
            return None
        taken = {name: factors[i] for i, group in enumerate(groups) if i in factors for name in group.tensors}
        inputs = {node.name: node.input[0] for node in self.graph.nodes if node.input}

        def derived() -> dict[str, Moments]:
            return {
                name: found.scaled(taken[inputs[name]]) if inputs[name] in taken else found
                for name, found in self.moments.items()
            }

        model = Graph(equalized(self.graph, factors, groups))
        return Evidence(model, self._pictures, self._keep, self._progress, derived)
