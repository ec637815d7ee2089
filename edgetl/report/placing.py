"""Where labels go, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Box", "places", "spaced"]

_STEPS = 12
_MARGIN = 2.0


@dataclass(frozen=True)
class Box:
    """A rectangle, by its lower left and upper right corners."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box) -> bool:
        """Tells whether the two share any area."""
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def within(self, other: Box) -> bool:
        """Tells whether this lies inside the other."""
        return other.x0 <= self.x0 and self.x1 <= other.x1 and other.y0 <= self.y0 and self.y1 <= other.y1


def places(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    frame: Box,
    radius: float,
    blocked: Sequence[Box] = (),
) -> list[Box | None]:
    """Returns a free place for the label of each point, the nearest that there is, or None where all are taken.

    Args:
        points: (x, y) of each.
        widths: Of each label.
        height: Of every label.
        frame: Where labels may be.
        radius: Of the points themselves, which no label may cover.
        blocked: What else no label may cover.
    """
    taken = [*blocked, *(Box(x - radius, y - radius, x + radius, y + radius) for x, y in points)]
    found: list[Box | None] = []
    for (x, y), width in zip(points, widths, strict=True):
        free = (box for box in _candidates(x, y, width, height, radius) if box.within(frame))
        place = next((box for box in free if not any(box.overlaps(other) for other in taken)), None)
        found.append(place)
        if place is not None:
            taken.append(place)
    return found


def _candidates(x: float, y: float, width: float, height: float, radius: float) -> list[Box]:
    """Returns places right, left, above and below a point, then farther and farther ones."""
    near = radius + _MARGIN
    spots = []
    for step in range(_STEPS):
        shift = step * height * 0.6
        for up in (0.0,) if not step else (shift, -shift):
            spots += [(x + near, y + up - height / 2), (x - near - width, y + up - height / 2)]
        away = near + shift
        for left in (x - width / 2, x - width * 0.15, x - width * 0.85):
            spots += [(left, y + away), (left, y - away - height)]
    return [Box(left, bottom, left + width, bottom + height) for left, bottom in spots]


def spaced(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Returns positions near the wanted ones, in the same order, at least ``gap`` apart and between the limits.

    Where there is not enough room they stand evenly over all of it.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    found = [0.0] * len(wanted)
    edge = low
    for i in order:  # upwards, each clear of the one below it
        found[i] = max(wanted[i], edge)
        edge = found[i] + gap
    edge = high
    for i in reversed(order):  # and back, whatever went too far
        found[i] = min(found[i], edge)
        edge = found[i] - gap
    return found
