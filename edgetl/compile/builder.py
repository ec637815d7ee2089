"""From one ONNX graph to one plan. Precision is in the graph: the builder gets no flags for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edgetl import host
from edgetl.compile.api import Product, listening
from edgetl.compile.layers import BuildReport, layers_of_log, report_of
from edgetl.errors import EngineError, InputError

__all__ = ["BuiltPlan", "PlanSettings", "Progress", "build_plan"]

Progress = Callable[[str, int, int, str], None]

_HEARTBEAT_S = 1.0
# TensorRT-RTX took 270 to 295 MB for graphs of 5 to 14 MB; TensorRT loads its kernels and a CUDA context besides.
_BUILDER_BYTES = 600 << 20
_GRAPH_COPIES = 8


@dataclass(frozen=True)
class PlanSettings:
    """How a plan is built.

    Attributes:
        max_batch: Largest batch that it takes.
        best_batch: Batch that it is made fast for.
        workspace_bytes: Limit of the memory that kernels may use beside their inputs; None leaves it to the builder.
        optimization_level: 0 to 5, how long it may search; None leaves it to the builder.
        dla_core: Deep-learning accelerator to use, None for the GPU alone.
        sms: Compute capabilities to build for, 86 for 8.6; empty for the GPU of this machine.
    """

    max_batch: int = 8
    best_batch: int = 1
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    dla_core: int | None = None
    sms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.best_batch <= self.max_batch <= 4096:
            raise InputError(
                f"batches of {self.best_batch} at best and {self.max_batch} at most: give 1 <= best <= most <= 4096"
            )
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization level {self.optimization_level}: it must be 0 to 5")
        if self.dla_core is not None and self.max_batch != 1:
            raise InputError("a DLA takes one batch size only: give a largest batch of 1")

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {**asdict(self), "sms": list(self.sms)}


@dataclass(frozen=True)
class BuiltPlan:
    """A plan in memory.

    Attributes:
        data: Native code.
        report: What is in it.
        warnings: The builder's.
        left_to_gpu: Layers that the DLA cannot run; empty without one.
        seconds: It took.
        timings: What the next build of a graph like this need not measure again, None where nothing was.
    """

    data: bytes
    report: BuildReport
    warnings: tuple[str, ...]
    left_to_gpu: tuple[str, ...]
    seconds: float
    timings: bytes | None


def build_plan(
    graph: bytes,
    name: str,
    product: Product,
    settings: PlanSettings,
    *,
    timings: bytes = b"",
    on_progress: Progress | None = None,
) -> BuiltPlan:
    """Builds a plan; seconds on a desktop, minutes on a board.

    Args:
        graph: ONNX, strongly typed by its Q/DQ and Cast nodes.
        name: Of it, for messages.
        product: What builds.
        settings: How.
        timings: Of an earlier build for this GPU.
        on_progress: Called about once a second with (stage, steps done, steps or 0, elapsed time).

    Raises:
        EngineError: The graph is refused, or this machine cannot build; the builder's own words are quoted.
        MissingExtraError: The product is not installed.
    """
    _check_memory(len(graph), name)
    trt = product.bindings()
    details: list[str] = []
    began = time.perf_counter()

    def on_detail(text: str) -> None:
        if "LayerType: " in text:
            details.append(text)

    with listening(trt, on_detail) as (log, heard):
        try:
            builder = trt.Builder(log)
        except TypeError:  # how the bindings tell of a null pointer
            raise EngineError(f"{product.name} cannot start ({heard.words(first=True)})") from None
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(graph):
            raise EngineError(f"{name}: {product.name} cannot read it ({_parser_words(parser) or heard.words()})")
        config = builder.create_builder_config()
        _configure(trt, builder, network, config, product, settings)
        left_to_gpu = _use_dla(trt, builder, network, config, settings.dla_core)
        timing_cache = _timing_cache(config, timings) if product.times_tactics else None
        steps = _Steps()
        config.progress_monitor = _monitor(trt, steps)
        tell = on_progress or (lambda stage, done, total, text: None)
        plan = _in_background(
            lambda: builder.build_serialized_network(network, config),
            steps,
            lambda elapsed: tell(f"building {name}", steps.done, steps.total, f"{elapsed:.0f} s"),
        )
        if plan is None:
            raise EngineError(f"{name}: {product.name} cannot build it ({heard.words(first=True)})")
        return BuiltPlan(
            bytes(plan),
            report_of(layers_of_log("\n".join(details)), _weighted(trt, network)),
            tuple(heard.warnings),
            left_to_gpu,
            time.perf_counter() - began,
            None if timing_cache is None else bytes(timing_cache.serialize()),
        )


def _check_memory(graph_bytes: int, name: str) -> None:
    """Refuses where the build would be killed half-way, as small boards do without a word."""
    needed, free = _BUILDER_BYTES + _GRAPH_COPIES * graph_bytes, host.available_bytes()
    if free is not None and free < needed:
        raise EngineError(
            f"{name}: a build takes about {needed >> 20} MiB, {free >> 20} MiB are free; close what runs beside it "
            f"(on a Jetson: sudo systemctl isolate multi-user.target), or copy a plan from a board like this one"
        )


def _network_flags(trt: Any) -> int:
    """Returns strong typing where it is asked for; where the flag is gone, it is always on."""
    kinds = trt.NetworkDefinitionCreationFlag
    wanted = [getattr(kinds, flag) for flag in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(kinds, flag)]
    return sum(1 << int(flag) for flag in wanted)


def _configure(trt: Any, builder: Any, network: Any, config: Any, product: Product, settings: PlanSettings) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profile(builder, network, config, settings)
    if settings.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.sms:
        _aim(trt, config, product, settings.sms)


def _add_profile(builder: Any, network: Any, config: Any, settings: PlanSettings) -> None:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        smallest = 1 if settings.dla_core is None else settings.max_batch
        sizes = (smallest, settings.best_batch, settings.max_batch)
        try:
            profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in sizes))
        except RuntimeError as error:
            raise EngineError(f"input {tensor.name} of {tuple(tensor.shape)} takes no batches ({error})") from None
    config.add_optimization_profile(profile)


def _aim(trt: Any, config: Any, product: Product, sms: tuple[int, ...]) -> None:
    if not product.for_other_gpus:
        raise EngineError(
            f"{product.name} builds for this machine's GPU alone; --engine tensorrt-rtx builds for others"
        )
    known = trt.ComputeCapability.__members__
    for sm in sms:
        if f"SM{sm}" not in known:
            shown = ", ".join(name[2:] for name in known if name.startswith("SM"))
            raise InputError(f"--sm {sm}: this {product.name} builds for {shown}")
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        config.set_compute_capability(known[f"SM{sm}"], index)


def _use_dla(trt: Any, builder: Any, network: Any, config: Any, core: int | None) -> tuple[str, ...]:
    """Moves to the accelerator what it can run, and returns the names of what it cannot."""
    if core is None:
        return ()
    if core >= builder.num_DLA_cores:
        raise EngineError(f"DLA {core}: this machine has {builder.num_DLA_cores} of them")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    refused = tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))
    if len(refused) == len(layers):
        raise EngineError(f"DLA {core}: runs none of this graph's {len(layers)} layers; build it for the GPU")
    return refused


def _timing_cache(config: Any, timings: bytes) -> Any:
    """Returns a cache of kernels' timings that the builder fills; earlier ones that it refuses are forgotten."""
    for known in (timings, b""):
        timing_cache = config.create_timing_cache(known)
        if timing_cache is not None and config.set_timing_cache(timing_cache, False) is not False:
            return timing_cache
    return None


