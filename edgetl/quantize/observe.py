"""What activations look like: exact extremes and a histogram of magnitudes per tensor, in bounded memory.

Samples and extremes are taken by pooling nodes inside the graph, so whole activations never reach Python: a
MaxPool of 1 x 1 with a stride is a sample on a grid (as a Slice is, but in ONNX Runtime's blocked layout), a
GlobalMaxPool of the tensor (and of its negative) gives the extremes. What that costs stands in
benchmarks/README.md; copying whole tensors costs 20 times the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
_Values = dict[str, NDArray[np.float32]]
_LARGEST = float(np.finfo(np.float32).max)  # what pooling makes of a map that holds nothing but NaN
_SAMPLED_PICTURES = 128  # the first ones; extremes are taken from all
_SAMPLED = 8192  # values of one map: a grid of points, over all its channels
_LARGEST_SIDE = 14
_SMALL_SIDE = 8
_TOGETHER = 2  # pictures in one run: probed tensors live long, and more at once is no faster


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
        self, sample: NDArray[np.float32] | None, low: float, high: float, peaks: NDArray[np.float32] | None = None
    ) -> None:
        """Adds the extremes of a batch, and a sample of it if one was taken."""
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
        if sample is None:
            return
        bins_per_unit = BINS / self.limit if self.limit > 0.0 else 0.0
        if bins_per_unit > _LARGEST:  # the faintest of tensors: float32 would overflow
            sample = sample.astype(np.float64)
        index = np.minimum(np.abs(sample.ravel()) * sample.dtype.type(bins_per_unit), BINS - 1).astype(np.intp)
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
    runner = _Runner(model, probes, answers, threads)
    found = {name: Observation() for name in wanted}
    done = 0
    for count, values in _one_ahead(runner.run, batches):
        for probe in probes:
            sample, low, high, peaks = probe.read(values)
            checked = (low, high, 0.0 if sample is None else float(sample.sum(dtype=np.float64)))
            if not all(abs(value) < _LARGEST for value in checked):
                raise _damaged(probe.name)
            found[probe.name].add(sample, low, high, peaks)
        for name in answers:  # a maximum ignores a NaN between the points of the grid; what follows from it does not
            if not np.isfinite(values[name]).all():
                raise _damaged(name)
        done += count
        if on_progress is not None:
            on_progress(done)
    if not done:
        raise QuantizationError("no calibration pictures: INT8 needs some; give --data")
    return found


class _Runner:
    """Runs the probes: with samples for the first pictures, for their extremes alone from then on."""

    def __init__(self, model: onnx.ModelProto, probes: Sequence[_Probe], answers: Sequence[str], threads: int) -> None:
        self._model = model
        self._probes = probes
        self._answers = answers
        self._threads = threads
        self._left = _SAMPLED_PICTURES
        self._session: Probed | None = None

    def run(self, batch: NDArray[np.uint8]) -> _Values:
        """Returns what the probes and the graph's own outputs hold for a batch."""
        if self._session is None:
            self._session = self._opened()
        session = self._session
        parts = [session.run(batch[i : i + _TOGETHER]) for i in range(0, len(batch), _TOGETHER)]
        self._left -= len(batch)
        if self._left <= 0 < self._left + len(batch):
            self._session = None  # its memory is free before the next one takes any
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _opened(self) -> Probed:
        skipped = set() if self._left > 0 else {probe.sample for probe in self._probes}
        nodes = [node for probe in self._probes for node in probe.nodes if node.output[0] not in skipped]
        outputs = [*self._answers, *(name for probe in self._probes for name in probe.outputs)]
        wanted = [name for name in dict.fromkeys(outputs) if name not in skipped]
        return Probed(self._model, wanted, nodes, threads=self._threads)


def _one_ahead(
    run: Callable[[NDArray[np.uint8]], _Values], batches: Iterable[NDArray[np.uint8]]
) -> Iterator[tuple[int, _Values]]:
    """Yields (pictures, values) of each batch while the next one is decoded and run."""
    waiting: tuple[int, Future[_Values]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in batches:
            following = (len(batch), pool.submit(run, batch))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _damaged(name: str) -> QuantizationError:
    return QuantizationError(
        f'activation "{name}" holds NaN or infinity on calibration pictures; the network is damaged: '
        "train it again at a lower rate"
    )


class _Probe:
    """The nodes that look at one tensor.

    Attributes:
        name: The tensor.
        nodes: That look at it.
        outputs: What they make.
        sample: The output that not every batch has, None where the tensor is taken whole.
    """

    def __init__(self, graph: Graph, name: str, number: int) -> None:
        self.name = name
        self.sample: str | None = None
        self.nodes: list[onnx.NodeProto] = []
        shape = graph.shape(name)
        self._pooled = shape is not None and len(shape) == 4
        self._signed = not _is_never_negative(graph, name)
        if self._pooled and shape is not None:
            self.outputs = self._pool(number, shape)
        else:
            self.outputs = [name]

    def _pool(self, number: int, shape: tuple[int, ...]) -> list[str]:
        base = f"edgetl_probe_{number}"
        points = min(_LARGEST_SIDE, max(2, round((_SAMPLED / max(1, shape[1])) ** 0.5)))
        # Odd, for what was upsampled repeats after two or four; small maps whole, for their borders are not alike.
        strides = [1 if side <= _SMALL_SIDE else side // points | 1 for side in shape[2:]]
        self.sample = f"{base}_sample"
        self._node("MaxPool", self.name, self.sample, kernel_shape=[1, 1], strides=strides)
        self._node("GlobalMaxPool", self.name, f"{base}_high")
        outputs = [self.sample, f"{base}_high"]
        if self._signed:
            self._node("Neg", self.name, f"{base}_negative")
            self._node("GlobalMaxPool", f"{base}_negative", f"{base}_low")
            outputs.append(f"{base}_low")
        return outputs

    def _node(self, op: str, source: str, result: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, [source], [result], name=result, **attributes))

    def read(self, values: _Values) -> tuple[NDArray[np.float32] | None, float, float, NDArray[np.float32] | None]:
        """Returns (sample, smallest value, largest value, largest magnitudes of channels) of a batch."""
        if not self._pooled:
            whole = values[self.name]
            return whole, float(whole.min()), float(whole.max()), None
        sample, extremes = values.get(self.outputs[0]), [values[name] for name in self.outputs[1:]]
        low = -float(extremes[1].max()) if self._signed else 0.0
        magnitudes = np.maximum(*extremes) if self._signed else extremes[0]
        return sample, low, float(extremes[0].max()), magnitudes.max(axis=(0, 2, 3))


def _is_never_negative(graph: Graph, name: str) -> bool:
    """Tells whether a tensor's lower end is known: it is 0, or so near that it may as well be."""
    producer = graph.producer.get(name)
    if producer is None or producer.op_type != "Clip":
        return producer is not None and producer.op_type in ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
    low = producer.input[1] if len(producer.input) > 1 else ""
    return graph.is_constant(low) and float(graph.constant(low)) >= 0.0
