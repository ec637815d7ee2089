"""Pictures of a data set as the network sees them, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.dataset.collection import Item
from edgetl.preprocess import preprocess
from edgetl.spec import PreprocessSpec

__all__ = ["input_batches"]


def input_batches(items: Sequence[Item], spec: PreprocessSpec, size: int = 8) -> Iterator[NDArray[np.uint8]]:
    """Yields uint8 (N, H, W, C), N up to ``size``, in the items' order.

    Raises:
        PictureError: A picture cannot be read.
    """
    for start in range(0, len(items), size):
        yield np.stack([preprocess(item.path, spec) for item in items[start : start + size]])
