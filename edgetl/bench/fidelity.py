"""How faithful one graph's answers are to another's: more than a difference of two accuracies.

Rates and drops are fractions; a drop is positive when worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.metrics import expected_calibration_error, flip_rate, softmax, sqnr_db, top1

__all__ = ["drop_interval", "fidelity_report", "fidelity_text"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_RESAMPLES = 10_000
_WORST = 10


def fidelity_report(
    logits: Floats, reference: Floats, labels: Ints | None, classes: Sequence[str], pictures: Sequence[str]
) -> dict[str, Any]:
    """Returns what became of the reference's decisions, ready for JSON.

    Args:
        logits: (N, C) of the graph in question.
        reference: (N, C) of the original.
        labels: (N,) true classes, or None where they are not known.
        classes: C labels.
        pictures: N names to find pictures by.
    """
    before, after = softmax(reference), softmax(logits)
    decided = reference.argmax(axis=1)
    rows = np.arange(len(decided))
    shift = after[rows, decided] - before[rows, decided]
    report: dict[str, Any] = {
        "pictures": len(decided),
        "flip_rate": flip_rate(logits, reference),
        "sqnr_db": sqnr_db(logits, reference),
        "confidence": {
            "reference": float(before.max(axis=1).mean()),
            "now": float(after.max(axis=1).mean()),
            "shift": float(shift.mean()),
            "largest_fall": float(-shift.min()),
        },
        "top1_drop": None,
        "ece": None,
        "per_class": [],
        "worst_flips": _worst_flips(before, after, classes, pictures),
    }
    if labels is not None:
        low, high = drop_interval(logits, reference, labels)
        report["top1_drop"] = {"value": top1(reference, labels) - top1(logits, labels), "low": low, "high": high}
        report["ece"] = {
            "reference": expected_calibration_error(reference, labels),
            "now": expected_calibration_error(logits, labels),
        }
        report["per_class"] = _per_class(logits, reference, labels, classes)
    return report


def drop_interval(logits: Floats, reference: Floats, labels: Ints) -> tuple[float, float]:
    """Returns the 95 % interval of the loss of top-1 accuracy, by a paired bootstrap over pictures.

    A picture can only lose, stay or win, so a resample of N pictures is a multinomial draw of these three. Two
    pictures are added, half a loss, half a win and one that stays (Agresti and Min 2005): few pictures of which
    none was lost are no proof that none ever will be.
    """
    lost = (reference.argmax(axis=1) == labels).astype(int) - (logits.argmax(axis=1) == labels).astype(int)
    counts = np.array([np.sum(lost == outcome) + added for outcome, added in ((1, 0.5), (0, 1.0), (-1, 0.5))])
    draws = np.random.default_rng(0).multinomial(len(lost) + 2, counts / counts.sum(), _RESAMPLES)
    low, high = np.percentile((draws[:, 0] - draws[:, 2]) / (len(lost) + 2), [2.5, 97.5])
    return float(low), float(high)


def _per_class(logits: Floats, reference: Floats, labels: Ints, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the classes whose recall or decisions changed, the greatest loss first."""
    found = []
    for index in np.unique(labels):
        own = labels == index
        before, after = (float((x[own].argmax(axis=1) == index).mean()) for x in (reference, logits))
        flips = int((logits[own].argmax(axis=1) != reference[own].argmax(axis=1)).sum())
        if flips:
            found.append(
                {
                    "label": classes[index],
                    "pictures": int(own.sum()),
                    "flips": flips,
                    "recall_reference": before,
                    "recall": after,
                }
            )
    return sorted(found, key=lambda row: (row["recall"] - row["recall_reference"], -row["flips"]))


def _worst_flips(
    before: Floats, after: Floats, classes: Sequence[str], pictures: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns flipped pictures, those first that the reference was surest of."""
    old, new = before.argmax(axis=1), after.argmax(axis=1)
    flipped = np.flatnonzero(old != new)
    ordered = flipped[np.argsort(-before[flipped, old[flipped]], kind="stable")]
    return [
        {
            "picture": pictures[i],
            "reference": classes[old[i]],
            "reference_confidence": float(before[i, old[i]]),
            "now": classes[new[i]],
            "confidence": float(after[i, new[i]]),
        }
        for i in ordered[:_WORST]
    ]


def fidelity_text(name: str, report: dict[str, Any]) -> list[str]:
    """Returns a report as lines for people."""
    confidence = report["confidence"]
    lines = [
        f"{name}: {report['flip_rate']:.1%} of {report['pictures']} decisions changed, logits "
        f"{report['sqnr_db']:.1f} dB from fp32, confidence {confidence['reference']:.3f} -> {confidence['now']:.3f}"
    ]
    if report["top1_drop"] is not None:
        drop, ece = report["top1_drop"], report["ece"]
        lines.append(
            f"  top-1 drop {drop['value'] * 100:+.2f} pt, "
            f"95 % interval {drop['low'] * 100:+.2f} to {drop['high'] * 100:+.2f}; "
            f"ECE {ece['reference']:.3f} -> {ece['now']:.3f}"
        )
    lines += [
        f"  {row['label']}: recall {row['recall_reference']:.1%} -> {row['recall']:.1%} ({row['flips']} flips)"
        for row in report["per_class"][:3]
        if row["recall"] < row["recall_reference"]
    ]
    lines += [
        f"  {flip['picture'] + ': ' if 'picture' in flip else ''}{flip['reference']} "
        f"({flip['reference_confidence']:.2f}) -> {flip['now']} ({flip['confidence']:.2f})"
        for flip in report["worst_flips"][:3]
    ]
    return lines
