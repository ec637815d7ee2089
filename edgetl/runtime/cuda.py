"""Memory, streams and graphs of CUDA, through NVIDIA's cuda-bindings. Knows nothing of TensorRT."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgetl.gpu import call, cuda, current_gpu

__all__ = ["Buffer", "Graph", "Stream", "on_first_device"]


@contextmanager
def on_first_device() -> Iterator[None]:
    """Makes this thread use the device that edgetl uses, and gives it back its own."""
    runtime = cuda()
    own = call(runtime.cudaGetDevice())
    if own == 0:
        yield
        return
    call(runtime.cudaSetDevice(0))
    try:
        yield
    finally:
        call(runtime.cudaSetDevice(own))


class Stream:
    """A queue of work on the GPU, independent of the default one.

    Attributes:
        handle: The ``cudaStream_t`` as a number.
    """

    def __init__(self) -> None:
        runtime = cuda()
        current_gpu()  # says in words what is missing
        self._runtime = runtime
        self._stream: Any = call(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self.handle = int(self._stream)

    def synchronize(self) -> None:
        """Waits until everything that was queued is done.

        Raises:
            EngineError: Some of it failed.
        """
        call(self._runtime.cudaStreamSynchronize(self._stream))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Records what ``work`` queues on this stream, without running it.

        Raises:
            EngineError: Something in it cannot be recorded.
        """
        runtime = self._runtime
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(runtime.cudaStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:
            runtime.cudaStreamEndCapture(self._stream)  # leaves the recording, whatever became of it
            raise
        return Graph(call(runtime.cudaStreamEndCapture(self._stream)))

    def close(self) -> None:
        """Releases the stream; closing twice does nothing."""
        stream, self._stream = self._stream, None
        if stream is not None:
            call(self._runtime.cudaStreamDestroy(stream))

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Graph:
    """Recorded work: one launch instead of one for each kernel.

    Args:
        recorded: A ``cudaGraph_t``, which is released here.
    """

    def __init__(self, recorded: Any) -> None:
        self._runtime = cuda()
        try:
            self._executable: Any = call(self._runtime.cudaGraphInstantiate(recorded, 0))
        finally:
            call(self._runtime.cudaGraphDestroy(recorded))

    def launch(self, stream: Stream) -> None:
        """Queues all of it on a stream."""
        call(self._runtime.cudaGraphLaunch(self._executable, stream.handle))

    def close(self) -> None:
        """Releases the graph; closing twice does nothing."""
        executable, self._executable = self._executable, None
        if executable is not None:
            call(self._runtime.cudaGraphExecDestroy(executable))


class Buffer:
    """One array on both sides: page-locked memory of the host, and where the GPU finds it.

    A GPU with memory of its own gets a copy there. One that shares the host's, as on a Jetson, reads and writes the
    very same pages, so copying is nothing. Page-locked and mapped, not managed: a processor that touches managed
    memory while any kernel runs on such a board is killed.

    Args:
        shape: Largest, the first axis being the batch.
        dtype: Of its values.
        shared: Whether the GPU works on the host's pages; None asks the GPU.

    Attributes:
        host: The array.
        device: Its address on the GPU.
        shared: Whether both are the same memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, *, shared: bool | None = None) -> None:
        runtime = self._runtime = cuda()
        self.shared = current_gpu().integrated if shared is None else shared
        kind = np.dtype(dtype)
        count = int(np.prod(shape)) * kind.itemsize
        self._row = count // shape[0]
        self._own: int | None = None
        self._pages: int | None = int(call(runtime.cudaHostAlloc(count, runtime.cudaHostAllocMapped)))
        pages = (ctypes.c_uint8 * count).from_address(self._pages)
        self.host: NDArray[Any] = np.ndarray(shape, kind, buffer=memoryview(pages))
        try:
            if self.shared:
                self.device = int(call(runtime.cudaHostGetDevicePointer(self._pages, 0)))
            else:
                self.device = self._own = int(call(runtime.cudaMalloc(count)))
        except BaseException:
            self.close()
            raise

    def upload(self, rows: int, stream: Stream) -> None:
        """Queues the copy of the first rows to the GPU; nothing to do where memory is shared."""
        if not self.shared:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            call(self._runtime.cudaMemcpyAsync(self.device, self._pages, rows * self._row, kind, stream.handle))

    def download(self, rows: int, stream: Stream) -> None:
        """Queues the copy of the first rows from the GPU; `host` has them once the stream is synchronized."""
        if not self.shared:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            call(self._runtime.cudaMemcpyAsync(self._pages, self.device, rows * self._row, kind, stream.handle))

    def close(self) -> None:
        """Releases both sides; `host` must not be used any more."""
        own, self._own = self._own, None
        pages, self._pages = self._pages, None
        self.host = np.empty(0)
        if own is not None:
            call(self._runtime.cudaFree(own))
        if pages is not None:
            call(self._runtime.cudaFreeHost(pages))
