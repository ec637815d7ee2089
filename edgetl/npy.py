"""Tables of float16 in NumPy's own format, read without trust: the header must say exactly what the file has.

NumPy's reader evaluates the header as Python, and takes memory for whatever shape it names. Format:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["table_from_npy"]

_MAGIC = b"\x93NUMPY\x01\x00"
_START = len(_MAGIC) + 2
_HEADER = re.compile(
    rb"\{'descr': '<f2', 'fortran_order': False, 'shape': \(([1-9][0-9]{0,8}), ([1-9][0-9]{0,8})\), \} *\n"
)


def table_from_npy(data: bytes) -> NDArray[np.float16]:
    """Returns the table (N, D), N and D 1 or more, that ``numpy.save`` wrote.

    Raises:
        ValueError: It is none, or not of float16, or cut off, or more follows.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("is no .npy file of format 1.0")
    end = _START + int.from_bytes(data[len(_MAGIC) : _START], "little")
    header = _HEADER.fullmatch(data[_START:end])
    if header is None:
        raise ValueError("is no table of float16")
    rows, columns = (int(side) for side in header.groups())
    if len(data) - end != 2 * rows * columns:
        raise ValueError(f"says {rows} x {columns} numbers, and has {len(data) - end} bytes")
    return np.frombuffer(data, "<f2", offset=end).reshape(rows, columns)
