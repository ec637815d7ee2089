"""Arrays that are computed once and kept in the user's cache: room, writing, reading, and forgetting the oldest."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgetl.errors import InputError

__all__ = ["check_room", "forget_oldest", "new_array", "read_array"]

_LEFT_FREE_BYTES = 1 << 30  # a cache is no reason to fill a disk
_ABANDONED_S = 24 * 3600.0  # a killed process takes its unfinished file along no more


def check_room(folder: Path, needed: int, what: str) -> None:
    """Checks that a disk has room to spare.

    Args:
        folder: May not exist yet.
        needed: Bytes.
        what: Begins the sentence that says there is none.

    Raises:
        InputError: There is none.
    """
    try:
        place = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise InputError(f"{folder}: cannot be used ({error.strerror})") from None
    if free - needed < _LEFT_FREE_BYTES:
        raise InputError(f"{what} would take {needed / 2**30:.1f} GiB of the {free / 2**30:.1f} free in {place}")


@contextmanager
def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[np.memmap[Any, Any]]:
    """Gives an array in a file, to be filled row by row; the file gets its name where the block ends well.

    Memory does not grow with the array, and its room on disk is taken at once: a map into a hole would end in a signal
    when the disk is full.

    Args:
        path: ``.npy``.
        shape: Of the array.
        dtype: Of the array.

    Raises:
        InputError: The file cannot be written, or the disk has no room for it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".npy", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror})") from None
    os.close(handle)
    temporary = Path(name)
    try:
        array = _allocated(temporary, shape, dtype)
        yield array
        _published(array, temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _allocated(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap[Any, Any]:
    try:
        array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror})") from None
    return array


def _published(array: np.memmap[Any, Any], temporary: Path, path: Path) -> None:
    try:
        array.flush()
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def read_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any] | None:
    """Returns what is kept, or None where nothing of that shape and type is.

    The file is mapped, not read; what is written to the array stays in memory.
    """
    try:
        array = np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == dtype and array.shape == shape else None


def forget_oldest(newest: Path, kept_bytes: int) -> None:
    """Deletes arrays beyond the newest few, and what killed processes left; others may do the same at this moment.

    Args:
        newest: Is kept whatever its size; the others lie beside it.
        kept_bytes: Of all together.
    """
    found = []
    for path in newest.parent.glob("*.npy"):
        with suppress(OSError):
            known = path.stat()
            if not path.name.startswith("."):
                found.append((known.st_mtime, known.st_size, path))
            elif time.time() - known.st_mtime > _ABANDONED_S:  # else another process is at it
                path.unlink()
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > kept_bytes and path != newest:
            with suppress(OSError):
                path.unlink()
