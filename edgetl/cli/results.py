"""How a benchmark's result and a gate's verdict look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgetl.cli.display import percent

if TYPE_CHECKING:
    from edgetl.bench import Entry, Result, Verdict
    from edgetl.cli.display import Display

__all__ = ["show_results", "show_verdict"]

_STATES = {"holds": "holds", "fails": "FAILS", "undecided": "UNDECIDED"}


def show_results(display: Display, result: Result) -> None:
    """Prints what was measured, then in words what differs and what to doubt."""
    threads = result.settings["threads"]
    each = {0: "as many threads as the engine likes", 1: "one thread"}.get(threads, f"{threads} threads")
    where = "" if result.device == "local" else f"{result.device}: "
    columns = ("model", "top-1", "F1", "flips", "p50 ms", "p90", "p99", "img/s", "x first", "MB", "cold ms", "peak MB")
    display.table(f"{where}one picture at a time, {each}", columns, [_row(entry) for entry in result.entries])
    _show_stages(display, result.entries)
    _show_paced(display, result.entries)
    _show_offline(display, result.entries)
    _show_energy(display, result.entries)
    for entry in result.entries:
        if entry.comparison is not None:
            display.console.print(f"{entry.name}: {entry.comparison.text}")
    for entry in result.entries:
        for note in entry.notes:
            display.note(f"{entry.name}: {note}")
    for reason in result.conditions.invalid:
        display.note(f"{where}INVALID: {reason}")
    for warning in result.conditions.warnings:
        display.note(f"{where}unstable: {warning}")


def _row(entry: Entry) -> list[str]:
    from edgetl.bench import latency_ms

    latency, cold = latency_ms(entry.samples_ns), entry.cold_start
    timings = (
        [f"{latency['p50']:.2f}", f"{latency['p90']:.2f}", f"{latency['p99']:.2f}", f"{1e3 / latency['mean']:.0f}"]
        if latency
        else [""] * 4
    )
    return [
        entry.name,
        percent(entry.accuracy["top1"]),
        percent(entry.accuracy["macro_f1"]),
        percent(entry.accuracy["flip_rate"]),
        *timings,
        "" if entry.latency_ratio is None else f"{entry.latency_ratio:.2f}",
        f"{entry.bytes / 1e6:.2f}",
        "" if cold is None else f"{sum(cold[name] or 0 for name in ('import_ms', 'load_ms', 'first_ms')):.0f}",
        "" if cold is None else f"{(cold['peak_bytes'] or 0) / 1e6:.0f}",
    ]


def _show_stages(display: Display, entries: Sequence[Entry]) -> None:
    rows = [
        [entry.name, *(f"{ms:.2f}" for ms in stages.values()), f"{sum(stages.values()):.2f}"]
        for entry in entries
        if (stages := entry.stages_ms)
    ]
    if rows:
        columns = ("model", "decode ms", "preprocess", "infer", "postprocess", "sum")
        display.table("from file to label, medians", columns, rows)


def _show_paced(display: Display, entries: Sequence[Entry]) -> None:
    from edgetl.bench import latency_ms

    rows = []
    for entry in entries:
        latency = entry.paced and latency_ms([entry.paced["samples_ns"]])
        if entry.paced and latency:
            rows.append([entry.name, *(f"{latency[p]:.2f}" for p in ("p50", "p90", "p99")), str(entry.paced["late"])])
    if rows:
        rate = next(entry.paced["fps"] for entry in entries if entry.paced)
        display.table(f"{rate:g} pictures a second, idle between", ("model", "p50 ms", "p90", "p99", "late"), rows)


def _show_offline(display: Display, entries: Sequence[Entry]) -> None:
    sizes = sorted({size for entry in entries for size in entry.batches_ns})
    if not sizes:
        return
    rows = [
        [entry.name, *(f"{entry.throughput[size]:.0f}" if size in entry.batches_ns else "" for size in sizes)]
        for entry in entries
        if entry.batches_ns
    ]
    display.table("pictures a second, by batch size, all threads", ("model", *map(str, sizes)), rows)


def _show_energy(display: Display, entries: Sequence[Entry]) -> None:
    rows = [
        [
            entry.name,
            meter["meter"],
            f"{meter['joules_each'] * 1e3:.2f}",
            f"{meter['idle_watts']:.2f}",
            meter["problem"] or "",
        ]
        for entry in entries
        for meter in entry.energy
    ]
    if rows:
        display.table("energy beyond idling", ("model", "meter", "mJ each", "idle W", "doubt"), rows, text=2)


def show_verdict(display: Display, verdict: Verdict) -> None:
    """Prints every check of a gate."""
    for note in verdict.notes:
        display.note(note)
    if not verdict.checks:
        return
    rows = [[check.model, check.what, _STATES[check.state], check.text] for check in verdict.checks]
    against = f", against {verdict.against}" if verdict.against else ""
    display.table(f"gate{against}", ("model", "check", "", "finding"), rows, text=4, wrap=True)
