"""Which of several sessions is faster here: all alive, called in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgetl.runtime.session import Session

__all__ = ["RUNS", "RaceResult", "race"]

RUNS = 200
_WARM_UP = 30


@dataclass(frozen=True)
class RaceResult:
    """What a race measured.

    Attributes:
        fastest: Name of the session with the smallest median.
        samples_ns: Nanoseconds of each call, by name; the calls of one index followed each other.
    """

    fastest: str
    samples_ns: Mapping[str, list[int]]

    @property
    def median_ms(self) -> dict[str, float]:
        """Milliseconds by name."""
        return {name: statistics.median(samples) / 1e6 for name, samples in self.samples_ns.items()}


def race(sessions: Mapping[str, Session], *, runs: int = RUNS, batch: int = 1) -> RaceResult:
    """Times pictures of noise, call by call in turn; what is in a picture changes no kernel's time.

    Args:
        sessions: By name, all for inputs of one shape.
        runs: Calls of each that count.
        batch: Pictures in a call.

    Raises:
        EngineError: One of them fails.
    """
    names = list(sessions)
    shape = (batch, *sessions[names[0]].spec.preprocess.input_shape)
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    samples: dict[str, list[int]] = {name: [] for name in names}
    for number in range(_WARM_UP + runs):
        names.reverse()  # whoever goes first finds other caches
        for name in names:
            start = time.perf_counter_ns()
            sessions[name].infer(picture)
            if number >= _WARM_UP:
                samples[name].append(time.perf_counter_ns() - start)
    fastest = min(samples, key=lambda name: statistics.median(samples[name]))
    return RaceResult(fastest, samples)
