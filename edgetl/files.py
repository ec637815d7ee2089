"""Opening files that somebody else put there: plain files alone, so that nothing hangs and no link leads elsewhere."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["open_regular", "read_regular"]

# Without waiting for whoever writes into a pipe, and not through a link. Windows has neither.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_OF_LINKS = (errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP))


def open_regular(path: Path) -> tuple[BinaryIO, int]:
    """Opens a plain file for reading.

    Returns:
        The file, and its size in bytes.

    Raises:
        OSError: It cannot be opened, or is a link, a pipe, a device or a folder; ``strerror`` says which.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno in _OF_LINKS:
            raise OSError(errno.ELOOP, "is a symbolic link, which may lead anywhere", str(path)) from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"is {_kind(found.st_mode)}, not a plain file", str(path))
        return os.fdopen(descriptor, "rb"), found.st_size
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, largest: int) -> bytes:
    """Returns what a plain file holds.

    Args:
        path: Of the file.
        largest: Bytes that it may have.

    Raises:
        OSError: As `open_regular`, or it is larger.
    """
    file, size = open_regular(path)
    with file:
        data = file.read(largest + 1) if size <= largest else b""
    if max(size, len(data)) > largest:
        raise OSError(errno.EFBIG, f"has {max(size, len(data))} bytes, more than {largest}", str(path))
    return data


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a folder" if stat.S_ISDIR(mode) else "a device or a socket"
