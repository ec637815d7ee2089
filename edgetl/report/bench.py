"""The report of ``edgetl bench``: each device for itself, never put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.report import costs
from edgetl.report.blocks import Block, Facts, Fold, Grid, Notes, Page, Section, Table, Tone, Toned
from edgetl.report.decisions import changed_text, confusion, fidelity_blocks
from edgetl.report.naming import facts_from, in_words, listed
from edgetl.report.page import html_from_page
from edgetl.report.rows import Row, rows_from
from edgetl.report.thumbnails import Thumbnails
from edgetl.report.units import count, megabytes, milliseconds, percent, ratio

__all__ = ["bench_report"]

_STATES: dict[str, Tone] = {"holds": "good", "fails": "bad", "undecided": "doubt"}
_MOST_FOLDS = 24  # of decisions, one for each variant that changed some


def bench_report(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns one or several results of ``edgetl bench --json`` as a self-contained HTML page.

    Args:
        results: One for each device or run; what one machine measured is never mixed with another's.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    thumbnails = Thumbnails()
    sections = [_device(result, thumbnails) for result in results]
    if not sections:
        sections = [Section("Nothing to show", [Notes(["No result was given."])])]
    created = ", ".join(dict.fromkeys(_when(str(result["created"])) for result in results))
    return html_from_page(Page("Benchmark", _lede(results), sections, f"Measured {created} by edgetl bench."))


def _when(created: str) -> str:
    """Returns a moment of ISO 8601 in UTC as people write it."""
    return created.removesuffix("+00:00").replace("T", " ") + " UTC"


def _lede(results: Sequence[Mapping[str, Any]]) -> str:
    entries = [entry for result in results for entry in result["results"]]
    bundles = dict.fromkeys(entry["bundle"] for entry in entries)
    variants = dict.fromkeys((entry["bundle"], entry["variant"]) for entry in entries)
    what = f"{count(len(variants), 'variant')} of {count(len(bundles), 'bundle')}"
    return f"{what}: accuracy, latency, size and memory on {count(len(results), 'device')}."


def _device(result: Mapping[str, Any], thumbnails: Thumbnails) -> Section:
    rows = rows_from(result)
    blocks: list[Block] = [*_conditions(result["conditions"]), *_gate(result.get("gate"))]
    if rows:
        blocks += [_headline(rows, result), *_comparisons(rows)]
        charts = [*costs.accuracy_against_latency(rows), *costs.latencies(rows), *costs.stages(rows)]
        charts += [*costs.throughput(rows), *costs.starts(rows), *costs.energies(rows)]
        blocks += [Grid(charts)] if charts else []
        blocks += _decisions(rows, thumbnails)
    else:
        blocks.append(Notes(["This result holds no variants."]))
    blocks += [*_notes(rows), _machine(result)]
    return Section(_device_name(result), blocks)


def _device_name(result: Mapping[str, Any]) -> str:
    host = result["host"]
    known = host.get("board") or listed(host.get("gpus") or ()) or host.get("cpu") or "this machine"
    return str(known) if result["device"] == "local" else f"{result['device']}: {known}"


def _conditions(conditions: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if conditions["invalid"]:
        blocks.append(Notes(conditions["invalid"], "bad", "Invalid: do not believe these absolute figures"))
    if conditions["warnings"]:
        blocks.append(Notes(conditions["warnings"], "doubt", "Unstable"))
    return blocks


def _gate(verdict: Mapping[str, Any] | None) -> list[Block]:
    if verdict is None:
        return []
    bad = sum(check["state"] != "holds" for check in verdict["checks"])
    every = count(len(verdict["checks"]), "check")
    against = f", against {verdict['against']}" if verdict["against"] else ""
    if verdict["ok"]:
        banner = Notes([f"{every}{against}", *verdict["notes"]], "good", "Gate passed")
    else:
        banner = Notes([f"{bad} of {every} do not hold{against}", *verdict["notes"]], "bad", "Gate failed")
    rows = [
        [check["model"], check["what"], Toned(check["state"], _STATES.get(check["state"], "plain")), check["text"]]
        for check in verdict["checks"]
    ]
    return [banner, Table(("model", "check", "state", "finding"), rows, 4, "Gate")] if rows else [banner]


def _headline(rows: Sequence[Row], result: Mapping[str, Any]) -> Table:
    columns = ("model", "top-1", "macro F1", "flips", "p50", "p90", "p99", "pictures/s", "latency ratio", "size")
    threads = result["settings"].get("threads", 1)
    each = {0: "all threads", 1: "one thread"}.get(threads, f"{threads} threads")
    reference = next((row.name for row in rows if row.latency and not row.entry["comparison"]), None)
    to = f" Latency ratios are against {reference}, measured in turn with it." if reference else ""
    caption = (
        f"Latency of one picture at a time, {each}; flips are decisions that differ from the bundle's own FP32; "
        f"size is that of the graph's file, in millions of bytes.{to}"
    )
    return Table(columns, [_headline_row(row) for row in rows], 1, "Overview", caption)


def _headline_row(row: Row) -> list[str | Toned]:
    accuracy, latency = row.entry["accuracy"], row.latency
    timed = [milliseconds(latency[p]) for p in ("p50", "p90", "p99")] if latency else ["–"] * 3
    rate = row.entry["throughput_ips"]
    return [
        row.name,
        *(percent(accuracy.get(name)) for name in ("top1", "macro_f1", "flip_rate")),
        *timed,
        "–" if rate is None else f"{rate:,.0f}",
        ratio(row.entry["latency_ratio"]),
        megabytes(row.entry["bytes"]),
    ]


def _comparisons(rows: Sequence[Row]) -> list[Block]:
    compared = [row for row in rows if row.entry["comparison"]]
    if not compared:
        return []
    words = [[row.name, row.entry["comparison"]["text"], f"{row.entry['comparison']['p']:.2g}"] for row in compared]
    caption = "Intervals are over processes; p is how likely so large a difference is by chance alone."
    return [Table(("model", "latency against the reference", "p"), words, 2, "What differs", caption)]


def _decisions(rows: Sequence[Row], thumbnails: Thumbnails) -> list[Block]:
    """Returns a fold for each variant; those that decide as one before them of the same bundle are only named."""
    judged = [row for row in rows if row.entry["report"].get("fidelity")]
    folds: list[Block] = []
    same: list[str] = []
    seen: set[str] = set()
    for row in judged:
        report = row.entry["report"]
        first = row.entry["bundle"] not in seen
        seen.add(row.entry["bundle"])
        if not first and not report["fidelity"]["flip_rate"]:
            same.append(row.name)
        elif len(folds) < _MOST_FOLDS:
            folds.append(_fold(row, thumbnails))
    if not folds:
        return []
    blocks = [*folds, Notes([f"Decide every picture as FP32 does: {listed(same, 24)}."])] if same else folds
    return [Section("Decisions", blocks, 3)]


def _fold(row: Row, thumbnails: Thumbnails) -> Fold:
    report = row.entry["report"]
    fidelity, classification = report["fidelity"], report.get("classification")
    is_reference = row.entry["variant"] == "fp32" and not fidelity["flip_rate"]
    aside = changed_text(fidelity)
    if is_reference and classification:
        aside = f"top-1 {percent(classification['top1'])} of {count(classification['pictures'], 'picture')}"
    blocks: list[Block] = [] if is_reference else fidelity_blocks(fidelity, thumbnails)
    if classification:
        blocks.append(Grid([*confusion(classification), *_macro(classification)]))
    return Fold(row.name, blocks, aside)


def _macro(classification: Mapping[str, Any]) -> list[Block]:
    pairs = [
        (shown, percent(classification[name]))
        for name, shown in (("top1", "top-1"), ("macro_f1", "macro F1"), ("macro_recall", "macro recall"))
    ]
    return [Facts([*pairs, ("calibration error (ECE)", f"{classification['ece']:.3f}")])]


def _notes(rows: Sequence[Row]) -> list[Block]:
    """Returns what could not be measured; what is true of several variants stands once."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for note in row.entry["notes"]:
            said.setdefault(note, []).append(row.name)
    if not said:
        return []
    lines = [f"{note} ({'all' if len(names) == len(rows) else listed(names)})" for note, names in said.items()]
    return [Section("Not measured", [Notes(lines)], 3)]


def _machine(result: Mapping[str, Any]) -> Section:
    host, settings = result["host"], result["settings"]
    sizes = [
        (name.removesuffix("_bytes") + " memory", f"{host[name] / 1e9:.1f} GB")
        for name in ("memory_bytes", "available_bytes")
        if host.get(name) is not None
    ]
    facts = [*facts_from(host, ("versions", "memory_bytes", "available_bytes")), *sizes]
    data = [
        (f"data of {row['bundle']}", f"{row['source']}, split {row['split']}, digest {row['digest'][:12]}")
        for row in settings.get("data", ())
    ]
    rest = [(name, in_words(value)) for name, value in host.get("versions", {}).items()]
    folds: list[Block] = [
        Fold("Machine", [Facts(facts)], str(host.get("cpu") or "")),
        Fold("Settings", [Facts([*facts_from(settings, ("data",)), *data])]),
        Fold("Versions", [Facts(rest)]),
    ]
    return Section("How it was measured", folds, 3)
