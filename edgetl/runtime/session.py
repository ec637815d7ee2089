"""What every inference engine offers the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edgetl.errors import EngineError
from edgetl.spec import ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["UINT8", "Session", "check_batch"]


class Session(Protocol):
    """One loaded graph.

    Attributes:
        spec: What the graph expects and answers.
        max_batch: Largest N that `infer` takes.
    """

    spec: ModelSpec
    max_batch: int

    def infer(self, batch: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Runs uint8 (N, H, W, C); returns ``logits`` (N, classes) and ``embedding`` (N, D), float32."""

    def close(self) -> None:
        """Releases the engine; further calls of `infer` raise EngineError."""


UINT8 = np.dtype(np.uint8)


def check_batch(batch: NDArray[Any], shape: tuple[int, int, int], max_batch: int) -> None:
    """Refuses an input that does not fit.

    Args:
        batch: What somebody wants to know about.
        shape: (H, W, C) of one picture.
        max_batch: Largest number of them.

    Raises:
        EngineError: Its type, its shape or its length is another.
    """
    if batch.dtype != UINT8 or batch.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise EngineError(f"input is {batch.dtype} {batch.shape}, this model takes uint8 (N, {wanted})")
    if not 1 <= len(batch) <= max_batch:
        raise EngineError(f"batch of {len(batch)} pictures: it must be 1 to {max_batch}")
