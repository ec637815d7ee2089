"""The benchmark stage: bundles in, one result with accuracy, latency, size, memory, cold start and energy out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from edgetl import host
from edgetl.bench.accuracy import Judged, judged
from edgetl.bench.compare import Comparison, compare_all
from edgetl.bench.conditions import Conditions, fingerprint, instabilities, judge
from edgetl.bench.measure import (
    Side,
    Timed,
    measure_cold_start,
    measure_energy_of,
    measure_latency,
    measure_offline,
    measure_paced,
    measure_stages,
    prepare,
)
from edgetl.bench.result import Entry, Result, latency_ms
from edgetl.bundle import Bundle, Variant, open_bundle
from edgetl.dataset import Dataset, Item
from edgetl.errors import DatasetError, EngineError, InputError
from edgetl.runtime.loading import ENGINES

__all__ = [
    "BenchConfig",
    "Contender",
    "Latency",
    "Row",
    "bench",
    "check_pictures",
    "complete",
    "native",
    "rows_of",
    "settings_to_dict",
]

Progress = Callable[[str, int, int], None]

_STAGED_PICTURES = 48


@dataclass(frozen=True)
class BenchConfig:
    """How bundles are compared.

    Attributes:
        variants: Names to look at; empty takes all that a bundle has.
        engines: Of `edgetl.runtime.loading.ENGINES`; each variant is measured on each.
        processes: Fresh processes in which latency is measured.
        seconds: Of measuring in each.
        threads: Per side while latency is measured.
        fps: Rate of a camera at which latency is measured as well; None leaves it out.
        batches: Batch sizes whose throughput is measured as well.
        energy: Whether energy is measured as well.
    """

    variants: tuple[str, ...] = ()
    engines: tuple[str, ...] = ("auto",)
    processes: int = 3
    seconds: float = 2.0
    threads: int = 1
    fps: float | None = None
    batches: tuple[int, ...] = ()
    energy: bool = False

    def __post_init__(self) -> None:
        for engine in self.engines:
            if engine not in ENGINES:
                raise EngineError(f'engine "{engine}" is unknown: it must be one of {", ".join(ENGINES)}')
        if not 1 <= self.processes <= 100 or not 0.05 <= self.seconds <= 3600 or not 0 <= self.threads <= 1024:
            raise InputError("--processes must be 1 to 100, --seconds 0.05 to 3600, --threads 0 to 1024")
        if self.fps is not None and not 0.1 <= self.fps <= 1000:
            raise InputError("--fps must be 0.1 to 1000 pictures a second")
        if not all(1 <= size <= 4096 for size in self.batches):
            raise InputError("--batch takes sizes of 1 to 4096")


@dataclass(frozen=True)
class Contender:
    """A bundle, the data it is judged on (None: latency alone), and which split of it, or ``all``."""

    name: str
    path: Path
    dataset: Dataset | None
    split: str = "val"

    @property
    def items(self) -> Sequence[Item]:
        """What it is judged on."""
        if self.dataset is None:
            return []
        return self.dataset.items if self.split == "all" else self.dataset.split(self.split)


def settings_to_dict(config: BenchConfig, contenders: Sequence[Contender]) -> dict[str, Any]:
    """Returns how a result was measured, and on which data, as JSON."""
    data = [
        {"bundle": c.name, "source": c.dataset.root, "digest": c.dataset.digest, "split": c.split}
        for c in contenders
        if c.dataset is not None
    ]
    lists = {name: list(getattr(config, name)) for name in ("variants", "engines", "batches")}
    return {**dataclasses.asdict(config), **lists, "data": data}


def native(variant: Variant) -> bool:
    """Tells whether this machine's CPU engine runs a variant as it would be deployed."""
    return variant.precision == "fp32" or variant.target == host.arch()


@dataclass(frozen=True)
class Row:
    """A variant on an engine; ``engine`` is empty where none runs it here, and ``why_not`` says why."""

    contender: Contender
    bundle: Bundle
    variant: Variant
    engine: str
    why_not: str = ""

    @property
    def side(self) -> Side:
        """What is measured."""
        return Side(self.contender.path, self.variant.name, self.engine)


