"""Latency, cold start and memory, each in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.errors import EngineError

__all__ = ["Side", "measure_cold_start", "measure_latency"]

_TIMEOUT_S = 600
# Run as a file: as a module it would import its package, and numpy with it, before its clock starts.
_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Side:
    """One variant of a bundle, to be compared with others."""

    bundle: Path
    variant: str


def measure_latency(
    sides: Sequence[Side],
    *,
    processes: int = 3,
    seconds: float = 2.0,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[list[int]]]:
    """Times single pictures, all sides alive in one process and interleaved call by call.

    Fresh-process pairs of one model differ by up to 9 %, interleaved calls agree within 1.3 %; so ratios come
    from within a process, and several processes show what remains.

    Args:
        sides: What to compare.
        processes: Fresh processes, one after the other.
        seconds: Of measuring in each, after warming up; at least 20 calls a side.
        threads: Per side; one unless you know better.
        on_progress: Called with (processes done, processes).

    Returns:
        Nanoseconds by side, process and call.

    Raises:
        EngineError: A process failed; its last words are quoted.
    """
    samples: list[list[list[int]]] = [[] for _ in sides]
    for number in range(processes):
        found = _run({"kind": "latency", "seconds": seconds, "threads": threads}, sides)["samples_ns"]
        for collected, process in zip(samples, found, strict=True):
            collected.append(process)
        if on_progress is not None:
            on_progress(number + 1, processes)
    return samples


def measure_cold_start(side: Side) -> dict[str, float]:
    """Loads a variant in a fresh process as a device app does, and answers once.

    Returns:
        ``import_ms``, ``load_ms``, ``first_ms`` and ``peak_bytes`` (largest resident set).

    Raises:
        EngineError: The process failed.
    """
    found: dict[str, float] = _run({"kind": "cold"}, [side])
    return found


def _run(job: dict[str, Any], sides: Sequence[Side]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        job = {
            **job,
            "sides": [{"bundle": str(side.bundle.resolve()), "variant": side.variant} for side in sides],
            "result": str(result),
        }
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        timeout = _TIMEOUT_S + 2 * job.get("seconds", 0)
        try:
            done = subprocess.run(
                [sys.executable, str(_WORKER)],
                input=json.dumps(job),
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(
                f"measuring {sides[0].bundle} took more than {timeout:.0f} s; compare fewer --variant at once"
            ) from None
        if done.returncode != 0 or not result.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise EngineError(f"measuring {sides[0].bundle} failed: {last[:300]}")
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return measured
