"""The charts of a report, as SVG to stand in a page. Every one is direct: names stand at what they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.report.drawing import FONT, WIDTH, canvas, colour, drawn, fitted, svg_from_figure, width_of
from edgetl.report.placing import spaced
from edgetl.report.units import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Bar", "Line", "Spread", "axis", "bars", "curves", "matrix", "spreads"]

_ROW = 34.0
_GAP = 12.0
_LOG_FROM = 12.0  # times between the smallest and the largest: beyond, a logarithmic axis shows both
_FEW = 40  # values: fewer are drawn one by one
_BINS = 72
_NUMBERED = 12  # classes up to which a confusion matrix shows its counts
_RIGHT, _WRONG = (0.16, 0.50, 0.78), (0.86, 0.42, 0.12)  # blue and orange, as s1 and s2, between light and dark
_SEPARATE = 12  # points up to which each is marked


@dataclass(frozen=True)
class Bar:
    """A row of `bars`.

    Attributes:
        label: What it is of.
        parts: Lengths and colours, stacked from the left.
        text: The value, in words.
    """

    label: str
    parts: Sequence[tuple[float, str]]
    text: str


@dataclass(frozen=True)
class Spread:
    """A row of `spreads`: values, in the axis's unit, their colour, and their summary in words."""

    label: str
    values: NDArray[np.float64]
    colour: str
    text: str


@dataclass(frozen=True)
class Line:
    """A line of `curves`, named at its end."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dashed: bool = False


@drawn
def bars(rows: Sequence[Bar], label: str, *, largest: float | None = None) -> str:
    """Draws rows of a name, a value and a bar below; all begin at zero and share one scale, up to ``largest``."""
    height = _ROW * len(rows) + 4
    figure, axes = canvas(height, left=0, right=0, top=0, bottom=0)
    sums = [sum(max(0.0, size) for size, _ in row.parts) for row in rows]
    largest = largest or max(sums, default=0.0) or 1.0
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for number, row in enumerate(rows):
        _named(axes, number * _ROW + 13, row.label, row.text)
        top = number * _ROW + 19
        axes.barh(top + 4, WIDTH, 8, color=colour("line"), alpha=0.5)
        left = 0.0
        for size, name in row.parts:
            length = max(0.0, size) / largest * WIDTH
            axes.barh(top + 4, length, 8, left=left, color=colour(name), edgecolor=colour("paper"), linewidth=0.6)
            left += length
    return svg_from_figure(figure, label)


def _named(axes: Axes, y: float, label: str, text: str) -> None:
    """Writes a row's name at the left and its value at the right."""
    room = WIDTH - width_of(text) - _GAP
    axes.text(0, y, fitted(label, room), va="baseline")
    axes.text(WIDTH, y, text, ha="right", va="baseline", color=colour("muted"))


@drawn
def spreads(rows: Sequence[Spread], unit: str, label: str) -> str:
    """Draws how values are distributed, row by row on one axis; a stroke marks each row's median.

    Many values give a shape whose height is their density (each row's own scale), few are drawn one by one.
    """
    row, foot = 52.0, 34.0
    height = row * len(rows) + foot
    figure, axes = canvas(height, left=6, right=6, top=0, bottom=foot)
    every = np.concatenate([r.values for r in rows])
    low, high = float(every.min()), float(every.max())
    logarithmic = low > 0 and high / low > _LOG_FROM
    room = (high - low) * 0.03 or abs(high) * 0.05 or 1.0
    limits = (low / 1.1, high * 1.1) if logarithmic else (max(0.0, low - room), high + room)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(row * len(rows), 0)
    axis(axes, "x", unit + (", logarithmic" if logarithmic else ""), limits, logarithmic=logarithmic)
    axes.set_yticks([])
    to_names = axes.get_yaxis_transform()
    for number, r in enumerate(rows):
        base = number * row + 46
        text_room = WIDTH - 12 - width_of(r.text) - _GAP
        axes.text(0, base - 33, fitted(r.label, text_room), transform=to_names)
        axes.text(1, base - 33, r.text, ha="right", color=colour("muted"), transform=to_names)
        axes.plot(limits, (base, base), color=colour("line"), linewidth=1)
        if len(r.values) < _FEW:
            axes.vlines(r.values, base - 12, base, color=colour(r.colour), linewidth=1.2, alpha=0.8)
        else:
            x, density = _density(r.values, limits, logarithmic=logarithmic)
            axes.fill_between(x, base - 26 * density, base, color=colour(r.colour), alpha=0.55, linewidth=0)
        median = float(np.median(r.values))
        axes.vlines(median, base - 26, base + 2, color=colour("ink"), linewidth=1.4)
    return svg_from_figure(figure, label)


