"""What variants cost on one machine, as charts: time, throughput, memory, energy; and time against accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.report.blocks import Block, Chart
from edgetl.report.charts import Bar, Line, Spread, bars, curves, spreads
from edgetl.report.naming import listed
from edgetl.report.pareto import Point, front, scatter
from edgetl.report.rows import Row, milliseconds_of
from edgetl.report.units import megabytes, milliseconds

__all__ = ["PRECISIONS", "accuracy_against_latency", "energies", "latencies", "stages", "starts", "throughput"]

PRECISIONS = (("s0", "FP32"), ("s3", "FP16"), ("s1", "INT8"))
_STAGES = {"decode": "s3", "preprocess": "s5", "infer": "s1", "postprocess": "s4"}
_START = {"import_ms": ("s4", "import"), "load_ms": ("s1", "load"), "first_ms": ("s2", "first picture")}
_MOST = 24  # rows of a chart
_CLIPPED = 99.5  # percentile: what is slower would squeeze the rest


def accuracy_against_latency(rows: Sequence[Row]) -> list[Block]:
    """Returns one scatter for each set of pictures that variants were judged on."""
    found: list[Block] = []
    groups = list(dict.fromkeys(row.judged_on for row in rows if row.judged_on))
    for group in groups:
        members = [row for row in rows if row.judged_on == group]
        judged = [row for row in members if row.entry["accuracy"]["top1"] is not None]
        shown = [(row, row.latency["p50"]) for row in judged if row.latency]
        if not shown:
            continue
        points = [Point(row.name, p50, row.entry["accuracy"]["top1"] * 100, row.colour) for row, p50 in shown]
        best = listed([points[i].label for i in front(points)])
        names = {row.name for row, _ in shown}
        out = [row.name for row in members if row.name not in names]
        on = f" on {members[0].data}" if len(groups) > 1 else ""
        caption = f"Left and up is better. No other is both faster and more accurate than: {best}."
        if out:
            caption += f" Left out, without latency or accuracy here: {listed(out, 12)}."
        if len(groups) > 1:
            caption += " Bundles judged on other pictures have a chart of their own."
        found.append(Chart(f"Accuracy against latency{on}", scatter(points, f"Accuracy against latency{on}"), caption))
    return found


def latencies(rows: Sequence[Row]) -> list[Block]:
    """Returns the distributions of latency, single-stream and at a camera's rate: two axes, for they differ much."""
    single = [(row, milliseconds_of(row.entry["samples_ns"])) for row in rows]
    paced = [(row, milliseconds_of([row.entry["paced"]["samples_ns"]])) for row in rows if row.entry["paced"]]
    rates = {row.entry["paced"]["fps"] for row in rows if row.entry["paced"]}
    rate = "/".join(f"{fps:g}" for fps in sorted(rates))
    return [
        *_distribution(single, "Latency", "One picture right after the other."),
        *_distribution(paced, f"Latency at {rate} pictures a second", "Idle between pictures, as behind a camera."),
    ]


def _distribution(rows: Sequence[tuple[Row, NDArray[np.float64]]], title: str, how: str) -> list[Block]:
    spread = [Spread(row.name, _clipped(values), row.colour, _summary(values)) for row, values in rows if len(values)]
    if not spread:
        return []
    caption = (
        f"{how} The height of a shape is the density of calls, the stroke their median; few calls are drawn one by "
        f"one. The slowest 0.5 % of each are not drawn, p99 counts them.{_left_out(spread)}"
    )
    return [Chart(title, spreads(spread[:_MOST], "ms", f"{title}: distribution by model"), caption)]


