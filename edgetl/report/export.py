"""The report of an export: what every variant is worth, what INT8 costs each layer, and what became of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.report.blocks import Block, Chart, Facts, Fold, Grid, Page, Section, Table, Toned
from edgetl.report.charts import Bar, bars
from edgetl.report.decisions import changed_text, confusion, fidelity_blocks
from edgetl.report.naming import colour_of, facts_from
from edgetl.report.page import html_from_page
from edgetl.report.thumbnails import Thumbnails
from edgetl.report.units import NOTHING, count, decibels, megabytes, percent, points, ratio

__all__ = ["export_report"]

_LAYERS_DRAWN = 30
_LAYERS_LISTED = 1000
_RECOMMENDED = {True: Toned("yes", "good"), False: Toned("no", "bad"), None: Toned("not measured", "plain")}


def export_report(
    manifest: Mapping[str, Any], fidelity: Mapping[str, Any], layers: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Returns an export as a self-contained HTML page.

    Args:
        manifest: Of the bundle.
        fidelity: Fidelity reports by variant, with the paths of pictures; the manifest holds none.
        layers: What INT8 costs each: ``name, op, alone_db, multiply_adds, in_float`` (reasons by target); see
            ``edgetl inspect --layers``.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    spec, proof = manifest["spec"], manifest["proof"]
    blocks: list[Block] = [
        Section("Variants", _variants(manifest)),
        *_kept(fidelity),
        *_sensitivity(layers),
        Section("How it was made", [*_reference(proof), *_made(manifest)]),
    ]
    recommended = ", ".join(v["name"] for v in manifest["variants"] if v["recommended"]) or "none"
    lede = (
        f"{spec['backbone']} with {count(len(spec['labels']), 'class', 'classes')}, judged on "
        f"{count(proof.get('val_pictures', 0), 'validation picture')}. Recommended here: {recommended}."
    )
    foot = f"Written by edgetl export. Bundle digest {manifest['digest'][:12]}."
    return html_from_page(Page("Export", lede, blocks, foot))


def _variants(manifest: Mapping[str, Any]) -> list[Block]:
    variants = manifest["variants"]
    columns = ("variant", "recommended", "size", "top-1", "drop", "flips", "SQNR", "latency ratio")
    rows = [_variant(v) for v in variants]
    caption = (
        "Drop is top-1 lost against FP32, positive when worse; flips are decisions that differ from FP32's; SQNR is "
        "how far the logits lie above their error; the latency ratio is to FP32 in turn with it, on this machine."
    )
    sizes = [Bar(v["name"], [(v["bytes"], colour_of(v["name"]))], megabytes(v["bytes"])) for v in variants]
    chart = Chart("Size", bars(sizes, "Size of each variant in megabytes"), "Of the graph's file, millions of bytes.")
    why = Facts([(v["name"], v["reason"]) for v in variants if v["reason"]], "Why")
    return [Table(columns, rows, 2, "", caption), why, Grid([chart, *_drops(manifest)])]


def _variant(variant: Mapping[str, Any]) -> list[str | Toned]:
    metrics = variant["metrics"]
    return [
        variant["name"],
        _RECOMMENDED[variant["recommended"]],
        megabytes(variant["bytes"]),
        percent(metrics.get("top1")),
        points(metrics.get("top1_drop")),
        percent(metrics.get("flip_rate")),
        decibels(metrics.get("sqnr_db")),
        ratio(metrics.get("latency_ratio")),
    ]


def _drops(manifest: Mapping[str, Any]) -> list[Block]:
    """Returns the loss of each variant with its interval, where it was measured."""
    reports = manifest["proof"].get("fidelity", {})
    measured = [(name, report["top1_drop"]) for name, report in reports.items() if report["top1_drop"]]
    if not measured:
        return []
    rows = [[name, points(d["value"]), points(d["low"]), points(d["high"])] for name, d in measured]
    allowed = manifest["provenance"].get("max_drop")
    limit = "" if allowed is None else f" The limit was {points(allowed).lstrip('+')}."
    caption = f"Paired bootstrap over pictures; positive is worse.{limit}"
    return [Table(("variant", "drop", "from", "to"), rows, 1, "Top-1 lost, 95 % interval", caption)]


def _kept(fidelity: Mapping[str, Any]) -> list[Block]:
    """Returns a fold for each variant; the first that changed decisions is open."""
    thumbnails = Thumbnails()
    first = next((name for name, report in fidelity.items() if report["flip_rate"]), None)
    folds: list[Block] = [
        Fold(name, fidelity_blocks(report, thumbnails), changed_text(report), opened=name == first)
        for name, report in fidelity.items()
    ]
    return [Section("Decisions, against FP32", folds)] if folds else []


def _sensitivity(layers: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Returns what INT8 costs each layer, the most expensive first, and which layers stay in float."""
    if not layers:
        return []
    tried = sorted((row for row in layers if row["alone_db"] is not None), key=lambda row: row["alone_db"])
    untried = [row for row in layers if row["alone_db"] is None]
    blocks: list[Block] = []
    if tried:
        drawn = [
            Bar(row["name"], [(row["alone_db"], "s2" if row["in_float"] else "s1")], _layer_text(row))
            for row in tried[:_LAYERS_DRAWN]
        ]
        caption = (
            "How far the logits lie above their error when this layer alone is INT8: a short bar is an expensive layer."
        )
        if len(tried) > len(drawn):
            caption += f" The {len(drawn)} most expensive of {len(tried)} are drawn."
        keys = (("s2", "stays in float"), ("s1", "INT8"))
        svg = bars(drawn, "SQNR of each layer alone in INT8, dB")
        blocks.append(Chart("Cost of single layers", svg, caption, keys))
    rows = [
        [row["name"], row["op"], _reasons(row["in_float"]), decibels(row["alone_db"]), _share(row["multiply_adds"])]
        for row in [*tried, *untried][:_LAYERS_LISTED]
    ]
    why = "No layer was tried alone: none had to stay in float for its cost, or --no-mixed let none."
    columns = ("layer", "kind", "in float, for", "alone in INT8", "multiply-adds")
    in_float = sum(bool(row["in_float"]) for row in layers)
    aside = f"{count(len(layers), 'layer')}, {in_float} in float"
    table = Table(columns, rows, 3, "", "" if tried else why)
    blocks.append(Fold("Every layer", [table], aside, opened=not tried and len(rows) < 40))
    return [Section("What INT8 costs", blocks)]


