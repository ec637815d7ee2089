"""What every inference engine offers the runtime."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgetl.spec import ModelSpec

__all__ = ["Session"]


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
