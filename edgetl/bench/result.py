"""A benchmark's result: raw samples are kept, statistics are derived from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["FORMAT_VERSION", "Entry", "latency_ms", "paired_ratio", "result_to_dict"]

FORMAT_VERSION = 1
Samples = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Entry:
    """One variant of one bundle on one engine.

    Attributes:
        bundle: As the user named it.
        digest: Of the bundle.
        variant: Name.
        engine: What ran the graph.
        samples_ns: Per process, one number per call; empty where this machine cannot run the variant natively.
        bytes: Size of the graph's file.
        accuracy: ``top1, macro_f1, flip_rate`` as fractions, None where not measured.
        cold_start: ``import_ms, load_ms, first_ms, peak_bytes`` of a fresh process, or None.
        latency_ratio: Median over processes of this variant's median over the first entry's, or None.
        notes: What could not be measured, and why.
    """

    bundle: str
    digest: str
    variant: str
    engine: str
    samples_ns: Samples
    bytes: int
    accuracy: Mapping[str, float | None]
    cold_start: Mapping[str, float] | None = None
    latency_ratio: float | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, statistics included for readers without numpy."""
        latency = latency_ms(self.samples_ns)
        return {
            "bundle": self.bundle,
            "digest": self.digest,
            "variant": self.variant,
            "engine": self.engine,
            "samples_ns": [list(process) for process in self.samples_ns],
            "latency_ms": latency,
            "throughput_ips": None if latency is None else 1e3 / latency["mean"],
            "latency_ratio": self.latency_ratio,
            "bytes": self.bytes,
            "accuracy": dict(self.accuracy),
            "cold_start": None if self.cold_start is None else dict(self.cold_start),
            "notes": list(self.notes),
        }


def latency_ms(samples_ns: Samples) -> dict[str, float] | None:
    """Returns p50, p90, p99 and mean over all processes in milliseconds, or None without samples."""
    values = np.array([sample for process in samples_ns for sample in process], dtype=np.float64) / 1e6
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": float(values.mean())}


def paired_ratio(samples_ns: Samples, reference_ns: Samples) -> float | None:
    """Returns the median over processes of the median ratio of neighbouring calls; None without samples.

    Both sides of a ratio ran within milliseconds of each other, so whatever slows the machine slows both.
    """
    ratios = [
        float(np.median(np.asarray(ours, np.float64) / np.asarray(theirs, np.float64)))
        for ours, theirs in zip(samples_ns, reference_ns, strict=False)
        if len(ours) and len(ours) == len(theirs)
    ]
    return float(np.median(ratios)) if ratios else None


def result_to_dict(host: Mapping[str, Any], entries: Sequence[Entry], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the whole result as JSON; ``settings`` say how it was measured, and on which data."""
    return {
        "format_version": FORMAT_VERSION,
        "host": dict(host),
        "settings": dict(settings),
        "results": [entry.to_dict() for entry in entries],
    }
