"""The benchmark stage: bundles in, one result with accuracy, latency, size, memory and cold start out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import host
from edgetl.bench.accuracy import answers, label_indices, scores
from edgetl.bench.measure import Side, measure_cold_start, measure_latency
from edgetl.bench.result import Entry, paired_ratio
from edgetl.bundle import Bundle, Variant, open_bundle
from edgetl.dataset import Dataset
from edgetl.errors import DatasetError, EngineError, InputError

__all__ = ["BenchConfig", "Contender", "bench", "native", "settings_to_dict"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BenchConfig:
    """How bundles are compared.

    Attributes:
        variants: Names to look at; empty takes all that a bundle has.
        engine: ``auto`` or ``cpu``.
        processes: Fresh processes in which latency is measured.
        seconds: Of measuring in each.
        threads: Per side while latency is measured.
    """

    variants: tuple[str, ...] = ()
    engine: str = "auto"
    processes: int = 3
    seconds: float = 2.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.engine not in ("auto", "cpu"):
            raise EngineError(f'engine "{self.engine}" is unknown: it must be auto or cpu')
        if not 1 <= self.processes <= 100 or not 0.05 <= self.seconds <= 3600 or not 0 <= self.threads <= 1024:
            raise InputError("--processes must be 1 to 100, --seconds 0.05 to 3600, --threads 0 to 1024")


@dataclass(frozen=True)
class Contender:
    """A bundle, the data it is judged on (None: latency alone), and which split of it, or ``all``."""

    name: str
    path: Path
    dataset: Dataset | None
    split: str = "val"


def settings_to_dict(config: BenchConfig, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Returns how a result was measured, and on which data, as JSON."""
    data = [
        {"bundle": c.name, "source": c.dataset.root, "digest": c.dataset.digest, "split": c.split}
        for c in contenders
        if c.dataset is not None
    ]
    return {**dataclasses.asdict(config), "variants": list(config.variants), "data": data}


def native(variant: Variant) -> bool:
    """Tells whether this machine's CPU engine runs a variant as it would be deployed."""
    return variant.precision == "fp32" or variant.target == host.arch()


def bench(contenders: Sequence[Contender], config: BenchConfig, *, on_progress: Progress) -> list[Entry]:
    """Measures every wanted variant of every bundle.

    Ratios are against the first variant of the first bundle that this machine runs.

    Raises:
        BundleError: A bundle is damaged, or lacks a variant.
        DatasetError: A data set has no pictures in the split.
    """
    opened = [(contender, open_bundle(contender.path)) for contender in contenders]
    chosen = [(c, b, v) for c, b in opened for v in _variants(b, config)]
    running = [number for number, (_, _, variant) in enumerate(chosen) if native(variant)]
    if not running:
        raise EngineError(
            f"none of the variants asked for runs on this machine's CPU; it runs fp32 and int8-{host.arch()}"
        )
    accuracy = [entry for c, b in opened for entry in _accuracy(c, b, _variants(b, config), on_progress)]
    timed = measure_latency(
        [Side(chosen[number][0].path, chosen[number][2].name) for number in running],
        processes=config.processes,
        seconds=config.seconds,
        threads=config.threads,
        on_progress=lambda done, total: on_progress("latency", done, total),
    )
    samples = dict(zip(running, timed, strict=True))
    entries = []
    for number, ((contender, bundle, variant), found) in enumerate(zip(chosen, accuracy, strict=True)):
        runs = number in samples
        cold = measure_cold_start(Side(contender.path, variant.name)) if runs else None
        on_progress("cold start", number + 1, len(chosen))
        notes = [] if runs else [f"latency: {_why_not(variant)}"]
        if contender.dataset is not None and found["top1"] is None:
            notes.append(_why_no_accuracy(bundle))
        entries.append(
            Entry(
                contender.name, bundle.digest, variant.name, "cpu", samples.get(number, []), variant.bytes, found, cold,
                notes=tuple(notes),
            )
        )  # fmt: skip
    return [dataclasses.replace(e, latency_ratio=paired_ratio(e.samples_ns, timed[0])) for e in entries]


def _why_not(variant: Variant) -> str:
    if variant.precision == "fp16":
        return "FP16 is for GPUs; no kernels for it on this CPU"
    return f"made for {variant.target}, which is not this machine"


def _why_no_accuracy(bundle: Bundle) -> str:
    probe = bundle.manifest["proof"].get("probe_top1")
    beside = "" if probe is None else f"; a linear probe on its frozen features reached {probe:.1%} at export"
    return f"accuracy: the data's classes are not among this model's labels{beside}"


def _variants(bundle: Bundle, config: BenchConfig) -> list[Variant]:
    if config.variants:
        return [bundle.variant(name) for name in config.variants]
    return list(bundle.variants)


def _accuracy(
    contender: Contender, bundle: Bundle, variants: Sequence[Variant], on_progress: Progress
) -> list[dict[str, float | None]]:
    if contender.dataset is None:
        return [{"top1": None, "macro_f1": None, "flip_rate": None} for _ in variants]
    split = contender.split
    items = contender.dataset.items if split == "all" else contender.dataset.split(split)
    if not items:
        raise DatasetError(f"{contender.dataset.root}: has no pictures in the split {split}")
    reference = bundle.variant("fp32")
    wanted = [reference, *(v for v in variants if v is not reference)]
    found = answers(
        bundle, wanted, items, on_progress=lambda done, total: on_progress(f"{contender.name}: accuracy", done, total)
    )
    labels = label_indices(bundle.spec, contender.dataset, items)
    by_name = {v.name: scores(logits, labels, found[0]) for v, logits in zip(wanted, found, strict=True)}
    return [by_name[v.name] for v in variants]
