"""``edgetl bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetl.cli.options import emit_json, json_option

if TYPE_CHECKING:
    from edgetl.bench import Entry
    from edgetl.cli.display import Display

__all__ = ["bench", "show_results"]


@click.command(short_help="Compare bundles: accuracy, latency, size, memory, cold start.")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE[=DATA]...")
@click.option("--data", help="Pictures for bundles that name none of their own.")
@click.option("--variant", "variants", multiple=True, help="Only these variants; repeatable.")
@click.option("--engine", default="auto", show_default=True, help="auto or cpu.")
@click.option(
    "--processes", type=int, default=3, show_default=True, help="Fresh processes in which latency is measured."
)
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Of measuring in each process.")
@click.option("--threads", type=int, default=1, show_default=True, help="Per model while latency is measured.")
@json_option
def bench(
    bundles: Sequence[str],
    data: str | None,
    variants: Sequence[str],
    engine: str,
    processes: int,
    seconds: float,
    threads: int,
    json_out: str | None,
) -> None:
    """Compare every variant of the BUNDLEs on this machine.

    All of them are alive in one process and timed in turn, so that their ratio means something; the first is
    the reference. Accuracy is measured on the validation split of DATA.
    """
    from edgetl import host
    from edgetl.bench import BenchConfig, Contender, result_to_dict
    from edgetl.bench import bench as run_stage
    from edgetl.bundle import open_bundle
    from edgetl.cli.display import Display, open_data

    config = BenchConfig(tuple(variants), engine, processes, seconds, threads)
    with Display(json_to_stdout=json_out == "-") as display:
        opened: dict[str, Any] = {}
        contenders = []
        for name in bundles:
            path, _, own = name.partition("=")
            open_bundle(path)  # a wrong path is told before pictures are read
            source = own or data
            if source is not None and source not in opened:
                opened[source] = open_data(display, source)
            contenders.append(Contender(path, Path(path), opened[source] if source else None))
        facts = host.facts()
        entries = run_stage(contenders, config, on_progress=display.progress)
    show_results(display, entries)
    emit_json(json_out, result_to_dict(facts, entries))


def show_results(display: Display, entries: Sequence[Entry], names: Sequence[str] | None = None) -> None:
    """Prints a table of a benchmark, one row a variant."""
    from edgetl.bench import latency_ms
    from edgetl.cli.display import percent

    rows = []
    for number, entry in enumerate(entries):
        latency = latency_ms(entry.samples_ns)
        cold = entry.cold_start
        timings = (
            [f"{latency['p50']:.2f}", f"{latency['p90']:.2f}", f"{latency['p99']:.2f}", f"{1e3 / latency['mean']:.0f}"]
            if latency
            else ["", "", "", ""]
        )
        rows.append(
            [
                f"{names[number] if names else entry.bundle} {entry.variant}",
                percent(entry.accuracy["top1"]),
                percent(entry.accuracy["macro_f1"]),
                percent(entry.accuracy["flip_rate"]),
                *timings,
                "" if entry.latency_ratio is None else f"{entry.latency_ratio:.2f}",
                f"{entry.bytes / 1e6:.2f}",
                "" if cold is None else f"{cold['import_ms'] + cold['load_ms'] + cold['first_ms']:.0f}",
                "" if cold is None else f"{cold['peak_bytes'] / 1e6:.0f}",
            ]
        )
    columns = ("model", "top-1", "F1", "flips", "p50 ms", "p90", "p99", "img/s", "x first", "MB", "cold ms", "peak MB")
    display.table("one picture at a time, one thread", columns, rows)
    for entry in entries:
        for note in entry.notes:
            display.note(f"{entry.bundle} {entry.variant}: {note}")
