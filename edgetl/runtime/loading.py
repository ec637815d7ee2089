"""Which engine runs a bundle here, which of its graphs, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import host
from edgetl.bundle import Bundle, Variant, open_bundle
from edgetl.errors import BundleError, EngineError, InputError, InternalError, MissingExtraError
from edgetl.runtime.checking import Checking
from edgetl.runtime.classifier import Classifier
from edgetl.runtime.log import warn
from edgetl.runtime.ort import MAX_BATCH, OrtSession, has_provider
from edgetl.runtime.served import Held, Served, default_overlay
from edgetl.runtime.session import Session

if TYPE_CHECKING:  # a program on the CPU needs none of it
    from edgetl.compile import PlanSettings, Progress
    from edgetl.runtime.batching import Batching
    from edgetl.signing import Key

__all__ = ["BUILD", "ENGINES", "choose_variant", "load", "session_for"]

ENGINES = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu")
BUILD = ("auto", "never")
_TELL_EVERY_S = 10.0
_SHORTEST_KEY = 16  # bytes

# Dataclasses here and in `served` have no methods that nobody calls: writing them takes a millisecond of every start.


@dataclass(eq=False, repr=False)
class _Options:
    """What `load` was asked for, whatever the bundle."""

    engine: str
    variant: str | None
    threads: int
    settings: PlanSettings | None
    plans: Path | None
    build: bool
    on_progress: Progress
    trusted_keys: tuple[Key, ...] | None = None
    overlay: str | Path | bool = False
    device_key: bytes | None = None

    def opened(self, bundle: str | Path | Bundle) -> Bundle:
        """Reads a manifest and checks who signed it."""
        bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        if self.trusted_keys is not None:
            from edgetl.signing import check_signature

            check_signature(bundle, self.trusted_keys)
        return bundle

    def open(self, bundle: str | Path | Bundle) -> Served:
        """Opens a bundle on the engine that was asked for.

        Where another one is moved to its place meanwhile, files of both were seen: it begins again with the other.
        """
        before = self.opened(bundle)
        try:
            return self._open(before)
        except BundleError:
            if isinstance(bundle, Bundle):
                raise
            after = self.opened(bundle)
            if after.digest == before.digest:
                raise
            return self._open(after)

    def _open(self, bundle: Bundle) -> Served:
        """Opens a bundle while every file of it is checked."""
        request = _Request(bundle, self)
        order = _order(request)
        own = {choose_variant(request.bundle, self.variant)[0].file} if order == ("cpu",) else ()
        checking = Checking(request.bundle, own)
        try:
            served = self._first(request, order)
        finally:
            checking.join()
        try:
            checking.result()
            return self._taught(served) if self.overlay else served
        except BaseException:
            served.session.close()
            raise

    def _first(self, request: _Request, order: tuple[str, ...]) -> Served:
        """Opens a bundle on the first engine that takes it."""
        refused: list[str] = []
        for name in order:
            try:
                opened = _OPENERS[name](request)
            except (EngineError, MissingExtraError) as error:
                if self.engine != "auto" or name == "cpu":
                    raise
                refused.append(f"not {name}: {error}")
                continue
            reason = "; ".join([opened.reason, *refused])
            decision = request.bundle.decision(request.bundle.variant(opened.variant))
            return Served(Held(opened.session), request.bundle, name, opened.variant, reason, decision)
        raise InternalError("the CPU comes last and is taken or refused")

    def _taught(self, served: Served) -> Served:
        """Adds what was learned before."""
        from edgetl.runtime.overlay import OtherBundleError, kept_aside, read_overlay

        path, digest = Path(str(self.overlay)), served.bundle.digest
        if self.overlay is True:
            path = default_overlay(served.bundle.root)
            if not path.exists():
                return served

        def width() -> int:
            return int(served.exemplars()[0].shape[1])

        try:
            support = read_overlay(path, digest, width, self.device_key)
        except OtherBundleError as error:
            if self.overlay is not True:
                raise
            path = kept_aside(path, digest)
            if not path.exists():
                warn("what was learned is left out: %s", error)
                return served
            support = read_overlay(path, digest, width, self.device_key)
        if set(support) & set(served.labels):
            raise BundleError(f"{path}: gives a class of the model another meaning; learn the classes again")
        return served.taught(support)

    def exchange(self, bundle: str | Path | Bundle) -> Served:
        """Opens a bundle that takes another one's place, and runs it once."""
        served = replace(self, overlay=False).open(bundle)
        try:
            served.warm_up()
        except BaseException:
            served.session.close()
            raise
        return served


