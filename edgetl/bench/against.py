"""Two bundles against each other in one run: interleaved, with an A/A run beside it that tells what noise does here.

Between two runners latencies differ by tens of percent, within one job by less than one: so both sides are measured
here and now. The reference is alive twice; how its two copies differ is the noise floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgetl.bench.compare import Comparison, Samples, compare, compare_with_both, corrected
from edgetl.bench.conditions import fingerprint
from edgetl.bench.gate import Limits, answer_checks, drop_check, latency_check, recall_checks
from edgetl.bench.measure import Side, Timed, measure_latency, prepare
from edgetl.bench.result import Result
from edgetl.bench.stage import BenchConfig, Contender, Latency, Row, check_pictures, complete, rows_of
from edgetl.bench.verdict import Check, Verdict

__all__ = ["BUDGET_S", "Duel", "bench_against", "duel_of", "measure_duels"]

BUDGET_S = 40.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Duel:
    """A model against its reference.

    Attributes:
        model: For people.
        found: The model against both copies of the reference, p corrected for several duels.
        noise: One copy of the reference against the other.
    """

    model: str
    found: Comparison
    noise: Comparison

    @property
    def floor(self) -> float:
        """What noise alone can reach, a fraction: the farther end of the A/A run's interval."""
        return max(self.noise.high - 1, 1 / self.noise.low - 1)


def bench_against(
    model: Contender, reference: Contender, config: BenchConfig, limits: Limits, *, on_progress: Progress
) -> tuple[Result, Verdict]:
    """Measures a bundle against another: what a device app would get of each, or the variants that are named.

    Returns:
        The result, the model's entries first, each compared with its reference; and the verdict.

    Raises:
        BundleError: A bundle is damaged, or lacks a variant.
        EngineError: An engine is not to be had.
        InputError: A limit cannot be judged.
    """
    facts = fingerprint()
    contenders = [model, reference]
    check_pictures(contenders)
    ours, theirs = ([_row(c, name, config, on_progress) for name in _names(c, config)] for c in contenders)
    duels, timed = measure_duels(list(zip(ours, theirs, strict=True)), config, limits, on_progress=on_progress)
    latencies = {number: Latency(timed.samples_ns[3 * number], duel.found) for number, duel in enumerate(duels)}
    latencies |= {len(duels) + n: Latency(timed.samples_ns[3 * n + 1], None) for n in range(len(duels))}
    result = complete(contenders, [*ours, *theirs], latencies, timed, facts, config, on_progress=on_progress)
    entries = result.entries[: len(duels)]
    top1 = [entry.accuracy["top1"] for entry in result.entries]
    checks = _checks(duels, list(zip(top1, top1[len(duels) :], strict=False)), limits)
    checks += [check for entry in entries for check in recall_checks(entry, limits.min_recall)]
    checks += answer_checks(entries)
    notes = [
        f"{duel.model}: the same model against itself: {duel.noise.ratio - 1:+.1%}; noise reaches {duel.floor:.1%} here"
        for duel in duels
    ]
    return result, Verdict(checks, reference.name, notes)


def _names(contender: Contender, config: BenchConfig) -> Sequence[str]:
    return config.variants or [prepare(Side(contender.path, "", config.engines[0]))["variant"]]


def _row(contender: Contender, variant: str, config: BenchConfig, on_progress: Progress) -> Row:
    wanted = replace(config, variants=(variant,), engines=config.engines[:1])
    return rows_of([contender], wanted, on_progress=on_progress)[0]


def measure_duels(
    pairs: Sequence[tuple[Row, Row]], config: BenchConfig, limits: Limits, *, on_progress: Progress
) -> tuple[list[Duel], Timed]:
    """Times each pair, the second one's copy beside it, until noise is below the limit or the time is over.

    Args:
        pairs: Model and reference.
        config: Settings; twice its processes are a start.
        limits: What is to be told apart.
        on_progress: Called with (stage, processes done, processes).

    Returns:
        The duels, and the timing: sides are model, reference, its copy of the first pair, and so on.
    """
    sides = [side for ours, theirs in pairs for side in (ours.side, theirs.side, theirs.side)]
    began, timed, count = time.monotonic(), None, 2 * config.processes
    while True:
        shown = _Further(on_progress, 0 if timed is None else len(timed.periods))
        timed = measure_latency(
            sides,
            processes=count,
            seconds=config.seconds,
            threads=config.threads,
            timed=timed,
            on_progress=shown,
        )
        duels = _duels(pairs, timed)
        spent = time.monotonic() - began
        each = spent / len(timed.periods)
        if limits.max_regression is None or spent + 2 * each > BUDGET_S or _decided(duels, limits.max_regression):
            return duels, timed
        count = 2


@dataclass(frozen=True)
class _Further:
    """Counts on from the processes that are done."""

    on_progress: Progress
    before: int

    def __call__(self, done: int, total: int) -> None:
        self.on_progress("latency", self.before + done, self.before + total)


def _duels(pairs: Sequence[tuple[Row, Row]], timed: Timed) -> list[Duel]:
    found = []
    for number, (ours, _) in enumerate(pairs):
        name = f"{ours.contender.name} {ours.variant.name}"
        found.append(duel_of(name, *timed.samples_ns[3 * number : 3 * number + 3]))
    p_values = corrected([duel.found.p for duel in found])
    return [replace(duel, found=replace(duel.found, p=p)) for duel, p in zip(found, p_values, strict=True)]


def duel_of(name: str, model: Samples, reference: Samples, copy: Samples) -> Duel:
    """Compares a model with its reference, of which two copies were timed in turn with it."""
    return Duel(name, compare_with_both(model, reference, copy), compare(copy, reference))


def _decided(duels: Sequence[Duel], limit: float) -> bool:
    return all(latency_check(duel.model, duel.found, duel.floor, limit).ok is not None for duel in duels)


def _checks(
    duels: Sequence[Duel], accuracies: Sequence[tuple[float | None, float | None]], limits: Limits
) -> list[Check]:
    checks = []
    for duel, (ours, theirs) in zip(duels, accuracies, strict=True):
        if limits.max_regression is not None:
            checks.append(latency_check(duel.model, duel.found, duel.floor, limits.max_regression))
        if limits.max_drop is not None:
            checks.append(drop_check(duel.model, ours, theirs, limits.max_drop))
    return checks
