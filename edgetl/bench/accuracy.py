"""What a bundle's variants answer on a data set, every picture decoded once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.bundle import Bundle, Variant
from edgetl.dataset import Dataset, Item
from edgetl.metrics import flip_rate, macro_f1, top1
from edgetl.preprocess import preprocess
from edgetl.runtime.loading import session_for
from edgetl.spec import ModelSpec

__all__ = ["answers", "label_indices", "scores"]

_BATCH = 8


def answers(
    bundle: Bundle,
    variants: Sequence[Variant],
    items: Sequence[Item],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[NDArray[np.float32]]:
    """Returns logits (N, C) for each variant.

    TensorRT's and other processors' INT8 forms are computed on the CPU as their Q/DQ nodes stand.
    """
    sessions = [session_for(bundle, variant) for variant in variants]
    rows: list[list[NDArray[np.float32]]] = [[] for _ in sessions]
    for start in range(0, len(items), _BATCH):
        batch = np.stack([preprocess(i.path, bundle.spec.preprocess) for i in items[start : start + _BATCH]])
        for collected, session in zip(rows, sessions, strict=True):
            collected.append(session.infer(batch)["logits"])
        if on_progress is not None:
            on_progress(min(start + _BATCH, len(items)), len(items))
    for session in sessions:
        session.close()
    return [np.concatenate(collected) for collected in rows]


def label_indices(spec: ModelSpec, dataset: Dataset, items: Sequence[Item]) -> NDArray[np.int64] | None:
    """Returns each item's class as an index into the model's labels, or None where a class is not among them."""
    index = {label: i for i, label in enumerate(spec.labels)}
    if any(name not in index for name in dataset.classes):
        return None
    return np.array([index[dataset.classes[item.label]] for item in items], dtype=np.int64)


def scores(
    logits: NDArray[np.float32], labels: NDArray[np.int64] | None, reference: NDArray[np.float32] | None
) -> dict[str, float | None]:
    """Returns ``top1``, ``macro_f1`` and, against a reference's logits, ``flip_rate``; None where unknown."""
    return {
        "top1": None if labels is None else top1(logits, labels),
        "macro_f1": None if labels is None else macro_f1(logits, labels),
        "flip_rate": None if reference is None else flip_rate(logits, reference),
    }
