"""Counters and histograms of a running classifier, as numbers and as Prometheus reads them.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

__all__ = ["Meters"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_HISTOGRAMS = {
    "classify_seconds": (_SECONDS, "From picture to answer, of calls."),
    "submit_seconds": (_SECONDS, "From submit to answer."),
    "batch_pictures": (_SIZES, "Pictures in a batch of submitted requests."),
}
_COUNTERS = {
    "pictures": "Pictures answered.",
    "unknown": "Pictures that show none of the classes.",
    "picture_errors": "Pictures that could not be read.",
    "engine_errors": "Calls that the engine refused or failed.",
    "overloaded": "Requests refused because too many waited.",
    "deadlines_exceeded": "Requests that could not be begun in time.",
    "cancelled": "Requests cancelled before they began.",
    "reloads": "Models exchanged.",
    "reloads_failed": "Bundles refused while the old model went on.",
    "frames_dropped": "Frames for which a newer one came before they were looked at.",
}


class Meters:
    """What a classifier has done since it was loaded. Any number of threads may count."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may close what its own thread is counting
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._histograms = {name: _Histogram(bounds) for name, (bounds, _) in _HISTOGRAMS.items()}

    def count(self, name: str, by: int = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counts[name] += by

    def observe(self, name: str, value: float, pictures: int = 0, unknown: int = 0) -> None:
        """Adds a value to a histogram, and what was answered with it."""
        with self._lock:
            self._histograms[name].add(value)
            self._counts["pictures"] += pictures
            self._counts["unknown"] += unknown

    def to_dict(self) -> dict[str, Any]:
        """Returns counters by name, and histograms as ``{"count", "sum", "buckets": {upper bound: cumulated}}``."""
        with self._lock:
            return {**self._counts, **{name: made.to_dict() for name, made in self._histograms.items()}}

    def prometheus(self, model: Mapping[str, str], labels: Mapping[str, str] | None = None) -> str:
        """Returns the text that Prometheus scrapes.

        Args:
            model: What is served now: labels of ``edgetl_model_info`` alone, because counters outlive a model.
            labels: Of every series.
        """
        shared = _joined(labels or {})
        of_all = f"{{{shared}}}" if shared else ""
        info = "edgetl_model_info"
        lines = [f"# HELP {info} What is served now.", f"# TYPE {info} gauge"]
        lines.append(f"{info}{{{_joined({**(labels or {}), **model})}}} 1")
        found = self.to_dict()
        for name, text in _COUNTERS.items():
            metric = f"edgetl_{name}_total"
            lines += [f"# HELP {metric} {text}", f"# TYPE {metric} counter"]
            lines.append(f"{metric}{of_all} {found[name]}")
        for name, (_, text) in _HISTOGRAMS.items():
            metric, made = f"edgetl_{name}", found[name]
            lines += [f"# HELP {metric} {text}", f"# TYPE {metric} histogram"]
            comma = "," if shared else ""
            for bound, count in made["buckets"].items():
                lines.append(f'{metric}_bucket{{{shared}{comma}le="{bound}"}} {count}')
            lines += [f"{metric}_sum{of_all} {made['sum']:.9g}", f"{metric}_count{of_all} {made['count']}"]
        return "\n".join(lines) + "\n"


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def to_dict(self) -> dict[str, Any]:
        buckets, total = {}, 0
        for bound, count in zip((*(f"{b:g}" for b in self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets[bound] = total
        return {"count": total, "sum": self._sum, "buckets": buckets}


def _joined(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
