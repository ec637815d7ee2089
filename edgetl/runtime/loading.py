"""Which engine runs a bundle here, which of its graphs, and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import host
from edgetl.bundle import Bundle, Variant, open_bundle
from edgetl.errors import EngineError, InternalError, MissingExtraError
from edgetl.runtime.classifier import Classifier
from edgetl.runtime.ort import MAX_BATCH, OrtSession, has_provider
from edgetl.runtime.session import Session

if TYPE_CHECKING:  # a program on the CPU needs none of it
    from edgetl.compile import PlanSettings, Progress

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
    settings: PlanSettings | None
    plans: Path | None
    build: bool
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
        settings: How a plan is built here; by default as ``edgetl compile`` was last told for this graph, or else for
            batches of up to 8, and fast for one picture.
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
    if settings is not None and settings.sms:
        raise EngineError("a plan that is loaded is built for this machine's GPU: leave the settings' sms empty")
    request = _Request(
        bundle if isinstance(bundle, Bundle) else open_bundle(bundle),
        variant,
        threads,
        settings,
        None if plans is None else Path(plans),
        build == "auto",
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
    raise InternalError("the CPU comes last and is taken or refused")


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
    from edgetl.compile import product_named

    try:
        product_named("tensorrt").bindings()
    except MissingExtraError:
        if not _has("tensorrt"):
            raise
        return _through_onnxruntime(request, "tensorrt")
    return _planned(request, "tensorrt")


def _planned(request: _Request, engine: str) -> _Opened:
    from edgetl.compile import PLAN_VARIANTS, product_named
    from edgetl.runtime.planned import PlanSource, open_fastest

    variants = _for_gpu(request.bundle, request.variant, PLAN_VARIANTS, "tensorrt")
    source = PlanSource(request.settings, request.plans, request.build, request.on_progress)
    session, name, reason = open_fastest(request.bundle, variants, product_named(engine), source)
    return _Opened(session, name, reason)


def _through_onnxruntime(request: _Request, provider: str) -> _Opened:
    from edgetl.compile import PLAN_VARIANTS, PlanSettings

    bundle = request.bundle
    names = PLAN_VARIANTS[::-1] if provider == "tensorrt" else ("fp16", "fp32")
    variant = _for_gpu(bundle, request.variant, names, provider)[0]
    session = OrtSession(
        bundle.read(variant),
        bundle.spec,
        provider=provider,
        provider_options=_options(provider, variant),
        max_batch=(request.settings or PlanSettings()).max_batch if provider == "tensorrt" else MAX_BATCH,
    )
    why = "asked for by name" if request.variant else f"{variant.precision.upper()} for this GPU"
    return _Opened(session, variant.name, f"{why}, by ONNX Runtime's {provider} provider")


def _options(provider: str, variant: Variant) -> dict[str, str]:
    if provider != "tensorrt":
        return {}
    from edgetl.compile import PlanStore, default_cache

    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(PlanStore(default_cache()).folder("onnxruntime")),
        "trt_engine_cache_prefix": variant.sha256[:24],
        "trt_fp16_enable": str(int(variant.precision != "fp32")),
        "trt_int8_enable": str(int(variant.precision == "int8")),
    }


def _cpu(request: _Request) -> _Opened:
    variant, reason = choose_variant(request.bundle, request.variant)
    session = OrtSession(request.bundle.read(variant), request.bundle.spec, threads=request.threads)
    return _Opened(session, variant.name, reason)


_OPENERS: dict[str, Callable[[_Request], _Opened]] = {
    "tensorrt": _tensorrt,
    "tensorrt-rtx": partial(_planned, engine="tensorrt-rtx"),
    "cuda": partial(_through_onnxruntime, provider="cuda"),
    "cpu": _cpu,
}


def _has(provider: str) -> bool:
    try:
        return has_provider(provider)
    except MissingExtraError:
        return False


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
