"""The entries of a benchmark with the names and colours that they have all over the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.report.naming import colour_of, short_names

__all__ = ["Row", "milliseconds_of", "rows_from"]


@dataclass(frozen=True)
class Row:
    """One entry of a result.

    Attributes:
        name: As short as tells it from the others.
        colour: By its precision.
        entry: As `edgetl bench --json` writes it.
        data: Which pictures it was judged on, for people; None where it was not.
        judged_on: The same for comparing: accuracies on different pictures stand in no chart together.
    """

    name: str
    colour: str
    entry: Mapping[str, Any]
    data: str | None
    judged_on: tuple[str, ...]

    @property
    def latency(self) -> Mapping[str, float] | None:
        """Its ``p50, p90, p99, mean`` in milliseconds, or None."""
        found: Mapping[str, float] | None = self.entry["latency_ms"]
        return found


def rows_from(result: Mapping[str, Any]) -> list[Row]:
    """Returns the entries of one result, in its order."""
    entries = result["results"]
    data = {row["bundle"]: row for row in result["settings"].get("data", ())}
    found = []
    for name, entry in zip(_names(entries), entries, strict=True):
        on = data.get(entry["bundle"])
        told = None if on is None else f"{PurePath(on['source']).name}, {on['split']}"
        key = () if on is None else (on["digest"], on["split"])
        found.append(Row(name, colour_of(entry["variant"]), entry, told, key))
    return found


def _names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns bundle, variant and engine of each; the bundle and the engine where there are several."""
    short = short_names(entry["bundle"] for entry in entries)
    engines = {entry["engine"] for entry in entries} - {""}
    names = []
    for entry in entries:
        bundle = f"{short[entry['bundle']]} " if len(short) > 1 else ""
        engine = f" ({entry['engine']})" if entry["engine"] and len(engines) > 1 else ""
        names.append(f"{bundle}{entry['variant']}{engine}")
    twice = {name for name, number in Counter(names).items() if number > 1}
    return [f"{name} #{i + 1}" if name in twice else name for i, name in enumerate(names)]


def milliseconds_of(samples_ns: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Returns the calls of all processes in milliseconds."""
    return np.array([sample for process in samples_ns for sample in process], dtype=np.float64) / 1e6
