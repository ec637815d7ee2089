"""What every inference engine offers the runtime."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EngineError
from edgetl.spec import ModelSpec

__all__ = ["Session", "check_batch"]


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


def check_batch(batch: NDArray[Any], spec: ModelSpec, max_batch: int) -> None:
    """Refuses an input that does not fit.

    Raises:
        EngineError: Its type, its shape or its length is another.
    """
    if batch.dtype != np.uint8 or batch.shape[1:] != spec.preprocess.input_shape:
        wanted = ", ".join(map(str, spec.preprocess.input_shape))
        raise EngineError(f"input is {batch.dtype} {batch.shape}, this model takes uint8 (N, {wanted})")
    if not 1 <= len(batch) <= max_batch:
        raise EngineError(f"batch of {len(batch)} pictures: it must be 1 to {max_batch}")