def _weighted(trt: Any, network: Any) -> list[str]:
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [layer.name for layer in layers if layer.type in kinds]


@dataclass
class _Steps:
    """How far the outermost phase of a build is, and whether it shall go on."""

    done: int = 0
    total: int = 0
    cancelled: bool = False


def _monitor(trt: Any, steps: _Steps) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: str | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost, steps.total = phase_name, num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outermost:
                steps.done = step + 1
            return not steps.cancelled

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _in_background(build: Callable[[], Any], steps: _Steps, tell: Callable[[float], None]) -> Any:
    """Runs a build in another thread, and tells every second that time passes: no output looks dead.

    TensorRT swallows whatever is raised in its callbacks, Ctrl-C too. This thread runs none of them, so an interruption
    arrives here, and cancels the build at its next step.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(build())
        except BaseException as error:
            failure.append(error)

    began = time.monotonic()
    worker = threading.Thread(target=work, name="edgetl build", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(_HEARTBEAT_S)
            if worker.is_alive():
                tell(time.monotonic() - began)
    except BaseException:
        steps.cancelled = True
        worker.join()
        raise
    if failure:
        raise failure[0]
    return outcome[0]


def _parser_words(parser: Any) -> str:
    return "; ".join(" ".join(parser.get_error(i).desc().split()) for i in range(min(2, parser.num_errors)))[:500]
