"""How good answers are, and how far two sets of answers differ. numpy only; rates are fractions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Ints = NDArray[np.integer[Any]]

__all__ = [
    "classification_report",
    "confusion_matrix",
    "expected_calibration_error",
    "flip_rate",
    "macro_f1",
    "softmax",
    "sqnr_db",
    "top1",
]


def softmax(logits: Floats) -> NDArray[np.float32]:
    """Returns probabilities of shape (N, C), float32, for logits of the same shape."""
    shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), dtype=np.float32)


def top1(logits: Floats, labels: Ints) -> float:
    """Returns the fraction of rows whose largest logit is the label's. (N, C), (N,)."""
    return float((logits.argmax(axis=1) == labels).mean())


def flip_rate(logits: Floats, reference: Floats) -> float:
    """Returns the fraction of rows whose decision differs from the reference's. (N, C), (N, C)."""
    return float((logits.argmax(axis=1) != reference.argmax(axis=1)).mean())


def sqnr_db(values: Floats, reference: Floats) -> float:
    """Returns the signal-to-quantization-noise ratio in dB: power of the reference over that of the error.

    Equal arrays give 300; silence distorted, infinity and NaN give -300, so that the result stays finite (JSON
    has no infinity).
    """
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(values.astype(np.float64) - reference.astype(np.float64)).sum())
    if noise == 0.0:
        return 300.0
    if signal == 0.0 or not np.isfinite(noise):
        return -300.0
    return float(np.clip(10 * (np.log10(signal) - np.log10(noise)), -300.0, 300.0))


def confusion_matrix(predicted: Ints, labels: Ints, classes: int) -> NDArray[np.int64]:
    """Returns counts of shape (C, C): row = true class, column = decision."""
    counts = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def _rates(matrix: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    hits = matrix.diagonal().astype(np.float64)
    precision = hits / np.maximum(matrix.sum(axis=0), 1)
    recall = hits / np.maximum(matrix.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return precision, recall, f1


def macro_f1(logits: Floats, labels: Ints) -> float:
    """Returns the mean F1 over the classes that occur in ``labels``."""
    matrix = confusion_matrix(logits.argmax(axis=1), labels, logits.shape[1])
    return float(_rates(matrix)[2][matrix.sum(axis=1) > 0].mean())


def expected_calibration_error(logits: Floats, labels: Ints, bins: int = 15) -> float:
    """Returns the ECE: mean gap of confidence and accuracy over equal bins (Guo et al. 2017, eq. 3)."""
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def classification_report(logits: Floats, labels: Ints, names: Sequence[str]) -> dict[str, Any]:
    """Returns accuracy, macro averages, per-class figures and the confusion matrix, ready for JSON.

    Macro averages run over the classes that occur in ``labels``.

    Args:
        logits: (N, C).
        labels: (N,), class indices.
        names: C labels.
    """
    matrix = confusion_matrix(logits.argmax(axis=1), labels, len(names))
    precision, recall, f1 = _rates(matrix)
    support = matrix.sum(axis=1)
    seen = support > 0
    return {
        "pictures": len(labels),
        "top1": top1(logits, labels),
        "macro_precision": float(precision[seen].mean()),
        "macro_recall": float(recall[seen].mean()),
        "macro_f1": float(f1[seen].mean()),
        "ece": expected_calibration_error(logits, labels),
        "per_class": [
            {
                "label": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        ],
        "confusion_matrix": matrix.tolist(),
    }