def _density(
    values: NDArray[np.float64], limits: tuple[float, float], *, logarithmic: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns a smoothed histogram whose peak is 1, over bins that are equal on the axis as drawn."""
    first, last = np.log(limits) if logarithmic else limits
    edges = np.linspace(float(first), float(last), _BINS + 1)
    counts = np.histogram(np.log(values) if logarithmic else values, edges)[0].astype(np.float64)
    smooth = np.convolve(counts, (0.25, 0.5, 0.25), mode="same")
    centres = (edges[:-1] + edges[1:]) / 2
    used = np.flatnonzero(smooth)
    kept = slice(max(0, used[0] - 1), used[-1] + 2)  # nothing is drawn where nothing was measured
    return (np.exp(centres) if logarithmic else centres)[kept], (smooth / smooth.max())[kept]


def axis(
    axes: Axes, which: str, name: str, limits: tuple[float, float], *, logarithmic: bool = False, whole: bool = False
) -> None:
    """Gives an axis a few round ticks, a faint grid and its name; ``whole`` ticks are integers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    drawn_axis = getattr(axes, f"{which}axis")
    if not logarithmic:
        drawn_axis.set_major_locator(
            MaxNLocator(5, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole)
        )
    elif limits[1] / limits[0] > 200:
        drawn_axis.set_major_locator(LogLocator(numticks=8))
    else:
        drawn_axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    drawn_axis.set_minor_locator(NullLocator())
    drawn_axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    drawn_axis.grid(visible=True, color=colour("line"), linewidth=0.8)
    drawn_axis.set_label_text(name, color=colour("muted"))


@drawn
def curves(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    label: str,
    *,
    ticks: Sequence[float] = (),
    parts: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """Draws lines, each named at its right end.

    Args:
        lines: What is drawn.
        x_name: With the unit.
        y_name: With the unit.
        label: Tells what the chart shows.
        ticks: Of x, which is then logarithmic; empty for round numbers.
        parts: Where a stretch of x begins, and its name.
        from_zero: Whether y begins at zero.
    """
    names = [fitted(line.label, 130) for line in lines]
    height, top, foot = 230.0, 34.0, 40.0
    right = max((width_of(name) for name in names), default=0.0) + 12
    figure, axes = canvas(height, left=40, right=right, top=top, bottom=foot)
    for line in lines:
        style = (0, (4, 3)) if line.dashed else "-"
        axes.plot(line.xs, line.ys, color=colour(line.colour), linewidth=1.8, linestyle=style, solid_capstyle="round")
        if len(line.xs) <= _SEPARATE:
            axes.plot(line.xs, line.ys, "o", color=colour(line.colour), markersize=4)
    axes.margins(x=0.02)
    if from_zero:
        axes.set_ylim(bottom=0)
    axis(axes, "y", "", axes.get_ylim())
    if ticks:
        axes.set_xscale("log")
        axis(axes, "x", x_name, axes.get_xlim(), logarithmic=True)
        axes.set_xticks(ticks, [plain(tick) for tick in ticks])
    else:
        axis(axes, "x", x_name, axes.get_xlim(), whole=True)
    figure.text(0, 1 - 4 / height, y_name, va="top", color=colour("muted"))
    _name_ends(axes, lines, names, height - top - foot)
    for begin, name in parts:
        axes.axvline(begin, color=colour("muted"), linewidth=1, dashes=(2, 2))
        at = float(axes.transData.transform((begin, 0.0))[0])
        side = "left" if at + width_of(name) + 4 < WIDTH else "right"
        axes.text(begin, 1.02, f" {name} ", ha=side, transform=axes.get_xaxis_transform(), color=colour("muted"))
    return svg_from_figure(figure, label)


def _name_ends(axes: Axes, lines: Sequence[Line], names: Sequence[str], height: float) -> None:
    low, high = axes.get_ylim()
    each = (high - low) / height
    ends = spaced([line.ys[-1] for line in lines], FONT * 1.25 * each, low, high)
    edge = axes.get_xlim()[1]
    for line, name, end in zip(lines, names, ends, strict=True):
        if not name:
            continue
        axes.annotate(name, (edge, end), (5, 0), textcoords="offset points", va="center_baseline")
        axes.plot((line.xs[-1], edge), (line.ys[-1], end), color=colour(line.colour), linewidth=0.8, clip_on=False)


@drawn
def matrix(counts: NDArray[np.int64], names: Sequence[str], label: str) -> str:
    """Draws a confusion matrix: rows are true classes, columns decisions.

    A cell's strength is its share of its row; the diagonal has one colour and errors have another. Up to 12
    classes the counts stand in the cells.
    """
    size = len(names)
    left = min(120.0, max(width_of(name) for name in names) + 10)
    side = WIDTH - left - 4
    cell = side / size
    every = -(-size // int(side / (FONT * 1.15)))  # so many classes share one name where they are many
    turned = max(width_of(name) for name in names) > cell - 4
    top = 22 + (min(100.0, max(width_of(name) for name in names)) if turned else FONT)
    figure, axes = canvas(side + top + 4, left=left, right=4, top=top, bottom=4)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.imshow(_cells(counts), interpolation="none", aspect="auto")
    axes.hlines((-0.5, size - 0.5), -0.5, size - 0.5, color=colour("line"), linewidth=1, clip_on=False)
    axes.vlines((-0.5, size - 0.5), -0.5, size - 0.5, color=colour("line"), linewidth=1, clip_on=False)
    if size <= _NUMBERED:
        for row, column in np.argwhere(counts > 0):
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center_baseline")
    shown = range(0, size, every)
    axes.set_yticks(shown, [fitted(names[i], left - 9) for i in shown], color=colour("ink"))
    axes.set_xticks(shown, [fitted(names[i], 100) for i in shown], rotation=90 if turned else 0, color=colour("ink"))
    axes.xaxis.tick_top()
    figure.text(0, 1 - 4 / (side + top + 4), "true ↓   decided →", va="top", color=colour("muted"))
    return svg_from_figure(figure, label)


def _cells(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns (C, C, 4) colours of cells: a picture, which stays small however many classes there are.

    It cannot follow the page's mode as lines do, so it is a veil over whatever the page is.
    """
    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = np.empty((size, size, 4))
    picture[..., :3] = np.where(np.eye(size, dtype=bool)[..., None], _RIGHT, _WRONG)
    picture[..., 3] = np.where(counts > 0, 0.1 + 0.6 * np.sqrt(shares), 0.0)
    return picture
