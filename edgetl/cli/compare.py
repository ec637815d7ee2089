"""``edgetl compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgetl.cli.options import PATH, emit_json, json_option

__all__ = ["compare"]


@click.command(short_help="Compare results of separate runs on one machine.")
@click.argument("results", nargs=-1, required=True, type=PATH, metavar="RESULT.json...")
@json_option
def compare(results: Sequence[Path], json_out: str | None) -> None:
    """Compare RESULTs that edgetl bench --json wrote, each with the first.

    Separate runs of one model differ by several percent, which the intervals show; edgetl bench --against tells
    smaller differences. Latencies of different machines are not compared.
    """
    from edgetl.bench import latency_ms, read_result
    from edgetl.bench.side_by_side import side_by_side
    from edgetl.cli.display import Display, percent, points

    display = Display(json_to_stdout=json_out == "-")
    pairs = side_by_side([read_result(path) for path in results])
    rows, found = [], []
    for pair in pairs:
        p50 = [None if (ms := latency_ms(entry.samples_ns)) is None else ms["p50"] for entry in (pair.then, pair.now)]
        top1 = [entry.accuracy["top1"] for entry in (pair.then, pair.now)]
        gain = None if top1[0] is None or top1[1] is None else top1[1] - top1[0]
        rows.append(
            [
                f"{results[pair.number]}: {pair.now.name}",
                *("" if ms is None else f"{ms:.2f}" for ms in p50),
                percent(top1[1]),
                points(gain),
                pair.text,
            ]
        )
        found.append(
            {
                "file": str(results[pair.number]),
                "bundle": pair.now.bundle,
                "variant": pair.now.variant,
                "engine": pair.now.engine,
                "comparison": None if pair.comparison is None else pair.comparison.to_dict(),
                "why_not": pair.why_not or None,
                "top1_gain": gain,
            }
        )
    columns = ("model", "first p50 ms", "its own", "top-1", "gain", "latency")
    display.table(f"compared with {results[0]}", columns, rows, text=1, wrap=True)
    emit_json(json_out, found)