def rows_of(contenders: Sequence[Contender], config: BenchConfig, *, on_progress: Progress) -> list[Row]:
    """Returns every wanted variant on every wanted engine; on a GPU, this builds the plans that are missing.

    Raises:
        BundleError: A bundle is damaged, or lacks a variant.
        EngineError: Nothing runs here.
    """
    opened = [(contender, open_bundle(contender.path)) for contender in contenders]
    wanted = [(c, b, v, e) for c, b in opened for v in _variants(b, config) for e in config.engines]
    found: dict[tuple[int, str, str], Row] = {}
    for number, (contender, bundle, variant, engine) in enumerate(wanted):
        on_progress("engines", number, len(wanted))
        row = Row(contender, bundle, variant, *_engine(contender.path, variant, engine, on_progress))
        found.setdefault((id(contender), variant.name, row.engine), row)
        on_progress("engines", number + 1, len(wanted))
    rows = list(found.values())
    if not any(row.engine for row in rows):
        raise EngineError(f"none of the variants asked for runs here: {rows[0].variant.name}: {rows[0].why_not}")
    return rows


def _variants(bundle: Bundle, config: BenchConfig) -> list[Variant]:
    if config.variants:
        return [bundle.variant(name) for name in config.variants]
    return list(bundle.variants)


def _engine(path: Path, variant: Variant, wanted: str, on_progress: Progress) -> tuple[str, str]:
    """Returns the engine that runs a variant, or nothing and why."""
    if wanted == "cpu" or (wanted == "auto" and not host.has_nvidia_device()):
        return ("cpu", "") if native(variant) else ("", _why_not(variant))
    try:
        found = prepare(Side(path, variant.name, wanted), on_line=lambda line: on_progress(line[:100], 0, 0))
    except EngineError as error:
        return "", str(error)
    if found["engine"] == "cpu" and not native(variant):
        return "", found["reason"]
    return found["engine"], ""


def _why_not(variant: Variant) -> str:
    if variant.precision == "fp16":
        return "FP16 is for GPUs; no kernels for it on this CPU"
    return f"made for {variant.target}, which is not this machine"


@dataclass
class _Figures:
    """What was measured of one row."""

    cold_start: dict[str, float | None] | None = None
    paced: dict[str, Any] | None = None
    batches_ns: dict[int, list[int]] = field(default_factory=dict)
    stages_ns: dict[str, list[int]] = field(default_factory=dict)
    energy: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def bench(contenders: Sequence[Contender], config: BenchConfig, *, on_progress: Progress) -> Result:
    """Measures every wanted variant of every bundle.

    Ratios are against the first variant of the first bundle that this machine runs.

    Raises:
        BundleError: A bundle is damaged, or lacks a variant.
        DatasetError: A data set has no pictures in the split.
        EngineError: Nothing runs here, or a measurement failed.
    """
    facts = fingerprint()
    check_pictures(contenders)
    rows = rows_of(contenders, config, on_progress=on_progress)
    running = [number for number, row in enumerate(rows) if row.engine]
    timed = measure_latency(
        [rows[number].side for number in running],
        processes=config.processes,
        seconds=config.seconds,
        threads=config.threads,
        on_progress=partial(on_progress, "latency"),
    )
    found = compare_all(timed.samples_ns[1:], timed.samples_ns[0])
    latencies = [
        Latency(samples, comparison) for samples, comparison in zip(timed.samples_ns, [None, *found], strict=True)
    ]
    by_row = dict(zip(running, latencies, strict=True))
    return complete(contenders, rows, by_row, timed, facts, config, on_progress=on_progress)


def check_pictures(contenders: Sequence[Contender]) -> None:
    """Refuses data without pictures.

    Raises:
        DatasetError: A split has none.
    """
    for contender in contenders:
        if contender.dataset is not None and not contender.items:
            raise DatasetError(f"{contender.dataset.root}: has no pictures in the split {contender.split}")


@dataclass(frozen=True)
class Latency:
    """What timing gave for one row: nanoseconds by process and call, and how they compare with the reference."""

    samples_ns: list[list[int]]
    comparison: Comparison | None


def complete(
    contenders: Sequence[Contender],
    rows: Sequence[Row],
    latencies: Mapping[int, Latency],
    timed: Timed,
    facts: dict[str, Any],
    config: BenchConfig,
    *,
    on_progress: Progress,
) -> Result:
    """Measures everything beside latency, and puts the result together.

    Args:
        contenders: What is compared.
        rows: Of `rows_of`.
        latencies: By row; rows that nothing runs here have none.
        timed: The timing they are of.
        facts: `edgetl.bench.conditions.fingerprint`.
        config: Settings.
        on_progress: See `bench`.
    """
    accuracy = _accuracy(contenders, rows, on_progress)
    figures = [_Figures() for _ in rows]
    _more(contenders, rows, figures, config, on_progress)
    entries = []
    for number, (row, found, worth) in enumerate(zip(rows, figures, accuracy, strict=True)):
        latency = latencies.get(number, Latency([], None))
        entries.append(
            Entry(
                bundle=row.contender.name,
                digest=row.bundle.digest,
                variant=row.variant.name,
                engine=row.engine,
                samples_ns=latency.samples_ns,
                bytes=row.variant.bytes,
                accuracy=worth.accuracy,
                cold_start=found.cold_start,
                comparison=latency.comparison,
                paced=found.paced,
                batches_ns=found.batches_ns,
                stages_ns=found.stages_ns,
                energy=found.energy,
                report=worth.report,
                notes=(*_notes(row, worth), *found.notes),
            )
        )
    conditions = _conditions(facts, timed, [rows[number].engine for number in latencies], config.threads)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Result(facts, settings_to_dict(config, contenders), entries, conditions, created)


