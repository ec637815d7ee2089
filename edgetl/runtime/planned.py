"""Sessions of plans: of several graphs that are accurate enough, the one that is faster on this GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from edgetl import gpu
from edgetl.bundle import Bundle, Variant
from edgetl.compile import PlanSettings, PlanStore, Product, Progress, ReadyPlan, default_cache, plan_for
from edgetl.errors import EngineError, InputError
from edgetl.runtime.race import race
from edgetl.runtime.trt import TrtSession

__all__ = ["PlanSource", "open_fastest"]

T = TypeVar("T")


@dataclass(frozen=True)
class PlanSource:
    """Where plans come from.

    Attributes:
        settings: How one is built here; None as it was last asked for.
        plans: Folder of plans that were built elsewhere, looked at first.
        build: Whether one may be built.
        on_progress: Of building.
    """

    settings: PlanSettings | None
    plans: Path | None
    build: bool
    on_progress: Progress


def open_fastest(
    bundle: Bundle, variants: Sequence[Variant], product: Product, source: PlanSource
) -> tuple[TrtSession, str, str]:
    """Returns a session, the name of its graph, and why that one.

    Where several can be run, the first time all of them are called in turn, and the result is kept beside the plans.

    Raises:
        EngineError: There is no GPU, or no graph has a plan that runs.
        MissingExtraError: The product is not installed.
    """
    gpu.current_gpu()
    product.bindings()
    plans = None if source.plans is None else _given(source.plans)
    notes: list[str] = []
    cache = _tried("no plan is kept", notes, lambda: PlanStore(default_cache()))
    ready: dict[str, ReadyPlan] = {}
    for variant in variants:
        prepare = partial(
            plan_for, bundle, variant, product, source.settings, cache,
            plans=plans, build=source.build, on_progress=source.on_progress,
        )  # fmt: skip
        found = _tried(f"not {variant.name}", notes, prepare)
        if found is not None:
            ready[variant.name] = found
    with ExitStack() as opened:

        def session_of(name: str) -> TrtSession:
            where = f"{bundle.root} {name}"
            return opened.enter_context(TrtSession(ready[name].data, bundle.spec, product, name=where))

        sessions: dict[str, TrtSession] = {}

        def open_all(names: Iterable[str]) -> None:
            for name in names:
                session = _tried(f"not {name}", notes, partial(session_of, name))
                if session is not None:
                    sessions[name] = session

        remembered = _remembered(ready, cache)
        if remembered is not None:
            open_all([remembered.fastest])
        if not sessions:  # nothing is remembered, or it cannot be opened any more
            open_all(name for name in ready if remembered is None or name != remembered.fastest)
            remembered = None
        if not sessions:
            raise EngineError("; ".join(notes))
        result = remembered or _raced(sessions, ready, cache)
        session = sessions.pop(result.fastest)
        for other in sessions.values():
            other.close()
        opened.pop_all()
    plan = ready[result.fastest]
    told = [result.reason, f"{plan.origin} plan", *plan.notes, *notes, *session.warnings]
    return session, result.fastest, "; ".join(told)


@dataclass(frozen=True)
class _Result:
    fastest: str
    reason: str


def _tried(what: str, notes: list[str], step: Callable[[], T]) -> T | None:
    """Returns what a step gives, or makes a note of why it gives nothing: another graph may do."""
    try:
        return step()
    except EngineError as error:
        notes.append(f"{what}: {error}")
        return None


def _given(plans: Path) -> PlanStore:
    store = PlanStore(plans)  # whatever is wrong with a folder that is there
    if not plans.is_dir():
        raise EngineError(f"{plans}: no such folder of plans; edgetl compile --out makes one")
    return store


def _note_of(ready: Mapping[str, ReadyPlan]) -> str:
    """Returns the name under which a race between these very plans, on this very GPU, is kept."""
    machine = next(iter(ready.values())).key.machine
    plans = sorted(plan.sha256 for plan in ready.values())
    parts = " ".join([str(machine), str(_batch(ready)), *plans])
    return f"choice.{hashlib.sha256(parts.encode()).hexdigest()[:24]}"


def _batch(ready: Mapping[str, ReadyPlan]) -> int:
    """Returns the batch that the plans were made fast for: a carried plan's record tells its own."""
    told = [plan.record.get("key", {}).get("settings", plan.key.settings) for plan in ready.values()]
    return max(int(settings.get("best_batch", 1)) for settings in told)


def _remembered(ready: Mapping[str, ReadyPlan], cache: PlanStore | None) -> _Result | None:
    """Returns what an earlier race found; None where there was none, or what was kept of it is damaged."""
    if cache is None or len(ready) < 2:
        return None
    known = cache.recall(_note_of(ready)) or {}
    try:
        chosen, median_ms = str(known["chosen"]), dict(known["median_ms"])
        return _Result(chosen, _timed(median_ms)) if chosen in ready else None
    except (KeyError, TypeError, ValueError):
        return None


def _raced(sessions: Mapping[str, TrtSession], ready: Mapping[str, ReadyPlan], cache: PlanStore | None) -> _Result:
    if len(sessions) == 1:
        (name,) = sessions
        return _Result(name, "the only graph to choose from")
    batch = min(_batch(ready), *(session.max_batch for session in sessions.values()))
    result = race(sessions, batch=batch)
    if cache is not None and len(sessions) == len(ready):
        facts = {"chosen": result.fastest, "median_ms": result.median_ms, "samples_ns": dict(result.samples_ns)}
        with suppress(EngineError, InputError):  # raced again next time
            cache.remember(_note_of(ready), facts)
    return _Result(result.fastest, _timed(result.median_ms))


def _timed(median_ms: Mapping[str, float]) -> str:
    return f"the fastest here ({', '.join(f'{name} {ms:.3f} ms' for name, ms in median_ms.items())})"
