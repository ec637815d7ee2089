"""The plan of a variant: carried here, cached, or built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl.artifacts import EnginePlan
from edgetl.bundle import Bundle, Variant
from edgetl.compile.api import Product
from edgetl.compile.builder import BuiltPlan, PlanSettings, Progress, build_plan
from edgetl.compile.key import PlanKey, key_for
from edgetl.compile.store import PlanStore
from edgetl.errors import EngineError

__all__ = ["PLAN_VARIANTS", "ReadyPlan", "plan_for", "write_plan"]

PLAN_VARIANTS = ("fp16", "int8-tensorrt")


@dataclass(frozen=True)
class ReadyPlan:
    """A plan that may be run here.

    Attributes:
        data: Native code, whose hash was checked.
        path: The file it was read from or written to.
        key: Of a plan that is built here.
        record: What is known of it: ``variant, seconds, warnings, left_to_gpu, report`` ...
        origin: ``carried``, ``cached`` or ``built``.
        notes: Why an earlier plan was not taken.
    """

    data: bytes
    path: Path
    key: PlanKey
    record: Mapping[str, Any]
    origin: str
    notes: tuple[str, ...] = ()


def plan_for(
    bundle: Bundle,
    variant: Variant,
    product: Product,
    settings: PlanSettings,
    cache: PlanStore,
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
        settings: How it is built.
        cache: Where plans built here are kept.
        plans: Plans that were built elsewhere, looked at first.
        build: Whether one may be built, which takes seconds to minutes.
        on_progress: Of the build.

    Raises:
        BundleError: The graph is damaged.
        EngineError: There is no plan and none may be built, or building fails.
    """
    key = key_for(product, variant.sha256, settings)
    notes = []
    if plans is not None:
        found = plans.find_fitting(key)
        if found.plan is not None:
            return ReadyPlan(found.plan, plans.root / found.record["plan"], key, found.record, "carried")
        notes.append(found.reason)
    found = cache.find(key)
    if found.plan is not None:
        return ReadyPlan(found.plan, cache.root / found.record["plan"], key, found.record, "cached", tuple(notes))
    notes += [found.reason] if found.reason else []
    if not build:
        told = f" ({'; '.join(notes)})" if notes else ""
        raise EngineError(f"{bundle.root}: has no plan of {variant.name} here{told}; edgetl compile makes one")
    with cache.building(key):
        found = cache.find(key)  # by whoever held the lock
        if found.plan is not None:
            return ReadyPlan(found.plan, cache.root / found.record["plan"], key, found.record, "cached", tuple(notes))
        timings = replace(key, graph_sha256="timings of kernels", settings={})
        built = build_plan(
            bundle.read(variant),
            variant.file,
            product,
            settings,
            timings=cache.find(timings).plan or b"",
            on_progress=on_progress,
        )
        record = _record(bundle, variant, built)
        stored = cache.put(key, built.data, record)
        if built.timings:
            cache.put(timings, built.timings, {})
    return ReadyPlan(built.data, stored.path, key, record, "built", tuple(notes))


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
    name = f"{bundle.root.resolve().stem}.{variant.name}.{product.name}-{key.version}.sm{sms}"
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
