"""Accuracy against latency: which variants no other beats in both, and the chart that shows it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetl.report.charts import axis
from edgetl.report.drawing import FONT, WIDTH, canvas, colour, drawn, fitted, svg_from_figure, width_of
from edgetl.report.placing import Box, places

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Point", "front", "scatter"]

_HEIGHT = 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 12.0, 34.0, 40.0
_RADIUS = 5.0
_HIGHEST = 100.0  # percent
_LONGEST_NAME = 160.0


@dataclass(frozen=True)
class Point:
    """One variant: milliseconds, percent, and the colour it has in every chart."""

    label: str
    ms: float
    percent: float
    colour: str


def front(points: Sequence[Point]) -> list[int]:
    """Returns the indices of the points that no other beats, from the fastest to the most accurate.

    One beats another that is at least as fast and as accurate, and better in one of the two.
    """
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i].ms, -points[i].percent)):
        if not found or points[i].percent > points[found[-1]].percent:
            found.append(i)
    return found


@drawn
def scatter(points: Sequence[Point], label: str) -> str:
    """Draws the points with their names, those of the front filled and joined by stairs."""
    figure, axes = canvas(_HEIGHT, left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM)
    best = front(points)
    x_limits = _limits([p.ms for p in points], 0.1, 0.2)
    low, high = _limits([p.percent for p in points], 1.0, 0.16)
    y_limits = low, min(high, _HIGHEST + (_HIGHEST - low) * 0.12)  # a name may stand above all that is possible
    axes.set_xlim(*x_limits)
    axes.set_ylim(*y_limits)
    axis(axes, "x", "median latency, ms", x_limits)
    axis(axes, "y", "", y_limits)
    axes.set_yticks([tick for tick in axes.get_yticks() if y_limits[0] <= tick <= min(y_limits[1], _HIGHEST)])
    figure.text(0, 1 - 4 / _HEIGHT, "top-1, %", va="top", color=colour("muted"))
    stairs = _stairs([points[i] for i in best], x_limits[1], y_limits[0])
    axes.plot(*zip(*stairs, strict=True), color=colour("muted"), linewidth=1.2, dashes=(4, 3))
    for i, point in enumerate(points):
        face = colour(point.colour if i in best else "paper")
        edge = colour(point.colour)
        axes.plot(point.ms, point.percent, "o", markersize=8, color=face, markeredgecolor=edge, markeredgewidth=1.8)
    _name(axes, points, stairs)
    return svg_from_figure(figure, label)


def _limits(values: Sequence[float], least: float, share: float) -> tuple[float, float]:
    """Returns limits with room around the values for their names; never below zero."""
    low, high = min(values), max(values)
    room = max((high - low) * share, least * abs(high) * 0.05, 1e-3)
    return max(0.0, low - room), high + room


def _stairs(best: Sequence[Point], right: float, bottom: float) -> list[tuple[float, float]]:
    """Returns the corners of the line below and right of which nothing is best."""
    corners = [(best[0].ms, bottom)]
    for point in best:
        corners += [(point.ms, corners[-1][1]), (point.ms, point.percent)]
    return [*corners, (right, best[-1].percent)]


def _name(axes: Axes, points: Sequence[Point], stairs: Sequence[tuple[float, float]]) -> None:
    """Writes each name at the nearest free place; one that is away from its point gets a line to it."""
    names = [fitted(point.label, _LONGEST_NAME) for point in points]
    at = _pixels(axes, [(point.ms, point.percent) for point in points])
    corners = _pixels(axes, stairs)
    blocked = [
        Box(min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)
        for a, b in itertools.pairwise(corners)
    ]
    frame = Box(_LEFT - 4, _BOTTOM, WIDTH, _HEIGHT - _TOP + 12)
    found = places(at, [width_of(name) for name in names], FONT * 1.2, frame, _RADIUS, blocked)
    for name, (x, y), place in zip(names, at, found, strict=True):
        if place is None:
            continue
        near = (min(max(x, place.x0), place.x1), min(max(y, place.y0), place.y1))
        if math.hypot(near[0] - x, near[1] - y) > 3 * _RADIUS:
            axes.annotate(
                "", near, (x, y), xycoords="figure pixels", textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "color": colour("muted"), "linewidth": 0.8},
            )  # fmt: skip
        axes.annotate(name, (place.x0, place.y0 + FONT * 0.3), xycoords="figure pixels", va="baseline")


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns points of the axes in the chart's units."""
    return [(float(x), float(y)) for x, y in (axes.transData.transform(point) for point in points)]
