"""The plan of a variant: carried here, cached, or built."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl.artifacts import EnginePlan
from edgetl.bundle import Bundle, Variant
from edgetl.compile.api import Product
from edgetl.compile.builder import BuiltPlan, PlanSettings, Progress, build_plan
from edgetl.compile.key import PlanKey, key_for
from edgetl.compile.store import Found, PlanStore
from edgetl.errors import EngineError, InputError

__all__ = ["PLAN_VARIANTS", "ReadyPlan", "plan_for", "write_plan"]

PLAN_VARIANTS = ("fp16", "int8-tensorrt")


@dataclass(frozen=True)
class ReadyPlan:
    """A plan that may be run here.

    Attributes:
        data: Native code.
        sha256: Of it, checked.
        path: The file it was read from or written to; None where it could not be kept.
        key: Of a plan that is built here.
        record: What is known of it: ``variant, seconds, warnings, left_to_gpu, report`` ...
        origin: ``carried``, ``cached`` or ``built``.
        notes: Why an earlier plan was not taken, or this one not kept.
    """

    data: bytes
    sha256: str
    path: Path | None
    key: PlanKey
    record: Mapping[str, Any]
    origin: str
    notes: tuple[str, ...] = ()


def plan_for(
    bundle: Bundle,
    variant: Variant,
    product: Product,
    settings: PlanSettings | None,
    cache: PlanStore | None,
    *,
    plans: PlanStore | None = None,
    build: bool = True,
    on_progress: Progress | None = None,
) -> ReadyPlan:
    """Returns a variant's plan for this machine's GPU.

    Args:
        bundle: Holds the graph.
        variant: Of it.
        product: What builds and runs the plan.
        settings: How it is built; None takes the plan that was asked for last, or builds by default.
        cache: Where plans built here are kept; None keeps none.
        plans: Plans that were built elsewhere, looked at first.
        build: Whether one may be built, which takes seconds to minutes.
        on_progress: Of the build.

    Raises:
        BundleError: The graph is damaged.
        EngineError: There is no plan and none may be built, or building fails.
    """
    key = key_for(product, variant.sha256, settings or PlanSettings())
    latest = f"latest.{key.any_settings.digest[:24]}"
    wanted = _recalled(cache, latest) if settings is None else settings
    key = replace(key, settings=wanted.to_dict())
    notes: list[str] = []
    if plans is not None:
        found = plans.find_fitting(key)
        if found.plan is not None:
            return _found(plans, found, key, "carried", ())
        notes.append(found.reason)
    ready = _cached(cache, key, notes)
    if ready is None and not build:
        told = f" ({'; '.join(notes)})" if notes else ""
        raise EngineError(f"{bundle.root}: has no plan of {variant.name} here{told}; edgetl compile makes one")
    with ExitStack() as stack:
        if ready is None and cache is not None:
            try:
                stack.enter_context(cache.building(key))
                ready = _cached(cache, key, notes)  # by whoever held the lock
            except EngineError as error:
                notes.append(f"not kept: {error}")
                cache = None
        if ready is None:
            ready = _built(bundle, variant, product, wanted, cache, key, notes, on_progress)
    if settings is not None and cache is not None and _recalled(cache, latest) != settings:
        with suppress(EngineError, InputError):  # a plan that cannot be kept says so itself
            cache.remember(latest, {"settings": settings.to_dict()})
    return ready


def _cached(cache: PlanStore | None, key: PlanKey, notes: list[str]) -> ReadyPlan | None:
    found = Found(None) if cache is None else cache.find(key)
    if cache is not None and found.plan is not None:
        return _found(cache, found, key, "cached", notes)
    notes += [found.reason] if found.reason and found.reason not in notes else []
    return None


def _found(store: PlanStore, found: Found, key: PlanKey, origin: str, notes: Sequence[str]) -> ReadyPlan:
    assert found.plan is not None
    record = found.record
    return ReadyPlan(found.plan, record["sha256"], store.root / record["plan"], key, record, origin, tuple(notes))


def _built(
    bundle: Bundle,
    variant: Variant,
    product: Product,
    settings: PlanSettings,
    cache: PlanStore | None,
    key: PlanKey,
    notes: Sequence[str],
    on_progress: Progress | None,
) -> ReadyPlan:
    """Builds a plan, and keeps it where that is possible: one that took minutes is not lost to a full disk."""
    timings = replace(key, graph_sha256="timings of kernels", settings={})
    known = b"" if cache is None else cache.find(timings).plan or b""
    graph = bundle.read(variant)
    built = build_plan(graph, variant.file, product, settings, timings=known, on_progress=on_progress)
    record = _record(bundle, variant, built)
    sha256 = hashlib.sha256(built.data).hexdigest()
    ready = ReadyPlan(built.data, sha256, None, key, record, "built", tuple(notes))
    if cache is None:
        return ready
    try:
        stored = cache.put(key, built.data, record)
        if built.timings:
            cache.put(timings, built.timings, {})
    except (EngineError, InputError) as error:
        return replace(ready, notes=(*notes, f"not kept: {error}"))
    return replace(ready, path=stored.path)


def _recalled(cache: PlanStore | None, name: str) -> PlanSettings:
    """Returns the settings that were asked for last; what cannot be read counts as none."""
    told = None if cache is None else cache.recall(name)
    try:
        known = dict((told or {})["settings"])
        return PlanSettings(**{**known, "sms": tuple(known["sms"])})
    except (KeyError, TypeError, ValueError, InputError):
        return PlanSettings()


def write_plan(
    bundle: Bundle,
    variant: Variant,
    product: Product,
    settings: PlanSettings,
    out: Path,
    *,
    on_progress: Progress | None = None,
) -> tuple[EnginePlan, dict[str, Any]]:
    """Builds a plan ahead of time, to be carried to machines of the same kind.

    Args:
        bundle: Holds the graph.
        variant: Of it.
        product: What builds.
        settings: How, and for which GPUs.
        out: Folder of plans.
        on_progress: Of the build.

    Returns:
        The plan, and the record beside it.

    Raises:
        BundleError: The graph is damaged.
        EngineError: Building fails, or others can write to the folder.
    """
    store = PlanStore(out)
    key = key_for(product, variant.sha256, settings).carried
    built = build_plan(bundle.read(variant), variant.file, product, settings, on_progress=on_progress)
    record = _record(bundle, variant, built)
    sms = "-".join(map(str, key.sms))
    name = f"{bundle.root.resolve().stem}.{variant.name}.{product.name}-{key.version}.sm{sms}.{key.digest[:8]}"
    return store.put(key, built.data, record, name=name), record


def _record(bundle: Bundle, variant: Variant, built: BuiltPlan) -> dict[str, Any]:
    return {
        "bundle": bundle.digest,
        "variant": variant.name,
        "seconds": round(built.seconds, 3),
        "warnings": list(built.warnings),
        "left_to_gpu": list(built.left_to_gpu),
        "report": built.report.to_dict(),
    }
