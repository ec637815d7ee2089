"""Second moments of what layers take in: what rounding their weights should keep right.

Inputs are sampled as the layer sees them, one row for each output position: the patch under the kernel, or the
vector that a matrix multiplies. Positions are drawn at random, so the rows are an unbiased sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.quantize.graph import Graph, attribute
from edgetl.quantize.probing import Probed

__all__ = ["Geometry", "Moments", "ScaledMoments", "geometry_of", "input_moments"]

Floats = NDArray[np.float64]

_POSITIONS = 64
_LARGEST_BYTES = 512 << 20
_MOST_TAPS = 6144  # a third of a gigabyte; a layer of more is rounded plainly


@dataclass(frozen=True)
class Geometry:
    """How a layer with a constant weight meets its input.

    Attributes:
        groups: Independent parts; 1 for a matrix.
        outputs: Output channels of one group.
        taps: Numbers that one output channel multiplies: channels of a group times kernel.
        kernel: (height, width), or None for a matrix.
        strides: Of the window.
        pads: (top, left, bottom, right).
        dilations: Of the kernel.
        transposed: Whether a matrix is stored as (inputs, outputs).
    """

    groups: int
    outputs: int
    taps: int
    kernel: tuple[int, int] | None = None
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    transposed: bool = False

    def rows_of(self, weight: NDArray[np.generic]) -> Floats:
        """Returns a weight as (groups, outputs, taps)."""
        matrix = weight.T if self.transposed else weight
        return matrix.reshape(self.groups, self.outputs, self.taps).astype(np.float64)

    def weight_of(self, rows: NDArray[np.generic], like: NDArray[np.generic]) -> NDArray[np.generic]:
        """Returns (groups, outputs, taps) in the weight's own form."""
        if self.transposed:
            return np.ascontiguousarray(rows.reshape(self.outputs, self.taps).T)
        return rows.reshape(like.shape)


def geometry_of(graph: Graph, node: onnx.NodeProto) -> Geometry | None:
    """Returns a layer's geometry, or None for what is rounded plainly: transposed, 1-D and scaled ones."""
    shape = graph.shape(node.input[1]) or ()
    if node.op_type == "Conv" and len(shape) == 4 and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b""):
        groups = int(attribute(node, "group", 1))
        strides, dilations = attribute(node, "strides", [1, 1]), attribute(node, "dilations", [1, 1])
        pads = attribute(node, "pads", [0, 0, 0, 0])
        return Geometry(
            groups,
            shape[0] // groups,
            shape[1] * shape[2] * shape[3],
            (shape[2], shape[3]),
            (strides[0], strides[1]),
            (pads[0], pads[1], pads[2], pads[3]),
            (dilations[0], dilations[1]),
        )
    is_scaled = any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if node.op_type == "Gemm" and len(shape) == 2 and not is_scaled and not attribute(node, "transA", 0):
        transposed = not attribute(node, "transB", 0)
        return Geometry(1, shape[1 if transposed else 0], shape[0 if transposed else 1], transposed=transposed)
    if node.op_type == "MatMul" and len(shape) == 2:
        return Geometry(1, shape[1], shape[0], transposed=True)
    return None


class Moments:
    """Of a layer's input.

    Attributes:
        second: (groups, taps, taps), the mean of x x^T, not centred; None where that were too large.
        first: (groups, taps), the mean of x.
    """

    def __init__(self, second: NDArray[np.floating] | None, first: Floats) -> None:
        self.second = second
        self.first = first

    def scaled(self, factors: Floats) -> Moments:
        """Returns the moments of the input with each channel multiplied.

        Args:
            factors: (channels,), of all groups.
        """
        groups, taps = self.first.shape
        each = np.repeat(factors.reshape(groups, -1), taps * groups // factors.size, axis=1)
        second = None if self.second is None else self.second * each[:, :, None] * each[:, None, :]
        return Moments(second, self.first * each)


class ScaledMoments(Mapping[str, Moments]):
    """The moments of an equalized network's layers, computed when they are asked for.

    Args:
        moments: Of the network before, by node name.
        factors: Of the inputs that changed, (channels,) by node name.
    """

    def __init__(self, moments: Mapping[str, Moments], factors: Mapping[str, Floats]) -> None:
        self._moments = moments
        self._factors = factors

    def __getitem__(self, name: str) -> Moments:
        found = self._moments[name]
        return found.scaled(self._factors[name]) if name in self._factors else found

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)


