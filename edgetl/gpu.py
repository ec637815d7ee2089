"""Facts about this machine's NVIDIA GPU, through NVIDIA's own cuda-bindings. Nothing here allocates on the GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from edgetl import host
from edgetl.errors import EngineError, MissingExtraError, require
from edgetl.jetson import l4t_release

__all__ = ["Gpu", "absence", "call", "cuda", "current_gpu", "driver_version"]


@dataclass(frozen=True)
class Gpu:
    """What compiled code depends on.

    Attributes:
        name: As the driver tells it.
        sm: Compute capability, for example 86 for 8.6.
        multiprocessors: Streaming multiprocessors.
        memory_bytes: Of the device; a Jetson's is the board's.
        memory_bus_bits: Width.
        l2_bytes: Second-level cache.
        shared_bytes: Largest shared memory of a block.
        integrated: Whether it shares the memory of the CPU, as on a Jetson.
        ecc: Whether its memory corrects errors.
    """

    name: str
    sm: int
    multiprocessors: int
    memory_bytes: int
    memory_bus_bits: int
    l2_bytes: int
    shared_bytes: int
    integrated: bool
    ecc: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return asdict(self)


@lru_cache(maxsize=1)
def cuda() -> Any:  # asked for at every inference
    """Returns the module of the CUDA runtime's calls.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: It is, and the libraries it needs are not.
    """
    try:
        return require("cuda.bindings.runtime", "tensorrt" if l4t_release() is None else "jetson")
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"cuda-bindings is installed but cannot be loaded ({str(error)[:200]})") from None


def call(result: tuple[Any, ...]) -> Any:
    """Returns what a CUDA call gave: nothing, a value, or a tuple of values.

    Raises:
        EngineError: The call failed; CUDA's own words are quoted.
    """
    status, *values = result
    if int(status) != 0:
        _, text = cuda().cudaGetErrorString(status)
        shown = text.decode() if isinstance(text, bytes) else str(text)
        raise EngineError(f"CUDA: {shown} ({status.name})")
    return values[0] if len(values) == 1 else tuple(values) or None


@lru_cache(maxsize=1)
def current_gpu() -> Gpu:
    """Returns the facts of the device that CUDA uses first (``CUDA_VISIBLE_DEVICES`` chooses).

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: There is no GPU, or no driver.
    """
    runtime = cuda()
    try:
        call(runtime.cudaGetDeviceCount())
    except EngineError as error:
        if host.has_nvidia_device():
            raise
        raise EngineError(f"this machine shows no NVIDIA GPU ({error})") from None
    found = call(runtime.cudaGetDeviceProperties(0))
    name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
    return Gpu(
        name=name.rstrip("\x00"),
        sm=found.major * 10 + found.minor,
        multiprocessors=found.multiProcessorCount,
        memory_bytes=found.totalGlobalMem,
        memory_bus_bits=found.memoryBusWidth,
        l2_bytes=found.l2CacheSize,
        shared_bytes=found.sharedMemPerBlockOptin,
        integrated=bool(found.integrated),
        ecc=bool(found.ECCEnabled),
    )


def absence() -> str | None:
    """Returns why this machine's GPU cannot be used, or None where it can."""
    try:
        current_gpu()
    except (EngineError, MissingExtraError) as error:
        return str(error)
    return None


def driver_version() -> int:
    """Returns the newest CUDA that the driver supports, for example 13000; 0 without a driver."""
    return int(call(cuda().cudaDriverGetVersion()))