@dataclass(eq=False, repr=False)
class _Request:
    """A bundle that is to be opened, and how."""

    bundle: Bundle
    options: _Options


@dataclass(eq=False, repr=False)
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
    batching: Batching | None = None,
    trusted_keys: Sequence[Key] | None = None,
    overlay: str | Path | bool = False,
    device_key: bytes | None = None,
    watch: bool = False,
    on_progress: Progress | None = None,
) -> Classifier:
    """Loads a bundle for prediction, after checking every file of it.

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
        batching: How `Classifier.submit` puts requests together.
        trusted_keys: Public keys, one of which must have signed the bundle (``edgetl bundle sign``): paths of PEM
            files, or their content. By default anyone's bundle is taken.
        overlay: What this device learned before (`Classifier.save`): a path, or True for the file beside the bundle,
            if it is there. One that was learned with another bundle is refused where it is named, and else left out
            with a warning.
        device_key: A secret of this device, 16 bytes or more, with which overlays are authenticated; needed where
            trusted_keys are given, because an overlay changes answers.
        watch: Looks every second whether another bundle was moved to this place, and goes over to it as
            `Classifier.reload` does; one that is refused is told to the logger ``edgetl``.
        on_progress: Called with (stage, done, total or 0, text) while it compiles; by default the logger ``edgetl``
            warns at once and then every ten seconds, so that minutes do not look like the end.

    Returns:
        A classifier; use it in a ``with`` statement, or close it. Its ``engine``, ``variant`` and ``reason`` say
        what was chosen.

    Raises:
        BundleError: The bundle is damaged, or not signed by a trusted key.
        EngineError: The engine is unknown or not to be had here, or does not run this variant.
        InputError: The keys or the overlay do not go together.
        MissingExtraError: The engine is not installed.
    """
    for what, value, known in (("engine", engine, ENGINES), ("build", build, BUILD)):
        if value not in known:
            raise EngineError(f'{what} "{value}" is unknown: it must be one of {", ".join(known)}')
    if settings is not None and settings.sms:
        raise EngineError("a plan that is loaded is built for this machine's GPU: leave the settings' sms empty")
    if device_key is not None and (not isinstance(device_key, bytes) or len(device_key) < _SHORTEST_KEY):
        raise InputError(f"device_key must be bytes, {_SHORTEST_KEY} or more of them: os.urandom(32) makes a good one")
    options = _Options(
        engine,
        variant,
        threads,
        settings,
        None if plans is None else Path(plans),
        build == "auto",
        on_progress or _Telling(),
        None if trusted_keys is None else tuple(trusted_keys),
        overlay,
        device_key,
    )
    if overlay and trusted_keys is not None and device_key is None:
        raise InputError("an overlay changes the answers of a signed bundle: give a device_key too")
    served = options.open(bundle)
    return Classifier(served, open_bundle=options.exchange, batching=batching, watch=watch, device_key=device_key)


class _Telling:
    """Tells a program's log that a plan is being built."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TELL_EVERY_S
            warn("%s, %s so far; it is kept, and edgetl compile does it ahead of time", stage, text)


def _order(request: _Request) -> tuple[str, ...]:
    engine, variant = request.options.engine, request.options.variant
    if engine != "auto":
        return (engine,)
    target = None if variant is None else request.bundle.variant(variant).target
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

    options = request.options
    variants = _for_gpu(request.bundle, options.variant, PLAN_VARIANTS, "tensorrt")
    source = PlanSource(options.settings, options.plans, options.build, options.on_progress)
    session, name, reason = open_fastest(request.bundle, variants, product_named(engine), source)
    return _Opened(session, name, reason)


def _through_onnxruntime(request: _Request, provider: str) -> _Opened:
    from edgetl.compile import PLAN_VARIANTS, PlanSettings

    bundle, options = request.bundle, request.options
    names = PLAN_VARIANTS[::-1] if provider == "tensorrt" else ("fp16", "fp32")
    variant = _for_gpu(bundle, options.variant, names, provider)[0]
    session = OrtSession(
        bundle.read(variant),
        bundle.spec,
        provider=provider,
        provider_options=_options(provider, variant),
        max_batch=(options.settings or PlanSettings()).max_batch if provider == "tensorrt" else MAX_BATCH,
    )
    why = "asked for by name" if options.variant else f"{variant.precision.upper()} for this GPU"
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
    variant, reason = choose_variant(request.bundle, request.options.variant)
    session = OrtSession(request.bundle.read(variant), request.bundle.spec, threads=request.options.threads)
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
