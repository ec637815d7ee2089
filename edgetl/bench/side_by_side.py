"""Two or more results of separate runs beside each other; what is of two machines is shown, never compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgetl.bench.compare import Comparison, compare_runs, corrected
from edgetl.bench.gate import ways_that_differ
from edgetl.bench.result import Entry, Result
from edgetl.errors import InputError

__all__ = ["Pair", "side_by_side"]


@dataclass(frozen=True)
class Pair:
    """A model of a later result beside the same model of the first one.

    Attributes:
        number: Of the result, from 1: the second one.
        now: Its entry.
        then: The first result's.
        comparison: Of their latencies, p corrected for all pairs; None where they cannot be compared.
        why_not: The reason.
    """

    number: int
    now: Entry
    then: Entry
    comparison: Comparison | None = None
    why_not: str = ""

    @property
    def text(self) -> str:
        """The finding in words."""
        return self.why_not if self.comparison is None else self.comparison.text


def side_by_side(results: Sequence[Result]) -> list[Pair]:
    """Pairs every later result's models with those of the first: of the same bundle's name, variant and engine.

    Where every result has one bundle, its name does not matter.

    Raises:
        InputError: There is but one result, or they have no model in common.
    """
    if len(results) < 2:
        raise InputError("one result cannot be compared: give two or more files")
    single = all(len({entry.bundle for entry in result.entries}) == 1 for result in results)

    def key(entry: Entry) -> tuple[str, str, str]:
        return "" if single else entry.bundle, entry.variant, entry.engine

    first = {key(entry): entry for entry in results[0].entries}
    pairs = [
        _pair(number, results[0], result, entry, first[key(entry)])
        for number, result in enumerate(results[1:], 1)
        for entry in result.entries
        if key(entry) in first
    ]
    if not pairs:
        raise InputError("these results have no model in common: same bundle's name, variant and engine")
    told = [pair for pair in pairs if pair.comparison is not None]
    p_values = iter(corrected([pair.comparison.p for pair in told if pair.comparison is not None]))
    return [
        replace(pair, comparison=replace(pair.comparison, p=next(p_values))) if pair.comparison else pair
        for pair in pairs
    ]


def _pair(number: int, first: Result, result: Result, now: Entry, then: Entry) -> Pair:
    if not now.samples_ns or not then.samples_ns:
        return Pair(number, now, then, why_not="latency was not measured")
    if None in (result.host["machine"], first.host["machine"]):
        return Pair(number, now, then, why_not="a machine without /etc/machine-id: latencies are not compared")
    if result.host["machine"] != first.host["machine"]:
        return Pair(number, now, then, why_not="another machine: latencies are not compared")
    differ = ways_that_differ(result, first)
    if differ:
        return Pair(number, now, then, why_not=f"measured with other {', '.join(differ)}: latencies are not compared")
    invalid = [*first.conditions.invalid, *result.conditions.invalid]
    if invalid:
        return Pair(number, now, then, why_not=f"a run is invalid: {invalid[0]}")
    return Pair(number, now, then, compare_runs(now.samples_ns, then.samples_ns))