def _layer_text(row: Mapping[str, Any]) -> str:
    share = row["multiply_adds"]
    return decibels(row["alone_db"]) + ("" if share is None else f" · {share:.1%} of the work")


def _share(value: float | None) -> str:
    return NOTHING if value is None else percent(value)


def _reasons(in_float: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for target, reason in in_float.items():
        reasons.setdefault(reason, []).append(target)
    return "; ".join(f"{reason} ({', '.join(targets)})" for reason, targets in reasons.items()) or NOTHING


def _reference(proof: Mapping[str, Any]) -> list[Block]:
    fp32 = proof.get("fp32")
    if not fp32:
        return []
    pairs = [("top-1", percent(fp32["top1"])), ("macro F1", percent(fp32["macro_f1"]))]
    blocks: list[Block] = [Facts([*pairs, ("calibration error (ECE)", f"{fp32['ece']:.3f}")]), *confusion(fp32)]
    return [Fold("FP32, the reference", blocks, percent(fp32["top1"]))]


def _made(manifest: Mapping[str, Any]) -> list[Block]:
    provenance, spec = manifest["provenance"], manifest["spec"]
    return [
        Fold("Settings", [Facts(facts_from(provenance, ("versions",)))]),
        Fold("Preprocessing", [Facts(facts_from(spec["preprocess"]))]),
        Fold("Versions", [Facts(facts_from(provenance.get("versions", {})))]),
    ]
