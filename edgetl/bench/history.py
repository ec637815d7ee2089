"""Results over time: one line of JSON a model and run, and where a series changed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.bench.result import Entry, Result, latency_ms
from edgetl.errors import InputError

__all__ = ["METRICS", "Change", "Series", "append_history", "changes", "read_history"]

FORMAT_VERSION = 1
# name -> (key of a record, unit, factor for people, whether more is worse)
METRICS = {
    "p50": ("p50_ms", "ms", 1.0, True),
    "p90": ("p90_ms", "ms", 1.0, True),
    "top1": ("top1", "%", 100.0, False),
    "size": ("bytes", "MB", 1e-6, True),
    "memory": ("peak_bytes", "MB", 1e-6, True),
    "energy": ("joules_each", "mJ", 1e3, True),
}
_SHORTEST = 3
_PERMUTATIONS = 2000
_ALPHA = 0.05


@dataclass(frozen=True)
class Series:
    """One model on one machine over time.

    Attributes:
        name: Bundle, variant, engine and device, for people.
        machine: Which it was measured on.
        records: Oldest first.
    """

    name: str
    machine: str
    records: Sequence[dict[str, Any]]

    def values(self, metric: str) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
        """Returns the records that have a metric, and its values in the unit for people.

        Timings of invalid runs are left out, and those of machines that nothing tells apart.
        """
        key, _, factor, _ = METRICS[metric]
        timing = metric not in ("top1", "size")
        usable = [r for r in self.records if not timing or (r.get("valid", True) and r["machine"] is not None)]
        found = [record for record in usable if record.get(key) is not None]
        return found, np.array([record[key] * factor for record in found], np.float64)


@dataclass(frozen=True)
class Change:
    """Where a series has another level.

    Attributes:
        at: Index of the first value of the new level.
        before: Median of the level before.
        after: Median of the new one.
        p: How likely so clear a change in a series that has none.
    """

    at: int
    before: float
    after: float
    p: float


def append_history(path: Path, result: Result) -> int:
    """Adds a result to a history, one line for each model that was measured; tells how many.

    Raises:
        InputError: The file cannot be written to.
    """
    revision = _revision()
    lines = [json.dumps(_record(result, entry, revision), ensure_ascii=False) + "\n" for entry in result.entries]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:  # in one call, so that two runs at once do not mix their lines
            os.write(handle, "".join(lines).encode())
        finally:
            os.close(handle)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return len(lines)


def _record(result: Result, entry: Entry, revision: str | None) -> dict[str, Any]:
    latency = latency_ms(entry.samples_ns) or {}
    wanted = "RAPL" if entry.engine == "cpu" else "NVML"  # a Jetson's rails are of the whole module
    energy = next(
        (
            meter["joules_each"]
            for meter in entry.energy
            if meter["problem"] is None and meter["meter"].startswith((wanted, "rails"))
        ),
        None,
    )
    return {
        "format_version": FORMAT_VERSION,
        "created": result.created,
        "revision": revision,
        "device": result.device,
        "machine": result.host["machine"],
        "bundle": entry.bundle,
        "digest": entry.digest,
        "variant": entry.variant,
        "engine": entry.engine,
        "threads": result.settings["threads"],
        "power_mode": (result.host.get("jetson") or {}).get("power_mode"),
        "valid": result.conditions.valid,
        "p50_ms": latency.get("p50"),
        "p90_ms": latency.get("p90"),
        "processes_p50_ms": [(latency_ms([process]) or {})["p50"] for process in entry.samples_ns],
        "top1": entry.accuracy["top1"],
        "bytes": entry.bytes,
        "peak_bytes": None if entry.cold_start is None else entry.cold_start["peak_bytes"],
        "joules_each": energy,
    }


def _revision() -> str | None:
    """Returns the commit that is checked out here, with a + where files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def read_history(path: Path) -> list[Series]:
    """Returns every series of a history; machines are never put together.

    Raises:
        InputError: The file cannot be read, or a line is no record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path}: cannot be read ({reason}); edgetl bench --history {path} begins one") from None
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            record = _parsed(line, f"{path}:{number}")
            state = [record[name] for name in ("threads", "power_mode") if record.get(name) not in (None, 1)]
            key = tuple(str(record[name]) for name in ("bundle", "variant", "engine", "device", "machine"))
            key = (*key, ", ".join(f"{s} threads" if isinstance(s, int) else str(s) for s in state))
            grouped.setdefault(key, []).append(record)
    return [
        Series(
            " ".join(part for part in (*key[:4], key[5]) if part and part != "local"),
            key[4],
            sorted(records, key=_when),
        )
        for key, records in grouped.items()
    ]


def _when(record: dict[str, Any]) -> str:
    return str(record["created"])


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        known = record["format_version"]
        missing = [k for k in ("created", "bundle", "variant", "engine", "device", "machine") if k not in record]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{where}: is no line of edgetl bench --history; delete it") from None
    if known != FORMAT_VERSION or missing:
        raise InputError(f"{where}: is of another version than {FORMAT_VERSION}; delete it, or begin a new history")
    return dict(record)


def changes(values: NDArray[np.float64], *, seed: int = 0) -> list[Change]:
    """Returns where a series changes its level, in order.

    Binary segmentation: the split with the largest difference of means in units of its standard error is taken where
    fewer than one in twenty shufflings of the series have so large a one (James and Matteson, ecp, 2014, test the
    same way); then both parts. Levels are at least three values long, so that a single outlier is none.
    """
    found = sorted(_splits(values, 0, np.random.default_rng(seed)))
    bounds = [0, *(at for at, _ in found), len(values)]
    levels = [float(np.median(values[a:b])) for a, b in pairwise(bounds)]
    return [Change(at, levels[i], levels[i + 1], p) for i, (at, p) in enumerate(found)]


def _splits(values: NDArray[np.float64], offset: int, rng: np.random.Generator) -> list[tuple[int, float]]:
    if len(values) < 2 * _SHORTEST:
        return []
    [at], [score] = _clearest(values[None])
    if score == 0.0:
        return []
    _, by_chance = _clearest(rng.permuted(np.tile(values, (_PERMUTATIONS, 1)), axis=1))
    as_clear = int(np.sum(by_chance >= score))
    p = (1 + as_clear) / (1 + _PERMUTATIONS)
    if p > _ALPHA:
        return []
    left, right = _splits(values[:at], offset, rng), _splits(values[at:], offset + int(at), rng)
    return [*left, (offset + int(at), p), *right]


def _clearest(series: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns, for each series (R, N), the best place for a split and how far apart its sides are."""
    count = series.shape[1]
    ends = np.arange(_SHORTEST, count - _SHORTEST + 1)
    sums, squares = np.cumsum(series, axis=1), np.cumsum(series**2, axis=1)[:, -1:]
    left, right = sums[:, ends - 1] / ends, (sums[:, -1:] - sums[:, ends - 1]) / (count - ends)
    within = squares - ends * left**2 - (count - ends) * right**2
    spread = np.sqrt(np.maximum(within, 1e-12 * np.maximum(squares, 1e-300)) * (1 / ends + 1 / (count - ends)))
    scores = np.abs(left - right) / spread
    best = scores.argmax(axis=1)
    return ends[best], np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
