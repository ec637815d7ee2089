"""What a measuring process does: every job takes a JSON object and returns one. See `edgetl.bench.measure`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import runtime
from edgetl.bench.conditions import snapshot
from edgetl.bench.energy import measure_energy, meters
from edgetl.bench.measure import FEWEST_CALLS
from edgetl.preprocess import decode, fit
from edgetl.runtime.classifier import Classifier
from edgetl.runtime.prediction import predictions

__all__ = ["JOBS"]

Job = dict[str, Any]
Call = Callable[[], Any]

_STEADY = 0.03
_WINDOW = 12
_SHORTEST_WARM_UP_S = 0.2
_LONGEST_WARM_UP_S = 2.0
_FEWEST_BATCHES = 3
_SETTLE_S = 3.0


def _open(job: Job) -> list[Classifier]:
    """Opens every side, in the order the job names: where a model lies in memory depends on it."""
    opened: dict[int, Classifier] = {}
    for index in job["order"]:
        side = job["sides"][index]
        opened[index] = runtime.load(
            side["bundle"], variant=side["variant"] or None, engine=side["engine"], threads=job["threads"]
        )
    return [opened[index] for index in range(len(job["sides"]))]


def _pictures(classify: Classifier, count: int = 1) -> NDArray[np.uint8]:
    """Noise: what is in a picture changes no kernel's time."""
    shape = (count, *classify.spec.preprocess.input_shape)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _calls(sides: Sequence[Classifier]) -> list[Call]:
    return [partial(side.session.infer, _pictures(side)) for side in sides]


def _timed(call: Call) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


class _Rounds:
    """The sides in a new order each round: who follows whom must not favour anyone (caches)."""

    def __init__(self, count: int) -> None:
        self._order = list(range(count))
        self._random = random.Random(0)

    def next(self) -> list[int]:
        self._random.shuffle(self._order)
        return self._order


def _warm_up(calls: Sequence[Call]) -> bool:
    """Calls in turn until every side's median of a window differs little from the one before; tells whether it did."""
    began = time.perf_counter()
    before = [0.0] * len(calls)
    while (passed := time.perf_counter() - began) < _LONGEST_WARM_UP_S:
        windows = [[_timed(call) for call in calls] for _ in range(_WINDOW)]
        medians = [sorted(side)[_WINDOW // 2] for side in zip(*windows, strict=True)]
        steady = all(abs(now - old) <= _STEADY * now for now, old in zip(medians, before, strict=True))
        if steady and passed >= _SHORTEST_WARM_UP_S:
            return True
        before = medians
    return False


def _latency(job: Job) -> Job:
    """Single pictures back to back, sides in turn (MLPerf's single stream)."""
    calls = _calls(_open(job))
    steady = _warm_up(calls)
    samples: list[list[int]] = [[] for _ in calls]
    rounds = _Rounds(len(calls))
    before = snapshot()
    end = time.perf_counter() + job["seconds"]
    while len(samples[0]) < FEWEST_CALLS or time.perf_counter() < end:
        for index in rounds.next():
            samples[index].append(_timed(calls[index]))
    return {"samples_ns": samples, "steady": steady, "states": [before.to_dict(), snapshot().to_dict()]}


def _paced(job: Job) -> Job:
    """One picture a tick of a camera, sides in turn: what a device sees that idles in between."""
    calls = _calls(_open(job))
    _warm_up(calls)
    samples: list[list[int]] = [[] for _ in calls]
    period, late = 1 / job["fps"], [0] * len(calls)
    rounds = _Rounds(len(calls))
    ticks = max(FEWEST_CALLS * len(calls), int(job["seconds"] * job["fps"]))
    due = time.perf_counter() + period
    for _ in range(-(-ticks // len(calls))):
        for index in rounds.next():
            while (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            samples[index].append(_timed(calls[index]))
            now = time.perf_counter()
            late[index] += now > due + period
            due = max(due + period, now)
    return {"samples_ns": samples, "late": late}


def _offline(job: Job) -> Job:
    """Batches back to back, sides in turn; nanoseconds of each batch by side and batch size."""
    sides = _open(job)
    found: list[dict[str, list[int]]] = [{} for _ in sides]
    rounds = _Rounds(len(sides))
    for size in job["batches"]:
        able = [index for index, side in enumerate(sides) if side.session.max_batch >= size]
        batches = {index: _pictures(sides[index], size) for index in able}
        for index in able:
            found[index][str(size)] = []
        _warm_up([partial(sides[index].session.infer, batches[index]) for index in able])
        end = time.perf_counter() + job["seconds"] / len(job["batches"])
        done = 0
        while batches and (done < _FEWEST_BATCHES or time.perf_counter() < end):
            done += 1
            for index in (index for index in rounds.next() if index in batches):
                found[index][str(size)].append(_timed(partial(sides[index].session.infer, batches[index])))
    return {"batches_ns": found}


def _stages(job: Job) -> Job:
    """From file to label on real pictures, sides in turn: nanoseconds of each stage and picture."""
    sides = _open(job)
    _warm_up(_calls(sides))
    names = ("decode", "preprocess", "infer", "postprocess")
    found: list[dict[str, list[int]]] = [{name: [] for name in names} for _ in sides]
    rounds = _Rounds(len(sides))
    for path in job["pictures"]:
        for index in rounds.next():
            spec = sides[index].spec
            marks = [time.perf_counter_ns()]
            image = decode(path, spec.preprocess)
            marks.append(time.perf_counter_ns())
            tensor = fit(image, spec.preprocess)[None]
            marks.append(time.perf_counter_ns())
            logits = sides[index].session.infer(tensor)["logits"]
            marks.append(time.perf_counter_ns())
            predictions(logits, spec.labels)
            marks.append(time.perf_counter_ns())
            for name, start, stop in zip(names, marks, marks[1:], strict=False):
                found[index][name].append(stop - start)
    return {"stages_ns": found}


def _energy(job: Job) -> Job:
    """Energy of single pictures back to back, by every meter of this machine; idle power is subtracted."""
    [side] = _open(job)
    [call] = _calls([side])
    _warm_up([call])

    def work() -> int:
        count, end = 0, time.perf_counter() + job["seconds"]
        while count == 0 or time.perf_counter() < end:
            call()
            count += 1
        return count

    found, reasons = meters()
    time.sleep(_SETTLE_S)  # a GPU keeps its clocks up for a while: idle power would be too high
    return {"energy": [measure_energy(meter, work).to_dict() for meter in found], "reasons": reasons}


def _prepare(job: Job) -> Job:
    """Opens one side, which builds its plan where it needs one; tells which engine took which graph, and why."""
    [side] = _open(job)
    return {"engine": side.engine, "variant": side.variant, "reason": side.reason}


JOBS: dict[str, Callable[[Job], Job]] = {
    "latency": _latency,
    "paced": _paced,
    "offline": _offline,
    "stages": _stages,
    "energy": _energy,
    "prepare": _prepare,
}
