"""What a model decides: confusion matrices, and what became of the reference's decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from edgetl.report.blocks import Block, Chart, Facts, Gallery, Table, Thumbnail
from edgetl.report.charts import matrix
from edgetl.report.thumbnails import Thumbnails
from edgetl.report.units import NOTHING, count, decibels, percent, points

__all__ = ["changed_text", "confusion", "fidelity_blocks", "gallery"]

_LARGEST_MATRIX = 64
_PAIRS = 20
_CLASSES = 12


def confusion(classification: Mapping[str, Any], title: str = "Confusion matrix") -> list[Block]:
    """Returns the confusion matrix; of many classes, only the pairs that are confused most."""
    names = [row["label"] for row in classification.get("per_class", ())]
    counts = np.array(classification.get("confusion_matrix", ()), dtype=np.int64)
    if len(names) < 2 or counts.shape != (len(names), len(names)):
        return []
    if len(names) > _LARGEST_MATRIX:
        return [_confused_pairs(counts, names)]
    errors = int(counts.sum() - np.trace(counts))
    caption = (
        f"Rows are true classes, columns what was decided; the strength of a cell is its share of the row. "
        f"{count(errors, 'picture')} of {int(counts.sum()):,} lie beside the diagonal."
    )
    return [Chart(title, matrix(counts, names, f"{title}: {errors} errors among {len(names)} classes"), caption)]


def _confused_pairs(counts: Any, names: Sequence[str]) -> Table:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [tuple(np.unravel_index(i, wrong.shape)) for i in order]
    rows = [
        [names[true], names[decided], f"{wrong[true, decided]:,}", percent(wrong[true, decided] / counts[true].sum())]
        for true, decided in pairs
        if wrong[true, decided]
    ]
    caption = f"The most frequent of {count(int((wrong > 0).sum()), 'confused pair')}, among {len(names):,} classes."
    return Table(("true class", "decided as", "pictures", "of the true class"), rows, 2, "Most confused", caption)


def changed_text(fidelity: Mapping[str, Any]) -> str:
    """Returns in a line what became of the reference's decisions."""
    pictures = int(fidelity["pictures"])
    flips = round(float(fidelity["flip_rate"]) * pictures)
    text = f"{flips:,} of {count(pictures, 'decision')} changed" if flips else f"no decision of {pictures:,} changed"
    drop = fidelity.get("top1_drop")
    return text if drop is None else f"{text}, top-1 {points(-drop['value'])}"


def fidelity_blocks(fidelity: Mapping[str, Any], thumbnails: Thumbnails) -> list[Block]:
    """Returns the figures of a fidelity report, the classes that changed, and the pictures that flipped."""
    blocks: list[Block] = [Facts(_figures(fidelity))]
    if fidelity.get("per_class"):
        blocks.append(_changed_classes(fidelity["per_class"]))
    if fidelity.get("worst_flips"):
        blocks.append(gallery(fidelity["worst_flips"], thumbnails))
    return blocks


def _figures(fidelity: Mapping[str, Any]) -> list[tuple[str, str]]:
    confidence, drop, ece = (fidelity.get(name) for name in ("confidence", "top1_drop", "ece"))
    pairs = [
        ("decisions changed", f"{percent(fidelity['flip_rate'])} of {count(fidelity['pictures'], 'picture')}"),
        ("logits against FP32", decibels(fidelity["sqnr_db"])),
    ]
    if drop:
        interval = f"{points(drop['low'])} to {points(drop['high'])}"
        pairs.append(("top-1 lost, 95 % interval", f"{points(drop['value'])} ({interval})"))
    if confidence:
        pairs.append(("mean confidence", f"{confidence['reference']:.3f} → {confidence['now']:.3f}"))
        pairs.append(("largest fall of confidence", f"{max(0.0, confidence['largest_fall']):.3f}"))
    if ece:
        pairs.append(("calibration error (ECE)", f"{ece['reference']:.3f} → {ece['now']:.3f}"))
    return pairs


def _changed_classes(classes: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            row["label"], f"{row['pictures']:,}", f"{row['flips']:,}", percent(row["recall_reference"]),
            percent(row["recall"]), points(row["recall"] - row["recall_reference"]),
        ]
        for row in classes[:_CLASSES]
    ]  # fmt: skip
    more = len(classes) - len(rows)
    caption = f"{count(more, 'class', 'classes')} more changed less." if more > 0 else ""
    columns = ("class", "pictures", "changed", "recall FP32", "recall now", "difference")
    return Table(columns, rows, 1, "Classes that changed", caption)


def gallery(flips: Sequence[Mapping[str, Any]], thumbnails: Thumbnails) -> Gallery:
    """Returns flipped pictures, those first that the reference was surest of."""
    pictures = []
    for flip in flips:
        path = str(flip.get("picture", ""))
        uri, why = thumbnails.get(path)
        before = f"{flip['reference']} ({flip['reference_confidence']:.2f})"
        name = PurePath(path).name or NOTHING
        pictures.append(Thumbnail(name, path, uri, why, before, f"{flip['now']} ({flip['confidence']:.2f})"))
    caption = "What FP32 decided → what is decided now, each with its confidence; those first that FP32 was surest of."
    return Gallery("Pictures whose decision changed", pictures, caption)
