"""Latency, throughput, cold start, memory and energy, each in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgetl.bench.conditions import State
from edgetl.errors import EngineError

__all__ = [
    "FEWEST_CALLS",
    "Side",
    "Timed",
    "measure_cold_start",
    "measure_energy_of",
    "measure_latency",
    "measure_offline",
    "measure_paced",
    "measure_stages",
    "prepare",
]

FEWEST_CALLS = 20
_TIMEOUT_S = 600
_BUILD_TIMEOUT_S = 3600
# Run as a file: as a module it would import its package, and numpy with it, before its clock starts.
_WORKER = Path(__file__).with_name("worker.py")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Side:
    """One variant of a bundle on one engine, to be compared with others; no variant is the one a device would get."""

    bundle: Path
    variant: str
    engine: str = "cpu"


@dataclass
class Timed:
    """What interleaved timing gave.

    Attributes:
        samples_ns: Nanoseconds by side, process and call; calls of one index followed each other.
        steady: Whether every process's warm-up came to rest.
        periods: State of the machine before and after the measuring of each process.
    """

    samples_ns: list[list[list[int]]]
    steady: bool = True
    periods: list[tuple[State, State]] = field(default_factory=list)

    def add(self, found: dict[str, Any]) -> None:
        """Adds what one process found."""
        for collected, process in zip(self.samples_ns, found["samples_ns"], strict=True):
            collected.append(process)
        self.steady &= found["steady"]
        before, after = (State.from_dict(state) for state in found["states"])
        self.periods.append((before, after))


def measure_latency(
    sides: Sequence[Side],
    *,
    processes: int = 3,
    seconds: float = 2.0,
    threads: int = 1,
    timed: Timed | None = None,
    on_progress: Progress | None = None,
) -> Timed:
    """Times single pictures, all sides alive in one process and interleaved call by call.

    Fresh-process pairs of one model differ by up to 9 %, interleaved calls agree within 1.3 %; so ratios come
    from within a process, and several processes show what remains.

    Args:
        sides: What to compare.
        processes: Fresh processes, one after the other.
        seconds: Of measuring in each, after warming up; at least 20 calls a side.
        threads: Per side; one unless you know better.
        timed: An earlier result with these sides, to which the processes are added.
        on_progress: Called with (processes done, processes).

    Raises:
        EngineError: A process failed; its last words are quoted.
    """
    timed = timed or Timed([[] for _ in sides])
    for number in range(processes):
        first = len(timed.periods) % len(sides)
        order = [(first + i) % len(sides) for i in range(len(sides))]
        timed.add(_run({"kind": "latency", "seconds": seconds, "threads": threads, "order": order}, sides))
        if on_progress is not None:
            on_progress(number + 1, processes)
    return timed


def measure_paced(sides: Sequence[Side], *, fps: float, seconds: float, threads: int = 1) -> dict[str, Any]:
    """Times single pictures that come at a camera's rate, sides in turn; at least 20 calls a side.

    Returns:
        ``samples_ns`` by side, and ``late``: how many pictures of each were not answered before the next one came.

    Raises:
        EngineError: The process failed.
    """
    timeout = _TIMEOUT_S + 2 * FEWEST_CALLS * len(sides) / fps
    return _run({"kind": "paced", "fps": fps, "seconds": seconds, "threads": threads}, sides, timeout=timeout)


def measure_offline(sides: Sequence[Side], *, batches: Sequence[int], seconds: float) -> list[dict[int, list[int]]]:
    """Times batches with as many threads as the engine likes, sides in turn.

    Returns:
        By side: nanoseconds of each batch, by batch size; sizes that an engine does not take are absent.

    Raises:
        EngineError: The process failed.
    """
    found = _run({"kind": "offline", "batches": list(batches), "seconds": seconds, "threads": 0}, sides)
    return [{int(size): samples for size, samples in side.items()} for side in found["batches_ns"]]


def measure_stages(sides: Sequence[Side], pictures: Sequence[Path], *, threads: int = 1) -> list[dict[str, list[int]]]:
    """Times every stage from file to label, sides in turn.

    Returns:
        By side: nanoseconds of each picture for ``decode, preprocess, infer, postprocess``.

    Raises:
        EngineError: The process failed.
    """
    job = {"kind": "stages", "pictures": [str(path.resolve()) for path in pictures], "threads": threads}
    found: list[dict[str, list[int]]] = _run(job, sides)["stages_ns"]
    return found


def measure_energy_of(side: Side, *, seconds: float, threads: int = 1) -> dict[str, Any]:
    """Runs one side under every meter of this machine.

    Returns:
        ``energy``: a list of `edgetl.bench.energy.EnergyResult` as JSON; ``reasons``: why other meters are absent.

    Raises:
        EngineError: The process failed.
    """
    return _run({"kind": "energy", "seconds": seconds, "threads": threads}, [side])


def measure_cold_start(side: Side) -> dict[str, float | None]:
    """Loads a variant in a fresh process as a device app does, and answers once.

    Returns:
        ``import_ms``, ``load_ms``, ``first_ms``, ``peak_bytes`` (largest resident set) and ``gpu_bytes`` (of the
        GPU's memory beyond CUDA's own, None on the CPU).

    Raises:
        EngineError: The process failed.
    """
    return _run({"kind": "cold"}, [side])


def prepare(side: Side, *, on_line: Callable[[str], None] | None = None) -> dict[str, str]:
    """Opens a variant in a fresh process, which builds its plan if it needs one.

    Args:
        side: What to open.
        on_line: Called with what the engine says meanwhile.

    Returns:
        ``engine`` that took it, ``variant``, and ``reason``.

    Raises:
        EngineError: No engine takes it.
    """
    return _run({"kind": "prepare", "threads": 0}, [side], timeout=_BUILD_TIMEOUT_S, on_line=on_line)


def _run(
    job: dict[str, Any],
    sides: Sequence[Side],
    *,
    timeout: float = _TIMEOUT_S,
    on_line: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        job = {
            "order": list(range(len(sides))),
            **job,
            "sides": [{**asdict(side), "bundle": str(side.bundle.resolve())} for side in sides],
            "result": str(result),
        }
        said = _talk(json.dumps(job), timeout + 2 * job.get("seconds", 0), sides[0].bundle, on_line)
        if not result.exists():
            raise EngineError(f"measuring {sides[0].bundle} failed: {(said or ['no message'])[-1][:300]}")
        measured: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return measured


def _talk(job: str, timeout: float, bundle: Path, on_line: Callable[[str], None] | None) -> list[str]:
    """Gives a worker its job and listens to its standard error until it ends; never leaves it behind."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, str(_WORKER)], text=True, env=environment, **pipes)
    late = threading.Timer(timeout, process.kill)
    late.start()
    said = []
    try:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # it ended before it listened: what it said tells why
            process.stdin.write(job)
            process.stdin.close()
        for line in filter(None, map(str.strip, process.stderr)):
            said.append(line)
            if on_line is not None:
                on_line(line)
        process.wait()
        if not late.is_alive():
            raise EngineError(f"measuring {bundle} took more than {timeout:.0f} s; compare fewer --variant at once")
    finally:
        late.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
    return said
