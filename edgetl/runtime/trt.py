"""Sessions of TensorRT: a thin layer over its bindings. Memory, streams and graphs are `edgetl.runtime.cuda`'s."""

from __future__ import annotations

import threading
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.compile import EngineLayer, Product, layers_of_inspector, listening
from edgetl.errors import EngineError
from edgetl.runtime.cuda import Buffer, Graph, Stream, on_first_device
from edgetl.runtime.session import check_batch
from edgetl.spec import ModelSpec

__all__ = ["TrtSession"]

_RECORDED_SIZES = 4  # each holds an execution context, and so working memory on the GPU


@dataclass
class _Lane:
    """One batch size: its execution context, and what was recorded of it."""

    context: Any
    graph: Graph | None


class TrtSession:
    """A plan in TensorRT or TensorRT-RTX. Thread-safe: calls take turns.

    Args:
        plan: Native code. Whoever hands it over has checked where it comes from.
        spec: What the graph expects and answers.
        product: What built it.
        name: Of the plan, for messages.

    Attributes:
        eager_because: Why work is not recorded as CUDA graphs; empty where it is.

    Raises:
        EngineError: There is no GPU, or TensorRT refuses the plan; its own words are quoted.
        MissingExtraError: Bindings are not installed.
    """

    def __init__(self, plan: bytes, spec: ModelSpec, product: Product, *, name: str = "plan") -> None:
        self._lock = threading.Lock()
        self._lanes: dict[int, _Lane] = {}
        self._buffers: dict[str, Buffer] = {}
        self._shared: Any = None
        self._engine: Any = None
        self._closing = ExitStack()
        self.spec = spec
        self._shape = spec.preprocess.input_shape
        self.eager_because = ""
        try:
            with on_first_device():
                self._stream = self._closing.enter_context(Stream())
                trt = self._trt = product.bindings()
                log, self._heard = self._closing.enter_context(listening(trt))
                self._open(trt, log, plan, f"{name}: {product.name}")
        except BaseException:
            self.close()
            raise

    def _open(self, trt: Any, log: Any, plan: bytes, name: str) -> None:
        try:
            self._runtime = runtime = trt.Runtime(log)
        except TypeError:  # how the bindings tell of a null pointer
            raise EngineError(f"{name} cannot start ({self._heard.words(first=True)})") from None
        self._engine = engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{name} refuses this plan ({self._heard.words()}); build it again here")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if n not in inputs]
        if len(inputs) != 1 or "logits" not in self._outputs:
            raise EngineError(f'{name}: must have one input and an output "logits", it has {", ".join(names)}')
        self._input = inputs[0]
        smallest, _, largest = (tuple(shape) for shape in engine.get_tensor_profile_shape(self._input, 0))
        if largest[1:] != self._shape:
            raise EngineError(f"{name}: takes (N, *{largest[1:]}), the spec says (N, *{self._shape})")
        self._min_batch, self.max_batch = smallest[0], largest[0]
        for tensor in names:
            shape = (self.max_batch, *tuple(engine.get_tensor_shape(tensor))[1:])
            self._buffers[tensor] = Buffer(shape, trt.nptype(engine.get_tensor_dtype(tensor)))
        self._shared = self._context()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What TensorRT warned of since the plan was opened."""
        return tuple(self._heard.warnings)

    def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Runs uint8 (N, H, W, C) with 1 to ``max_batch`` pictures.

        Raises:
            EngineError: The session is closed, the input does not fit, or TensorRT failed.
        """
        check_batch(batch, self._shape, self.max_batch)
        with self._lock:
            if self._engine is None:
                raise EngineError("this session is closed; load the bundle again")
            return self._infer(batch)

    def _infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        with on_first_device():
            rows = max(len(batch), self._min_batch)  # a plan of one size gets what stood there before
            self._buffers[self._input].host[: len(batch)] = batch
            lane = self._lane(rows)
            if lane.graph is not None:
                lane.graph.launch(self._stream)
            else:
                self._queue(lane.context, rows)
            self._stream.synchronize()
            return {name: self._buffers[name].host[: len(batch)].astype(np.float32) for name in self._outputs}

    def _lane(self, rows: int) -> _Lane:
        """Returns the way to run a batch size; a recorded graph wants a context that no other size touches."""
        if rows in self._lanes:
            return self._lanes[rows]
        if len(self._lanes) >= _RECORDED_SIZES or self.eager_because:
            self._reshape(self._shared, rows)
            return _Lane(self._shared, None)
        lane = _Lane(self._context(), None)
        self._reshape(lane.context, rows)
        self._queue(lane.context, rows)  # TensorRT asks for one run before a recording
        self._stream.synchronize()
        try:
            if hasattr(lane.context, "is_stream_capturable"):
                self._check(lane.context.is_stream_capturable(self._stream.handle))
            lane.graph = self._stream.capture(lambda: self._queue(lane.context, rows))
        except EngineError as error:
            self.eager_because = f"its work cannot be recorded: {error}"
        self._lanes[rows] = lane
        return lane

    def _context(self) -> Any:
        context = self._new_context()
        if context is None:
            raise EngineError(
                f"TensorRT cannot prepare this plan ({self._heard.words()}); is there memory left on the GPU?"
            )
        for tensor, buffer in self._buffers.items():
            self._check(context.set_tensor_address(tensor, buffer.device))
        return context

    def _new_context(self) -> Any:
        engine, trt = self._engine, self._trt
        # TensorRT-RTX compiles kernels while it runs: wait for the fast ones, or only slow stand-ins are timed.
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            settings = engine.create_runtime_config()
            settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            return engine.create_execution_context(settings)
        return engine.create_execution_context()

    def _reshape(self, context: Any, rows: int) -> None:
        self._check(context.set_input_shape(self._input, (rows, *self._shape)))

    def _queue(self, context: Any, rows: int) -> None:
        self._buffers[self._input].upload(rows, self._stream)
        self._check(context.execute_async_v3(self._stream.handle))
        for name in self._outputs:
            self._buffers[name].download(rows, self._stream)

    def layers(self) -> tuple[EngineLayer, ...]:
        """Returns what the plan is made of, as the engine inspector tells it."""
        if self._engine is None:
            raise EngineError("this session is closed; load the bundle again")
        inspector = self._engine.create_engine_inspector()
        return layers_of_inspector(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _check(self, done: bool) -> None:
        if not done:
            raise EngineError(f"TensorRT failed ({self._heard.words()})")

    def close(self) -> None:
        """Releases the plan and its memory; closing twice does nothing."""
        with self._lock, self._closing:
            lanes, self._lanes = self._lanes, {}
            buffers, self._buffers = self._buffers, {}
            with on_first_device() if buffers else nullcontext():
                if buffers:
                    with suppress(EngineError):  # what failed before was told then
                        self._stream.synchronize()  # an interrupted call may have left work behind
                for lane in lanes.values():
                    if lane.graph is not None:
                        lane.graph.close()
                lanes.clear()
                self._shared = self._engine = self._runtime = None
                for buffer in buffers.values():
                    buffer.close()

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
