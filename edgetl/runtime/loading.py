"""Which engine runs a bundle here, which of its graphs, and why."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl import gpu, host
from edgetl.bundle import Bundle, Variant, open_bundle
from edgetl.compile import PLAN_VARIANTS, PlanSettings, PlanStore, Progress, default_cache, plan_for
from edgetl.compile import product_named as product_of
from edgetl.errors import EngineError, MissingExtraError
from edgetl.runtime.classifier import Classifier
from edgetl.runtime.ort import OrtSession, has_provider
from edgetl.runtime.race import race
from edgetl.runtime.session import Session

__all__ = ["BUILD", "ENGINES", "choose_variant", "load", "session_for"]

ENGINES = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu")
BUILD = ("auto", "never")
_LOG = logging.getLogger("edgetl")
_TELL_EVERY_S = 10.0


@dataclass(frozen=True)
class _Request:
    """What `load` was asked for."""

    bundle: Bundle
    variant: str | None
    threads: int
    plans: Path | None
    build: bool
    settings: PlanSettings
    on_progress: Progress


@dataclass(frozen=True)
class _Opened:
    """A session, the name of its graph, and why that one."""

    session: Session
    variant: str
    reason: str


def load(
    bundle: str | Path | Bundle,
    *,
    engine: str = "auto",
    variant: str | None = None,
    threads: int = 0,
    plans: str | Path | None = None,
    build: str = "auto",
    settings: PlanSettings | None = None,
    on_progress: Progress | None = None,
) -> Classifier:
    """Loads a bundle for prediction.

    On a GPU, TensorRT compiles the graph when it is first loaded, which takes seconds to minutes, and the result is
    kept; ``edgetl compile`` does it ahead of time. Of FP16 and INT8, the first load times both and keeps the faster.

    Args:
        bundle: Path of a ``NAME.edgetl`` folder.
        engine: ``tensorrt``, ``tensorrt-rtx``, ``cuda`` (ONNX Runtime on the GPU), ``cpu``; ``auto`` takes the first
            of them that this machine has. One asked for by name is taken or refused, never replaced.
        variant: Name of a graph; by default the one this machine serves best.
        threads: For one prediction on the CPU; 0 lets the engine decide.
        plans: Folder of plans that ``edgetl compile --out`` made, looked at before the cache.
        build: ``auto``, or ``never``: refuse rather than compile.
        settings: How a plan is built here; by default for batches of up to 8, and fast for one picture.
        on_progress: Called with (stage, done, total or 0, text) while it compiles; by default the logger ``edgetl``
            warns at once and then every ten seconds, so that minutes do not look like the end.

    Returns:
        A classifier; use it in a ``with`` statement, or close it. Its ``engine``, ``variant`` and ``reason`` say
        what was chosen.

    Raises:
        BundleError: The bundle is damaged.
        EngineError: The engine is unknown or not to be had here, or does not run this variant.
        MissingExtraError: The engine is not installed.
    """
    for what, value, known in (("engine", engine, ENGINES), ("build", build, BUILD)):
        if value not in known:
            raise EngineError(f'{what} "{value}" is unknown: it must be one of {", ".join(known)}')
    request = _Request(
        bundle if isinstance(bundle, Bundle) else open_bundle(bundle),
        variant,
        threads,
        None if plans is None else Path(plans),
        build == "auto",
        settings or PlanSettings(),
        on_progress or _Telling(),
    )
    refused: list[str] = []
    for name in _order(engine, request):
        try:
            opened = _OPENERS[name](request)
        except (EngineError, MissingExtraError) as error:
            if engine != "auto" or name == "cpu":
                raise
            refused.append(f"not {name}: {error}")
            continue
        reason = "; ".join([opened.reason, *refused])
        return Classifier(opened.session, engine=name, variant=opened.variant, reason=reason)
    raise AssertionError("the CPU comes last and is taken or refused")


class _Telling:
    """Tells a program's log that a plan is being built."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TELL_EVERY_S
            _LOG.warning("%s, %s so far; it is kept, and edgetl compile does it ahead of time", stage, text)


def _order(engine: str, request: _Request) -> tuple[str, ...]:
    if engine != "auto":
        return (engine,)
    target = None if request.variant is None else request.bundle.variant(request.variant).target
    if not host.has_nvidia_device() or target == host.arch():
        return ("cpu",)
    return ENGINES[1:]


def _tensorrt(request: _Request) -> _Opened:
    try:
        product_of("tensorrt").bindings()
    except MissingExtraError:
        if not _has("tensorrt"):
            raise
        return _through_onnxruntime(request, "tensorrt")
    return _planned(request, "tensorrt")


