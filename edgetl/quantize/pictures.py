"""Calibration pictures, decoded once and read as often as calibration needs them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import QuantizationError

__all__ = ["Pictures"]

Batch = NDArray[np.uint8]

_LARGEST_BYTES = 2 << 30
_BATCH = 8


class Pictures:
    """Preprocessed pictures in an unnamed temporary file, which the first reading of them fills.

    Memory holds one batch. What goes beyond the file's limit is still passed on by the first reading, and unknown to
    later ones.

    Args:
        batches: uint8 (N, H, W, C); read once.
        limit: Largest size of the file, bytes.
    """

    def __init__(self, batches: Iterable[Batch], *, limit: int = _LARGEST_BYTES) -> None:
        self._source = iter(batches)
        self._limit = limit
        self._file = tempfile.TemporaryFile(prefix="edgetl-pictures-")  # noqa: SIM115  (closed by close)
        self._shape: tuple[int, ...] | None = None
        self.seen = 0
        self.count = 0

    def __enter__(self) -> Pictures:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Deletes the file."""
        self._file.close()

    def first(self) -> Iterator[Batch]:
        """Passes the source on, once, and keeps what fits."""
        for batch in self._source:
            self._keep(batch)
            self.seen += len(batch)
            yield batch

    def _keep(self, batch: Batch) -> None:
        self._shape = self._shape or batch.shape[1:]
        if batch.shape[1:] != self._shape:
            raise QuantizationError(f"calibration pictures differ in shape: {batch.shape[1:]} after {self._shape}")
        room = max(0, self._limit // int(np.prod(self._shape)) - self.count)
        kept = np.ascontiguousarray(batch[:room])
        try:
            self._file.write(kept.data)
            self._file.flush()
        except OSError as error:
            raise QuantizationError(
                f"{tempfile.gettempdir()}: no room for {self._limit >> 20} MiB of calibration pictures "
                f"({error.strerror}); free some, give fewer --calib-images, or set TMPDIR to another folder"
            ) from None
        self.count += len(kept)

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Reads pictures ``start`` to ``stop`` again, in batches of 8; `first` has been read to its end before."""
        stop = self.count if stop is None else min(stop, self.count)
        for first in range(start, stop, _BATCH):
            yield self._read(first, min(first + _BATCH, stop))

    def _read(self, start: int, stop: int) -> Batch:
        shape = self._shape or ()
        size = int(np.prod(shape))
        self._file.seek(start * size)
        data = self._file.read((stop - start) * size)
        return np.frombuffer(data, np.uint8).reshape(stop - start, *shape)
