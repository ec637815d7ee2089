"""A benchmark's result: raw samples are kept, statistics are derived from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgetl.bench.compare import Comparison
from edgetl.bench.conditions import Conditions
from edgetl.errors import InputError

__all__ = ["FORMAT_VERSION", "STAGES", "Entry", "Result", "latency_ms", "paired_ratio", "read_result"]

FORMAT_VERSION = 2
STAGES = ("decode", "preprocess", "infer", "postprocess")
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
        cold_start: ``import_ms, load_ms, first_ms, peak_bytes, gpu_bytes`` of a fresh process, or None.
        comparison: With the first entry that was timed; None for that itself, and where nothing was timed.
        paced: ``fps, samples_ns, late`` of pictures at a camera's rate, or None.
        batches_ns: Nanoseconds of each batch, by batch size.
        stages_ns: Nanoseconds of each picture, by stage from file to label.
        energy: Of each meter, as `edgetl.bench.energy.EnergyResult` tells it.
        report: ``classification`` as `edgetl.metrics.classification_report` and ``fidelity`` as
            `edgetl.bench.fidelity.fidelity_report` tell them; empty where no pictures were judged.
        notes: What could not be measured, and why.
    """

    bundle: str
    digest: str
    variant: str
    engine: str
    samples_ns: Samples
    bytes: int
    accuracy: Mapping[str, float | None]
    cold_start: Mapping[str, float | None] | None = None
    comparison: Comparison | None = None
    paced: Mapping[str, Any] | None = None
    batches_ns: Mapping[int, Sequence[int]] = field(default_factory=dict)
    stages_ns: Mapping[str, Sequence[int]] = field(default_factory=dict)
    energy: Sequence[Mapping[str, Any]] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """Bundle, variant and engine, for people."""
        return f"{self.bundle} {self.variant}" + ("" if self.engine in ("cpu", "") else f" ({self.engine})")

    @property
    def latency_ratio(self) -> float | None:
        """Latency over the first entry's; None where nothing was timed."""
        if not self.samples_ns:
            return None
        return 1.0 if self.comparison is None else self.comparison.ratio

    @property
    def throughput(self) -> dict[int, float]:
        """Pictures a second by batch size, from the median batch."""
        return {size: size / (float(np.median(ns)) / 1e9) for size, ns in self.batches_ns.items()}

    @property
    def stages_ms(self) -> dict[str, float]:
        """Median milliseconds by stage."""
        return {stage: float(np.median(ns)) / 1e6 for stage, ns in self.stages_ns.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form, statistics included for readers without numpy."""
        latency = latency_ms(self.samples_ns)
        paced = self.paced and {**self.paced, "latency_ms": latency_ms([self.paced["samples_ns"]])}
        return {
            "bundle": self.bundle,
            "digest": self.digest,
            "variant": self.variant,
            "engine": self.engine,
            "samples_ns": [list(process) for process in self.samples_ns],
            "latency_ms": latency,
            "throughput_ips": None if latency is None else 1e3 / latency["mean"],
            "latency_ratio": self.latency_ratio,
            "comparison": self.comparison and self.comparison.to_dict(),
            "paced": paced,
            "offline": [
                {"batch": size, "samples_ns": list(self.batches_ns[size]), "images_per_s": rate}
                for size, rate in self.throughput.items()
            ],
            "stages_ns": {stage: list(ns) for stage, ns in self.stages_ns.items()},
            "stages_ms": self.stages_ms,
            "energy": [dict(meter) for meter in self.energy],
            "bytes": self.bytes,
            "accuracy": dict(self.accuracy),
            "report": dict(self.report),
            "cold_start": None if self.cold_start is None else dict(self.cold_start),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Entry:
        """Reads the JSON form; what is derived is derived again."""
        found, paced = data["comparison"], data["paced"]
        fields = ("ratio", "low", "high", "p", "processes")
        return cls(
            **{name: data[name] for name in _PLAIN},
            comparison=found and Comparison(**{name: found[name] for name in fields}),
            paced=paced and {name: paced[name] for name in ("fps", "samples_ns", "late")},
            batches_ns={row["batch"]: row["samples_ns"] for row in data["offline"]},
            notes=tuple(data["notes"]),
        )


_PLAIN = (
    "bundle", "digest", "variant", "engine", "samples_ns", "bytes", "accuracy", "cold_start",
    "stages_ns", "energy", "report",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one benchmark measured on one machine.

    Attributes:
        host: `edgetl.bench.conditions.fingerprint` of the machine.
        settings: How it was measured, and on which data.
        entries: In the order they were asked for.
        conditions: Whether the machine was fit for it.
        created: UTC, ISO 8601.
        device: ``local``, or the board's name.
    """

    host: Mapping[str, Any]
    settings: Mapping[str, Any]
    entries: Sequence[Entry]
    conditions: Conditions
    created: str
    device: str = "local"

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "format_version": FORMAT_VERSION,
            "created": self.created,
            "device": self.device,
            "host": dict(self.host),
            "settings": dict(self.settings),
            "conditions": self.conditions.to_dict(),
            "results": [entry.to_dict() for entry in self.entries],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Reads the JSON form; may raise KeyError or TypeError."""
        return cls(
            host=data["host"],
            settings=data["settings"],
            entries=tuple(Entry.from_dict(entry) for entry in data["results"]),
            conditions=Conditions.from_dict(data["conditions"]),
            created=data["created"],
            device=data["device"],
        )


def read_result(path: Path) -> Result:
    """Reads a result that ``edgetl bench --json`` wrote.

    Raises:
        InputError: The file cannot be read, is no result, or is of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({str(error)[:80]})") from None
    if isinstance(data, list):
        raise InputError(
            f"{path}: holds the results of several devices; give --device one at a time for a file of each"
        )
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path}: has format_version {version}, this edgetl reads {FORMAT_VERSION}: measure it again by "
            "edgetl bench --json"
        )
    try:
        return Result.from_dict(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is no result of edgetl bench ({type(error).__name__}: {error})") from None


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
