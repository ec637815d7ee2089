"""Of a fine-tuning run: how far it moved, how it bears bad pictures, and what the transfer bought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.report.blocks import Block, Chart, Fold, Grid, Notes, Table, Tone
from edgetl.report.charts import Bar, Line, bars, curves
from edgetl.report.units import count, percent, points

__all__ = ["drift", "robustness", "scratch", "verdict"]

Stability = Sequence[Mapping[str, Any]]

_TONES: dict[str, Tone] = {"fits": "good", "overfit": "doubt", "underfit": "doubt", "unfinished": "doubt"}
_BLOCKS = 32


def verdict(metrics: Mapping[str, Any]) -> list[Block]:
    """Returns what was said of the training; nothing for runs that were made before it was."""
    found = metrics.get("verdict") or {}
    lines = [found["text"]] if found.get("text") else []
    if metrics.get("diverged_epoch"):
        lines.append(f"Tuning diverged in epoch {metrics['diverged_epoch']}: the last good weights were kept.")
    if (metrics.get("imbalance") or {}).get("reason"):
        lines.append(metrics["imbalance"]["reason"])
    tone: Tone = "doubt" if len(lines) > 1 else _TONES.get(found.get("kind", ""), "plain")
    return [Notes(lines, tone)] if lines else []


def drift(stability: Stability) -> list[Block]:
    """Returns how far each block moved from where it began, after the last epoch."""
    last = max((int(row["epoch"]) for row in stability), default=0)
    rows = [(str(row["block"]), float(row["drift"])) for row in stability if int(row["epoch"]) == last]
    drawn = [Bar(name, [(value, "s1")], f"{value:.3f}") for name, value in rows[-_BLOCKS:]]
    if not drawn:
        return []
    caption = "|w − w₀| / |w₀| of each block's weights after the last epoch, from the input to the head."
    if len(rows) > len(drawn):
        caption += f" The {len(drawn)} uppermost of {len(rows)} blocks are drawn."
    return [Chart("Drift by block", bars(drawn, "Drift by block"), caption)]


def robustness(metrics: Mapping[str, Any]) -> list[Block]:
    """Returns top-1 on corrupted pictures, the worst kind first."""
    found = metrics.get("robustness")
    if not found:
        return []
    means = sorted((sum(levels) / len(levels), kind) for kind, levels in found["top1"].items())
    drawn = [Bar(kind, [(mean, "s1")], percent(mean)) for mean, kind in means]
    caption = (
        f"Mean of five strengths on {count(found['pictures'], 'validation picture')}; clean, "
        f"{percent(found['clean_top1'])} of them are right, on the mean of all kinds {percent(found['mean_top1'])}. "
        "After Hendrycks and Dietterich 2019, but not to be compared with their figures."
    )
    rows = [[kind, *(percent(value) for value in found["top1"][kind]), percent(mean)] for mean, kind in means]
    table = Table(("corruption", "1", "2", "3", "4", "5", "mean"), rows)
    return [Chart("Top-1 on bad pictures", bars(drawn, "Top-1 on bad pictures", largest=1.0), caption),
            Fold("Every strength", [table], count(len(rows), "kind"))]  # fmt: skip


def scratch(metrics: Mapping[str, Any]) -> list[Block]:
    """Returns learning curves of the transfer and of the same network from random weights."""
    found = metrics.get("scratch")
    if not found:
        return []
    rows = found["rows"]
    lines = [
        Line(name, [float(row["train_pictures"]) for row in known], [row[column] * 100 for row in known], colour)
        for name, column, colour in (("transferred", "transferred_top1", "s1"), ("scratch", "scratch_top1", "s2"))
        if len(known := [row for row in rows if row[column] is not None]) > 1
    ]
    told = [
        [
            "all" if row["per_class"] is None else str(row["per_class"]),
            f"{row['train_pictures']:,}",
            str(row["epochs"]),
            percent(row["transferred_top1"]),
            percent(row["scratch_top1"]),
            points(row["gain"]),
            " to ".join(points(end) for end in row["interval"] or ()),
        ]
        for row in rows
    ]
    columns = ("of each class", "pictures", "epochs", "transferred", "from scratch", "gain", "95 % interval")
    caption = "The same network and pictures, from pretrained and from random weights; intervals by paired bootstrap."
    blocks: list[Block] = [Table(columns, told, title="What the transfer bought", caption=caption)]
    if lines:
        svg = curves(lines, "training pictures", "top-1, %", "Top-1 by training pictures", from_zero=True)
        blocks.insert(0, Chart("Learning curves", svg, "Top-1 of validation pictures by number of training pictures."))
    return [Grid(blocks)]
