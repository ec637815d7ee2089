"""``edgetl bench``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgetl.cli.options import RATE, emit_json, json_option

if TYPE_CHECKING:
    from edgetl.bench import Entry
    from edgetl.bundle import Bundle
    from edgetl.cli.display import Display
    from edgetl.dataset import Dataset

__all__ = ["bench", "show_results"]


@click.command(short_help="Compare bundles: accuracy, latency, size, memory, cold start.")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE[=DATA]...")
@click.option("--data", help="Pictures for bundles that name none of their own.")
@click.option(
    "--split",
    type=click.Choice(["val", "test", "all"]),
    help="Pictures of DATA to judge on.  [default: val; all, if DATA is itself a val/ or test/ folder]",
)
@click.option("--val-fraction", type=RATE, help="Where DATA has no split.  [default: as the bundle was exported]")
@click.option("--allow-leakage", is_flag=True, help="Accept the same picture in two splits.")
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
    split: str | None,
    val_fraction: float | None,
    allow_leakage: bool,
    variants: Sequence[str],
    engine: str,
    processes: int,
    seconds: float,
    threads: int,
    json_out: str | None,
) -> None:
    """Compare every variant of the BUNDLEs on this machine.

    All of them are alive in one process and timed in turn, so that their ratio means something; the first is
    the reference. Accuracy is measured on the validation split of DATA, split as when the bundle was exported.
    """
    from edgetl import host
    from edgetl.bench import BenchConfig, Contender, result_to_dict, settings_to_dict
    from edgetl.bench import bench as run_stage
    from edgetl.bundle import open_bundle
    from edgetl.cli.display import Display

    config = BenchConfig(tuple(variants), engine, processes, seconds, threads)
    with Display(json_to_stdout=json_out == "-") as display:
        judge = _Judge(display, split, val_fraction, allow_leakage)
        pairs = [_bundle_and_data(name, data) for name in bundles]
        opened = [open_bundle(path) for path, _ in pairs]  # a wrong path is told before pictures are read
        contenders = [
            Contender(path, Path(path), *(judge.data_for(bundle, source) if source else (None,)))
            for (path, source), bundle in zip(pairs, opened, strict=True)
        ]
        facts = host.facts()
        entries = run_stage(contenders, config, on_progress=display.progress)
    show_results(display, entries, threads)
    emit_json(json_out, result_to_dict(facts, entries, settings_to_dict(config, contenders)))


def _bundle_and_data(text: str, data: str | None) -> tuple[str, str | None]:
    """Splits BUNDLE=DATA; a path may hold an equals sign of its own."""
    if Path(text).exists():
        return text, data
    path, _, own = text.rpartition("=")
    return (path, own) if path else (text, data)


class _Judge:
    """Opens the data that each bundle is judged on: split as at its export, so that no training picture counts."""

    def __init__(self, display: Display, split: str | None, val_fraction: float | None, allow_leakage: bool) -> None:
        self._display = display
        self._split = split
        self._val_fraction = val_fraction
        self._allow_leakage = allow_leakage
        self._opened: dict[tuple[str, float, bool], Dataset] = {}

    def data_for(self, bundle: Bundle, source: str) -> tuple[Dataset, str]:
        """Returns the data set and the split to judge on."""
        from edgetl.cli.display import open_data
        from edgetl.dataset import VAL_FRACTION

        made = bundle.manifest["provenance"]
        fraction = self._val_fraction or made.get("val_fraction") or VAL_FRACTION
        key = (source, fraction, self._allow_leakage or bool(made.get("allow_leakage")))
        if key not in self._opened:
            self._opened[key] = open_data(self._display, source, val_fraction=key[1], allow_leakage=key[2])
        dataset, split = self._opened[key], self._split or _whole_or_val(source)
        if dataset.digest != made.get("dataset_digest") and split != "all":
            self._display.note(
                f"{bundle.root}: {source} is not, or no longer, the data it was exported with; if it was trained on "
                f"any of these pictures, the {split} figures flatter it"
            )
        return dataset, split


def _whole_or_val(source: str) -> str:
    """A folder val/ or test/ beside train/ is a split already."""
    folder = Path(source)
    return "all" if folder.name in ("val", "test") and (folder.parent / "train").is_dir() else "val"


def show_results(display: Display, entries: Sequence[Entry], threads: int = 1) -> None:
    """Prints a table of a benchmark, one row a variant."""
    from edgetl.bench import latency_ms
    from edgetl.cli.display import percent

    rows = []
    for entry in entries:
        latency = latency_ms(entry.samples_ns)
        cold = entry.cold_start
        timings = (
            [f"{latency['p50']:.2f}", f"{latency['p90']:.2f}", f"{latency['p99']:.2f}", f"{1e3 / latency['mean']:.0f}"]
            if latency
            else ["", "", "", ""]
        )
        rows.append(
            [
                f"{entry.bundle} {entry.variant}",
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
    each = {0: "as many threads as the engine likes", 1: "one thread"}.get(threads, f"{threads} threads")
    display.table(f"one picture at a time, {each}", columns, rows)
    for entry in entries:
        for note in entry.notes:
            display.note(f"{entry.bundle} {entry.variant}: {note}")
