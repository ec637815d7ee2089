"""What calibration pictures show of a float graph, found out when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgetl.quantize.calibration import Repairs
from edgetl.quantize.equalize import channel_groups, equalized, factors_of
from edgetl.quantize.graph import Graph
from edgetl.quantize.moments import Moments, ScaledMoments, geometry_of, input_moments
from edgetl.quantize.observe import Observation, observe
from edgetl.quantize.pictures import Pictures
from edgetl.quantize.placement import Placement, place
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
        on_progress: Called with (stage, done, total); a total of 0 is unknown.
        moments: Gives the layers' moments where they follow from another graph's.
    """

    def __init__(
        self,
        graph: Graph,
        pictures: Pictures,
        keep_float: Sequence[str],
        on_progress: Progress,
        moments: Callable[[], Mapping[str, Moments]] | None = None,
    ) -> None:
        self.graph = graph
        self._derived = moments
        self._pictures = pictures
        self._keep = tuple(keep_float)
        self._progress = on_progress
        self._placed: dict[tuple[str, tuple[str, ...]], Placement] = {}
        self._equalized: dict[float, Evidence] = {}
        self._rounded: dict[bool, Mapping[str, QuantizedLayer]] = {}
        self._repaired: dict[tuple[str, Repairs], tuple[Mapping[str, Range], Mapping[str, QuantizedLayer]]] = {}

    def place(self, target: Target, spared: Iterable[str] = ()) -> Placement:
        """Returns where a target's quantizers go, the spared layers left out."""
        key = (target.name, tuple(spared))
        if key not in self._placed:
            self._placed[key] = place(self.graph, target, self._keep, key[1])
        return self._placed[key]

    @property
    def tensors(self) -> set[str]:
        """The activations that any target quantizes."""
        return {name for target in TARGETS for name in self.place(target).tensors(self.graph)}

    @property
    def _learned(self) -> int:
        return self._pictures.count - judged_of(self._pictures.count)

    @cached_property
    def observations(self) -> dict[str, Observation]:
        """What the tensors look like."""
        return self.observed_in(self._pictures.batches(0, self._learned), self._learned)

    def observed_in(self, batches: Iterable[NDArray[np.uint8]], total: int = 0) -> dict[str, Observation]:
        """Returns what the tensors look like in some pictures.

        Args:
            batches: uint8 (N, H, W, C).
            total: How many pictures there are, 0 where nobody knows.
        """
        return observe(
            self.graph.model, self.tensors, batches, on_progress=lambda done: self._progress("ranges", done, total)
        )

    @cached_property
    def moments(self) -> Mapping[str, Moments]:
        """First and second moments of the input of each layer that any target quantizes."""
        if self._derived is not None:
            return self._derived()
        weighted = {name for target in TARGETS for name in self.place(target).weights}
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
        tensors = self.place(target).tensors(self.graph)
        batches = self._pictures.batches(0, min(self._learned, _SHIFT_PICTURES))
        return input_shifts(self.graph, {name: ranges[name] for name in tensors}, target, batches)

    def equalized(self, strength: float) -> Evidence:
        """Returns the same for the graph with equalized channels, or this where there is nothing to equalize.

        Behind a Clip, channels are raised half as far: the other half is room for pictures that nobody has seen.
        """
        if strength not in self._equalized:
            self._equalized[strength] = self._equalize(strength) if strength else self
        return self._equalized[strength]

    def _equalize(self, strength: float) -> Evidence:
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
            return self
        model = Graph(equalized(self.graph, factors, groups))
        of_tensor = {name: factors[i] for i, group in enumerate(groups) if i in factors for name in group.tensors}
        of_node = {n.name: of_tensor[n.input[0]] for n in self.graph.nodes if n.input and n.input[0] in of_tensor}
        return Evidence(model, self._pictures, self._keep, self._progress, lambda: ScaledMoments(self.moments, of_node))
