"""A fresh process that measures: ``python worker.py`` with a job as JSON on standard input.

Two jobs: ``latency`` holds all sides alive and times them call by call in turn, none spinning; ``cold`` loads
one side as a device app would and answers once.
"""

from __future__ import annotations

import time

_BORN = time.perf_counter_ns()

import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

__all__ = ["main"]

_STEADY = 0.03
_WINDOW = 12
_LONGEST_WARM_UP_S = 4.0
_FEWEST = 20


def _latency(job: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from edgetl.bundle import open_bundle
    from edgetl.runtime.loading import session_for

    calls = []
    for side in job["sides"]:
        bundle = open_bundle(side["bundle"])
        session = session_for(bundle, bundle.variant(side["variant"]), threads=job["threads"])
        shape = (1, *bundle.spec.preprocess.input_shape)
        picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        calls.append(lambda session=session, picture=picture: session.infer(picture))
    for call in calls:
        _warm_up(call)
    samples: list[list[int]] = [[] for _ in calls]
    end = time.perf_counter() + job["seconds"]
    order = list(range(len(calls)))
    while len(samples[0]) < _FEWEST or time.perf_counter() < end:
        order.reverse()  # whoever goes first finds other caches
        for index in order:
            start = time.perf_counter_ns()
            calls[index]()
            samples[index].append(time.perf_counter_ns() - start)
    return {"samples_ns": samples}


def _warm_up(call: Any) -> None:
    """Calls until the median of a window differs little from the one before."""
    end = time.perf_counter() + _LONGEST_WARM_UP_S
    before = 0.0
    while time.perf_counter() < end:
        window = []
        for _ in range(_WINDOW):
            start = time.perf_counter_ns()
            call()
            window.append(time.perf_counter_ns() - start)
        median = sorted(window)[_WINDOW // 2]
        if abs(median - before) <= _STEADY * median:
            return
        before = median


def _cold(job: dict[str, Any]) -> dict[str, Any]:
    import edgetl

    imported = time.perf_counter_ns()
    side = job["sides"][0]
    with edgetl.load(side["bundle"], variant=side["variant"], engine="cpu") as classify:
        loaded = time.perf_counter_ns()
        height, width, channels = classify.spec.preprocess.input_shape
        import numpy as np

        classify(np.full((height, width, channels), 127, np.uint8))
        answered = time.perf_counter_ns()
    return {
        "import_ms": (imported - _BORN) / 1e6,
        "load_ms": (loaded - imported) / 1e6,
        "first_ms": (answered - loaded) / 1e6,
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Largest resident set of this program; getrusage would count the parent's, from before exec."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Reads a job, writes its result to the file it names."""
    sys.path.remove(str(Path(__file__).resolve().parent))  # a script's folder is not a place to import from
    job = json.load(sys.stdin)
    result = {"latency": _latency, "cold": _cold}[job["kind"]](job)
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
