"""``edgetl history``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetl.cli.options import PATH, emit_json, json_option

if TYPE_CHECKING:
    from edgetl.bench.history import Change, Series
    from edgetl.cli.display import Display

__all__ = ["history"]

_BARS = "▁▂▃▄▅▆▇█"
_WIDEST = 72


@click.command(short_help="Draw the trend of a history, and name where it changed.")
@click.argument("file", type=PATH)
@click.option(
    "--metric",
    type=click.Choice(["p50", "p90", "top1", "size", "memory", "energy"]),
    multiple=True,
    default=("p50", "top1"),
    show_default=True,
    help="What to look at; repeatable.",
)
@json_option
def history(file: Path, metric: tuple[str, ...], json_out: str | None) -> None:
    """Draw the trend of every model in FILE, which edgetl bench --history wrote, and name the change points.

    A level is at least three runs long. Machines are never put together.
    """
    from edgetl.bench.history import changes, read_history
    from edgetl.cli.display import Display

    display = Display(json_to_stdout=json_out == "-")
    found = []
    for series in read_history(file):
        for name in metric:
            records, values = series.values(name)
            if not len(values):
                if name not in ("top1", "size") and any(
                    not record.get("valid", True) or record["machine"] is None for record in series.records
                ):
                    display.note(f"{series.name}, {name}: no run is valid and of a machine with /etc/machine-id")
                continue
            points = changes(values)
            _show(display, series, name, values, points, records)
            found.append(
                {
                    "series": series.name,
                    "machine": series.machine,
                    "metric": name,
                    "runs": len(values),
                    "values": values.tolist(),
                    "changes": [{**c.__dict__, **_where(records[c.at])} for c in points],
                }
            )
    emit_json(json_out, found)


def _where(record: dict[str, Any]) -> dict[str, Any]:
    return {"created": record["created"], "revision": record["revision"]}


def _show(
    display: Display, series: Series, metric: str, values: Any, points: list[Change], records: list[dict[str, Any]]
) -> None:
    from edgetl.bench.history import METRICS

    _, unit, _, more_is_worse = METRICS[metric]
    display.console.print(
        f"{series.name}, {metric}: {len(values)} runs, {values.min():.4g} to {values.max():.4g} {unit}, "
        f"last {values[-1]:.4g}"
    )
    display.console.print(f"  {_drawn(values, [point.at for point in points])}")
    if not points:
        display.console.print(f"  {'no change' if len(values) >= 6 else 'too few runs to see a change: six at least'}")
    for point in points:
        record = records[point.at]
        at = f"{record['created']}" + (f", {record['revision']}" if record["revision"] else "")
        worse = (point.after > point.before) == more_is_worse
        change = f"{point.after / point.before - 1:+.1%}, " if point.before else ""
        display.console.print(
            f"  changed at run {point.at + 1} ({at}): {point.before:.4g} -> {point.after:.4g} {unit} "
            f"({change}{'worse' if worse else 'better'})"
        )


def _drawn(values: Any, starts: list[int]) -> str:
    """Returns the last values as bars, a | before each new level."""
    first = max(0, len(values) - _WIDEST)
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    bars = []
    for index in range(first, len(values)):
        level = int((float(values[index]) - low) / span * (len(_BARS) - 1) + 0.5)
        bars.append(("|" if index in starts else "") + _BARS[level])
    return "".join(bars)