def _conditions(facts: dict[str, Any], timed: Timed, engines: Sequence[str], threads: int) -> Conditions:
    """Returns what a timing is worth."""
    found = judge(
        timed.periods, cores=facts["cores"], threads=threads, on_cpu=all(engine == "cpu" for engine in engines)
    )
    medians = [[latency["p50"] for p in side if (latency := latency_ms([p]))] for side in timed.samples_ns]
    warnings = (*found.warnings, *instabilities(facts, medians, timed.steady))
    return dataclasses.replace(found, warnings=warnings)


def _accuracy(contenders: Sequence[Contender], rows: Sequence[Row], on_progress: Progress) -> list[Judged]:
    found: dict[int, Judged] = {}
    for contender in contenders:
        own = [number for number, row in enumerate(rows) if row.contender is contender]
        answers = judged(
            rows[own[0]].bundle,
            [(rows[number].variant, rows[number].engine or "cpu") for number in own],
            contender.items,
            contender.dataset,
            on_progress=partial(on_progress, f"{contender.name}: accuracy"),
        )
        found.update(zip(own, answers, strict=True))
    return [found[number] for number in range(len(rows))]


def _more(
    contenders: Sequence[Contender],
    rows: Sequence[Row],
    figures: Sequence[_Figures],
    config: BenchConfig,
    on_progress: Progress,
) -> None:
    """Measures everything beside accuracy and latency."""
    running = [(row, found) for row, found in zip(rows, figures, strict=True) if row.engine]
    sides = [row.side for row, _ in running]
    for number, (row, found) in enumerate(running):
        found.cold_start = measure_cold_start(row.side)
        on_progress("cold start", number + 1, len(running))
    if config.fps is not None:
        on_progress(f"latency at {config.fps:g} pictures a second", 0, 0)
        paced = measure_paced(sides, fps=config.fps, seconds=config.seconds, threads=config.threads)
        for (_, found), samples, late in zip(running, paced["samples_ns"], paced["late"], strict=True):
            found.paced = {"fps": config.fps, "samples_ns": samples, "late": late}
    if config.batches:
        on_progress("throughput", 0, 0)
        offline = measure_offline(sides, batches=config.batches, seconds=config.seconds * config.processes)
        for (_, found), batches in zip(running, offline, strict=True):
            found.batches_ns = batches
            left_out = ", ".join(str(size) for size in config.batches if size not in batches)
            found.notes += [f"throughput: takes no batch of {left_out} here"] if left_out else []
    for contender in contenders:
        own = [(row, found) for row, found in running if row.contender is contender]
        if contender.dataset is None or not own:
            continue
        on_progress("stages from file to label", 0, 0)
        pictures = _spread(contender.items)
        for (_, found), stages in zip(own, measure_stages([r.side for r, _ in own], pictures), strict=True):
            found.stages_ns = stages
    if config.energy:
        for number, (row, found) in enumerate(running):
            measured = measure_energy_of(row.side, seconds=config.seconds, threads=config.threads)
            found.energy = measured["energy"]
            found.notes += [] if found.energy else [f"energy: {'; '.join(measured['reasons'])}"]
            on_progress("energy", number + 1, len(running))


def _spread(items: Sequence[Item]) -> list[Path]:
    count = min(_STAGED_PICTURES, len(items))
    return [items[number * len(items) // count].path for number in range(count)]


def _notes(row: Row, found: Judged) -> list[str]:
    notes = [] if row.engine else [f"latency: {row.why_not}"]
    if broken := found.report.get("non_finite"):
        notes.append(f"accuracy: {broken} answers are NaN or infinity, and count as wrong")
    if row.contender.dataset is not None and found.accuracy["top1"] is None:
        probe = row.bundle.manifest["proof"].get("probe_top1")
        beside = "" if probe is None else f"; a linear probe on its frozen features reached {probe:.1%} at export"
        notes.append(f"accuracy: the data's classes are not among this model's labels{beside}")
    return notes
