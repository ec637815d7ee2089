"""What a bundle's variants answer on a data set, every picture decoded once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.bench.fidelity import fidelity_report
from edgetl.bundle import Bundle, Variant
from edgetl.dataset import Dataset, Item, input_batches
from edgetl.metrics import classification_report, flip_rate, macro_f1, top1
from edgetl.runtime import load
from edgetl.runtime.loading import session_for
from edgetl.spec import ModelSpec

__all__ = ["Judged", "answers", "judged", "label_indices", "scores"]


@dataclass(frozen=True)
class Judged:
    """What a variant is worth on pictures.

    Attributes:
        accuracy: As `scores` returns it.
        report: ``classification`` and ``fidelity``, where they could be measured, and ``non_finite``: how many
            answers were NaN or infinity, if any; they count as wrong.
    """

    accuracy: Mapping[str, float | None]
    report: Mapping[str, Any] = field(default_factory=dict)


def judged(
    bundle: Bundle,
    wanted: Sequence[tuple[Variant, str]],
    items: Sequence[Item],
    dataset: Dataset | None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    """Returns what each variant on its engine is worth, against the bundle's own FP32 on the CPU.

    Args:
        bundle: That holds the variants.
        wanted: Variants, each with its engine.
        items: Pictures to judge on.
        dataset: They are of; None measures nothing.
        on_progress: Called with (pictures done, pictures).
    """
    if dataset is None:
        return [Judged({"top1": None, "macro_f1": None, "flip_rate": None}) for _ in wanted]
    fp32 = (bundle.variant("fp32"), "cpu")
    pairs = [fp32, *(pair for pair in wanted if pair != fp32)]
    logits = answers(bundle, pairs, items, on_progress=on_progress)
    labels = label_indices(bundle.spec, dataset, items)
    names = bundle.spec.labels
    reference, _ = _finite(logits[0], logits[0] if labels is None else labels)
    pictures = [str(item.path) for item in items]
    found = {}
    for pair, raw in zip(pairs, logits, strict=True):
        own, broken = _finite(raw, reference if labels is None else labels)
        report: dict[str, Any] = {"fidelity": fidelity_report(own, reference, labels, names, pictures)}
        if labels is not None:
            report["classification"] = classification_report(own, labels, names)
        if broken:
            report["non_finite"] = broken
        found[pair[0].name, pair[1]] = Judged(scores(own, labels, reference), report)
    return [found[variant.name, engine] for variant, engine in wanted]


def _finite(logits: NDArray[np.float32], right: NDArray[Any]) -> tuple[NDArray[np.float32], int]:
    """Returns logits in which an answer of NaN or infinity is a wrong decision, and how many there were.

    Args:
        logits: (N, C).
        right: (N,) labels, or (N, C) of a reference.
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if not len(broken):
        return logits, 0
    right = right.argmax(axis=1) if right.ndim == 2 else right
    mended = logits.copy()
    mended[broken] = 0.0
    mended[broken, (right[broken] + 1) % logits.shape[1]] = 1.0
    return mended, len(broken)


def answers(
    bundle: Bundle,
    wanted: Sequence[tuple[Variant, str]],
    items: Sequence[Item],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[NDArray[np.float32]]:
    """Returns logits (N, C) for each variant on its engine.

    On the CPU, TensorRT's and other processors' INT8 forms are computed as their Q/DQ nodes stand.
    """
    with ExitStack() as stack:
        sides = [_answering(stack, bundle, variant, engine) for variant, engine in wanted]
        rows: list[list[NDArray[np.float32]]] = [[] for _ in sides]
        done = 0
        for batch in input_batches(items, bundle.spec.preprocess):
            for collected, answer in zip(rows, sides, strict=True):
                collected.append(answer(batch))
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(items))
    return [np.concatenate(collected) for collected in rows]


def _answering(
    stack: ExitStack, bundle: Bundle, variant: Variant, engine: str
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    if engine == "cpu":
        session = session_for(bundle, variant)
        stack.callback(session.close)
        return lambda batch: session.infer(batch)["logits"]
    classify = stack.enter_context(load(bundle, variant=variant.name, engine=engine))
    run, size = classify.session.infer, classify.session.max_batch
    return lambda batch: np.concatenate([run(batch[i : i + size])["logits"] for i in range(0, len(batch), size)])


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
