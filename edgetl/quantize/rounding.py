"""Rounding a weight so that its layer's answers stay right, not its single numbers.

Columns are rounded one after the other, and what a rounding gets wrong is made up for by the columns that are still
free, in the proportion that the inputs' second moments say (Optimal Brain Quantization, Frantar and Alistarh 2022,
with the order and the blocks of GPTQ, Frantar et al. 2023).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["round_rows"]

_LIMIT = 127
_DAMPING = 0.01
_BLOCK = 128


def round_rows(rows: NDArray[np.float64], scale: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.int8]:
    """Rounds a weight to multiples of a scale for each output channel, errors compensated.

    Args:
        rows: (groups, outputs, taps).
        scale: (groups, outputs).
        second: (groups, taps, taps), second moments of the layer's input, not centred.

    Returns:
        int8 from -127 to 127, in the shape of ``rows``.
    """
    order = np.argsort(-np.einsum("gii->gi", second), axis=1, kind="stable")  # the loudest inputs first
    upper = _factor(np.take_along_axis(np.take_along_axis(second, order[:, :, None], 1), order[:, None, :], 2))
    free = np.take_along_axis(rows, order[:, None, :], axis=2)
    result = np.empty(rows.shape, np.int8)
    taps = rows.shape[2]
    for start in range(0, taps, _BLOCK):
        end = min(start + _BLOCK, taps)
        block = free[:, :, start:end]
        errors = np.empty_like(block)
        for j in range(end - start):
            rounded = np.clip(np.round(block[:, :, j] / scale), -_LIMIT, _LIMIT)
            result[:, :, start + j] = rounded
            errors[:, :, j] = (block[:, :, j] - rounded * scale) / upper[:, None, start + j, start + j]
            block[:, :, j + 1 :] -= errors[:, :, j, None] * upper[:, None, start + j, start + j + 1 : end]
        free[:, :, end:] -= errors @ upper[:, start:end, end:]
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], result.shape), result.copy(), axis=2)
    return result


def _factor(second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns U, upper, with U^T U the inverse of the damped moments."""
    taps = second.shape[-1]
    mean = np.einsum("gii->g", second) / taps
    damped = second + np.eye(taps) * np.maximum(_DAMPING * mean, 1e-12)[:, None, None]
    return np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped)), -1, -2)