class _Sums:
    """What `Moments` are the mean of."""

    def __init__(self, geometry: Geometry) -> None:
        groups, taps = geometry.groups, geometry.taps
        self._second = np.zeros((groups, taps, taps)) if taps <= _MOST_TAPS else None
        self._first = np.zeros((groups, taps))
        self._count = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """Adds (groups, N, taps)."""
        if self._second is not None:
            self._second += np.matmul(rows.transpose(0, 2, 1), rows)
        self._first += rows.sum(axis=1)
        self._count += rows.shape[1]

    def mean(self) -> Moments:
        """Returns the moments; single precision is plenty for what is kept."""
        second = None if self._second is None else (self._second / self._count).astype(np.float32)
        return Moments(second, self._first / self._count)


def input_moments(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    batches: Callable[[], Iterable[NDArray[np.uint8]]],
    *,
    threads: int = 0,
) -> dict[str, Moments]:
    """Returns the moments of each layer's input, by node name.

    Args:
        model: FP32 graph.
        nodes: Layers of it, those that `geometry_of` knows.
        batches: Gives the calibration pictures anew each time it is called: large networks take several passes,
            so that no more than half a gigabyte of moments is in the making at once.
        threads: Of ONNX Runtime; 0 lets it decide.
    """
    graph = Graph(model)
    shapes = {node.name: geometry_of(graph, node) for node in nodes}
    found: dict[str, Moments] = {}
    for part in _portions(nodes, shapes):
        found |= _observe(model, part, batches(), threads)
    return found


def _portions(
    nodes: Sequence[onnx.NodeProto], shapes: dict[str, Geometry | None]
) -> Iterable[list[tuple[onnx.NodeProto, Geometry]]]:
    part: list[tuple[onnx.NodeProto, Geometry]] = []
    size = 0
    for node in nodes:
        geometry = shapes[node.name]
        if geometry is None:
            continue
        needed = 8 * geometry.groups * geometry.taps**2 if geometry.taps <= _MOST_TAPS else 0
        if part and size + needed > _LARGEST_BYTES:
            yield part
            part, size = [], 0
        part.append((node, geometry))
        size += needed
    if part:
        yield part


def _observe(
    model: onnx.ModelProto,
    layers: Sequence[tuple[onnx.NodeProto, Geometry]],
    batches: Iterable[NDArray[np.uint8]],
    threads: int,
) -> dict[str, Moments]:
    names = sorted({node.input[0] for node, _ in layers})
    probed = Probed(model, names, threads=threads)
    sums = {node.name: _Sums(geometry) for node, geometry in layers}
    random = np.random.default_rng(0)
    for batch in batches:
        rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in sums}
        for picture in batch:  # whole activations are looked at, so one picture at a time
            values = probed.run(picture[None])
            for node, geometry in layers:
                rows[node.name].append(_rows(values[node.input[0]], geometry, random))
        for name, parts in rows.items():
            sums[name].add(np.concatenate(parts, axis=1))
    return {name: found.mean() for name, found in sums.items()}


def _rows(values: NDArray[np.float32], geometry: Geometry, random: np.random.Generator) -> NDArray[np.float32]:
    """Returns (groups, N, taps), what a layer's output channels multiply at N positions of one picture."""
    if geometry.kernel is None:
        rows = values.reshape(-1, values.shape[-1])
        return rows[_drawn(len(rows), random)][None]
    channels, height, width = values.shape[1:]
    down, across, inside = _taps(geometry, height, width, random)
    patches = values[0].reshape(channels, -1)[:, down * width + across] * inside  # (C, N, kh * kw)
    patches = patches.reshape(geometry.groups, channels // geometry.groups, *inside.shape).transpose(0, 2, 1, 3)
    return np.asarray(patches.reshape(geometry.groups, len(inside), geometry.taps), np.float32)


def _taps(
    geometry: Geometry, height: int, width: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Returns rows, columns and whether they are inside the map, each (N, kh * kw), of N random windows."""
    top, left, bottom, right = geometry.pads
    (high, wide), (dilate_y, dilate_x) = geometry.kernel or (1, 1), geometry.dilations
    rows = (height + top + bottom - dilate_y * (high - 1) - 1) // geometry.strides[0] + 1
    columns = (width + left + right - dilate_x * (wide - 1) - 1) // geometry.strides[1] + 1
    chosen = _drawn(rows * columns, random)
    tap_y, tap_x = (axis.ravel() for axis in np.mgrid[:high, :wide])
    y = (chosen // columns * geometry.strides[0] - top)[:, None] + tap_y * dilate_y
    x = (chosen % columns * geometry.strides[1] - left)[:, None] + tap_x * dilate_x
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return np.where(inside, y, 0), np.where(inside, x, 0), inside.astype(np.float32)


def _drawn(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Returns random indices below a count, each once."""
    return random.choice(count, min(count, _POSITIONS), replace=False)