def _planned(request: _Request, engine: str) -> _Opened:
    """Opens a plan: of several graphs that are accurate enough, the one that is faster here."""
    from edgetl.runtime.trt import TrtSession

    product = product_of(engine)
    gpu.current_gpu()
    product.bindings()
    bundle, cache = request.bundle, PlanStore(default_cache())
    plans = None if request.plans is None else _given(request.plans)
    variants = _for_gpu(bundle, request.variant, PLAN_VARIANTS, "tensorrt")
    ready = {
        v.name: plan_for(
            bundle, v, product, request.settings, cache,
            plans=plans, build=request.build, on_progress=request.on_progress,
        )
        for v in variants
    }  # fmt: skip
    told = {name: f"{plan.origin} plan" + "".join(f" ({note})" for note in plan.notes) for name, plan in ready.items()}

    def opened(name: str) -> TrtSession:
        return TrtSession(ready[name].data, bundle.spec, product, name=f"{bundle.root} {name}")

    if len(ready) == 1:
        (name,) = ready
        why = "asked for by name" if request.variant else "the only one that is accurate enough"
        return _Opened(opened(name), name, f"{why}, {told[name]}")
    which = _digest([str(gpu.driver_version()), *(hashlib.sha256(p.data).hexdigest() for p in ready.values())])
    known = cache.recall(f"choice.{which}")
    if known is None or known.get("chosen") not in ready:
        sessions = {name: opened(name) for name in ready}
        result = race(sessions)
        known = {"chosen": result.fastest, "median_ms": result.median_ms, "samples_ns": result.samples_ns}
        cache.remember(f"choice.{which}", known)
        for name, session in sessions.items():
            if name != result.fastest:
                session.close()
        session = sessions[result.fastest]
    else:
        session = opened(known["chosen"])
    chosen = str(known["chosen"])
    timed = ", ".join(f"{name} {ms:.3f} ms" for name, ms in known["median_ms"].items())
    return _Opened(session, chosen, f"the fastest here ({timed}), {told[chosen]}")


def _cuda(request: _Request) -> _Opened:
    return _through_onnxruntime(request, "cuda")


def _through_onnxruntime(request: _Request, provider: str) -> _Opened:
    bundle = request.bundle
    names = PLAN_VARIANTS[::-1] if provider == "tensorrt" else ("fp16", "fp32")
    variant = _for_gpu(bundle, request.variant, names, provider)[0]
    session = OrtSession(
        bundle.read(variant), bundle.spec, provider=provider, provider_options=_options(provider, variant, request)
    )
    why = "asked for by name" if request.variant else f"{variant.precision.upper()} for this GPU"
    return _Opened(session, variant.name, f"{why}, by ONNX Runtime's {provider} provider")


def _options(provider: str, variant: Variant, request: _Request) -> dict[str, str]:
    if provider != "tensorrt":
        return {}
    cache = PlanStore(default_cache())
    folder = cache.folder("onnxruntime")
    height, width, channels = request.bundle.spec.preprocess.input_shape
    picture = f"{height}x{width}x{channels}"
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": variant.sha256[:24],
        "trt_fp16_enable": "1",
        "trt_int8_enable": str(int(variant.precision == "int8")),
        "trt_profile_min_shapes": f"pictures:1x{picture}",
        "trt_profile_opt_shapes": f"pictures:{request.settings.best_batch}x{picture}",
        "trt_profile_max_shapes": f"pictures:{request.settings.max_batch}x{picture}",
    }


def _rtx(request: _Request) -> _Opened:
    return _planned(request, "tensorrt-rtx")


def _cpu(request: _Request) -> _Opened:
    variant, reason = choose_variant(request.bundle, request.variant)
    session = OrtSession(request.bundle.read(variant), request.bundle.spec, threads=request.threads)
    return _Opened(session, variant.name, reason)


_OPENERS: dict[str, Callable[[_Request], _Opened]] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _rtx,
    "cuda": _cuda,
    "cpu": _cpu,
}


def _has(provider: str) -> bool:
    try:
        return has_provider(provider)
    except MissingExtraError:
        return False


def _given(plans: Path) -> PlanStore:
    if not plans.is_dir():
        raise EngineError(f"{plans}: no such folder of plans; edgetl compile --out makes one")
    return PlanStore(plans)


def _for_gpu(bundle: Bundle, name: str | None, names: tuple[str, ...], engine: str) -> list[Variant]:
    """Returns the variants for an engine of the GPU, of those that kept their accuracy."""
    if name is not None:
        variant = bundle.variant(name)
        if variant.target not in ("any", "tensorrt") or (variant.precision == "int8" and engine == "cuda"):
            raise EngineError(f'variant "{name}" is not made for {engine}; it takes {", ".join(names)}')
        return [variant]
    has = {v.name: v for v in bundle.variants}
    found = [has[n] for n in names if n in has and has[n].recommended is not False]
    if not found:
        raise EngineError(f"{bundle.root}: has no {' or '.join(names)} that kept its accuracy; export it with --fp16")
    return found


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(" ".join(sorted(parts)).encode()).hexdigest()[:24]


def choose_variant(bundle: Bundle, name: str | None = None) -> tuple[Variant, str]:
    """Returns the graph for this machine's CPU, and why.

    Raises:
        EngineError: The variant asked for is made for another engine.
    """
    native = f"int8-{host.arch()}"
    if name is not None:
        variant = bundle.variant(name)
        if variant.target not in ("any", host.arch()):
            raise EngineError(
                f'variant "{name}" is made for {variant.target}, this machine\'s CPU takes fp32 or {native}'
            )
        return variant, "asked for by name"
    names = {v.name: v for v in bundle.variants}
    if native not in names:
        return bundle.variant("fp32"), f"the bundle has no {native}"
    if names[native].recommended is False:
        return bundle.variant("fp32"), f"{native} is not recommended: {names[native].reason}"
    if native == "int8-x86" and not host.has_int8_dot():
        return bundle.variant("fp32"), f"this processor has no VNNI: {native} could saturate and would be slow"
    return names[native], names[native].reason or "INT8 for this processor"


def session_for(bundle: Bundle, variant: Variant, **options: Any) -> OrtSession:
    """Opens any variant on the CPU, for accuracy: forms made for other machines are computed as they stand."""
    foreign = variant.precision == "int8" and variant.target != host.arch()
    return OrtSession(bundle.read(variant), bundle.spec, fake_quant=foreign, **options)