def _clipped(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[values <= np.percentile(values, _CLIPPED)]


def _summary(values: NDArray[np.float64]) -> str:
    p50, p99 = np.percentile(values, [50, 99])
    return f"p50 {milliseconds(p50).removesuffix(' ms')} · p99 {milliseconds(p99)}"


def _left_out(rows: Sequence[object]) -> str:
    return f" The first {_MOST} of {len(rows)} are drawn." if len(rows) > _MOST else ""


def stages(rows: Sequence[Row]) -> list[Block]:
    """Returns the way from file to label, by stage."""
    found = [
        Bar(row.name, [(ms.get(name, 0.0), tone) for name, tone in _STAGES.items()], milliseconds(sum(ms.values())))
        for row in rows
        if (ms := row.entry["stages_ms"])
    ]
    if not found:
        return []
    caption = "Median of each stage, one picture at a time, from the file on disk to the label." + _left_out(found)
    keys = [(tone, name) for name, tone in _STAGES.items()]
    return [Chart("From file to label", bars(found[:_MOST], "Milliseconds from file to label"), caption, keys)]


def throughput(rows: Sequence[Row]) -> list[Block]:
    """Returns pictures a second by batch size."""
    offline = {row.name: (row, row.entry["offline"]) for row in rows if row.entry["offline"]}
    if not offline:
        return []
    caption = "Whole batches one after the other on all threads, from the median batch."
    sizes = sorted({batch["batch"] for _, batches in offline.values() for batch in batches})
    if len(sizes) == 1:
        single = [
            Bar(name, [(batches[0]["images_per_s"], row.colour)], f"{batches[0]['images_per_s']:,.0f} pictures/s")
            for name, (row, batches) in offline.items()
        ]
        svg = bars(single[:_MOST], f"Throughput in batches of {sizes[0]}")
        return [Chart(f"Throughput in batches of {sizes[0]}", svg, caption + _left_out(single))]
    lines = []
    for name, (row, batches) in offline.items():
        ordered = sorted(batches, key=lambda batch: batch["batch"])
        rates = [batch["images_per_s"] for batch in ordered]
        lines.append(Line(name, [batch["batch"] for batch in ordered], rates, row.colour))
    svg = curves(
        lines[:_MOST], "pictures in a batch", "pictures a second", "Throughput by batch size", ticks=sizes,
        from_zero=True,
    )  # fmt: skip
    return [Chart("Throughput", svg, caption + _left_out(lines), PRECISIONS)]


def starts(rows: Sequence[Row]) -> list[Block]:
    """Returns cold start and memory of fresh processes."""
    cold = [(row, row.entry["cold_start"]) for row in rows if row.entry["cold_start"]]
    if not cold:
        return []
    times = []
    for row, start in cold:
        parts = [(start.get(name) or 0.0, tone) for name, (tone, _) in _START.items()]
        times.append(Bar(row.name, parts, milliseconds(sum(size for size, _ in parts))))
    found: list[Block] = [
        Chart(
            "Cold start",
            bars(times[:_MOST], "Milliseconds of a cold start"),
            "A fresh process, until its first answer." + _left_out(times),
            list(_START.values()),
        )
    ]
    for name, title in (("peak_bytes", "Peak memory"), ("gpu_bytes", "GPU memory")):
        used = [(row, start[name]) for row, start in cold if start.get(name)]
        sizes = [Bar(row.name, [(size, row.colour)], megabytes(size)) for row, size in used]
        if sizes:
            caption = "Of the same fresh process, in millions of bytes." + _left_out(sizes)
            found.append(Chart(title, bars(sizes[:_MOST], f"{title} in megabytes"), caption))
    return found


def energies(rows: Sequence[Row]) -> list[Block]:
    """Returns energy for each picture, by meter."""
    found = []
    doubts = []
    for row in rows:
        for meter in row.entry["energy"]:
            text = f"{meter['joules_each'] * 1e3:.2f} mJ, idle {meter['idle_watts']:.2f} W"
            found.append(Bar(f"{row.name}, {meter['meter']}", [(meter["joules_each"] * 1e3, row.colour)], text))
            if meter["problem"]:
                doubts.append(f"{row.name}: {meter['problem']}")
    if not found:
        return []
    caption = "Of one picture, beyond what the machine takes when idle." + _left_out(found)
    caption += f" In doubt: {listed(doubts)}." if doubts else ""
    return [Chart("Energy", bars(found[:_MOST], "Millijoules of one picture"), caption)]
