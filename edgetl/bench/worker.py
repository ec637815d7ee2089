"""A fresh process that measures: ``python worker.py`` with a job as JSON on standard input.

``cold`` loads one side as a device app would and answers once; every other job is in `edgetl.bench.jobs`.
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


def _cold(job: dict[str, Any]) -> dict[str, Any]:
    from edgetl import load  # which is imported when it is asked for

    imported = time.perf_counter_ns()
    side = job["sides"][0]
    start = time.perf_counter_ns()
    before = _gpu_free(side["engine"])  # makes CUDA's context, which is part of loading
    with load(side["bundle"], variant=side["variant"], engine=side["engine"]) as classify:
        loaded = time.perf_counter_ns()
        height, width, channels = classify.spec.preprocess.input_shape
        import numpy as np

        classify(np.full((height, width, channels), 127, np.uint8))
        answered = time.perf_counter_ns()
        after = _gpu_free(side["engine"])
    return {
        "import_ms": (imported - _BORN) / 1e6,
        "load_ms": (loaded - start) / 1e6,
        "first_ms": (answered - loaded) / 1e6,
        "peak_bytes": _peak_bytes(),
        "gpu_bytes": None if before is None or after is None else max(0, before - after),
    }


def _gpu_free(engine: str) -> int | None:
    """Bytes of the GPU that nobody has; None on the CPU, or where the bindings are not installed."""
    if engine == "cpu":
        return None
    from edgetl.errors import EdgetlError
    from edgetl.gpu import call, cuda

    try:
        free, _ = call(cuda().cudaMemGetInfo())
    except EdgetlError:
        return None
    return int(free)


def _peak_bytes() -> int:
    """Largest resident set of this program; getrusage would count the parent's, from before exec."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _do(job: dict[str, Any]) -> dict[str, Any]:
    if job["kind"] == "cold":
        return _cold(job)
    from edgetl.bench.jobs import JOBS

    return JOBS[job["kind"]](job)


def main() -> None:
    """Reads a job, writes its result to the file it names; an error of edgetl's becomes one line."""
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [path for path in sys.path if path != here]  # a script's folder is not a place to import from
    job = json.load(sys.stdin)
    from edgetl.errors import EdgetlError

    try:
        result = _do(job)
    except EdgetlError as error:
        sys.exit(str(error))
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
