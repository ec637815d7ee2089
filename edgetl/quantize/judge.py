"""How far a quantized graph's answers are from FP32's, on calibration pictures reserved for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.metrics import flip_rate, sqnr_db
from edgetl.runtime.ort import OrtSession
from edgetl.spec import ModelSpec

__all__ = ["Judge", "Score"]

_Z = 1.645


@dataclass(frozen=True)
class Score:
    """Of one graph, against FP32.

    Attributes:
        sqnr_db: Signal-to-noise ratio of the logits, dB.
        flip_rate: Share of pictures with another decision.
        pictures: How many were judged.
    """

    sqnr_db: float
    flip_rate: float
    pictures: int

    @property
    def noise(self) -> float:
        """Power of the error over that of the signal; the noises of single layers nearly add up."""
        return float(10 ** (-self.sqnr_db / 10))

    def may_flip(self, limit: float) -> bool:
        """Tells whether the flips are no evidence against a limit: a handful of pictures flips by chance.

        The lower end of Wilson's interval, one-sided 95 % (Wilson 1927).
        """
        n, p, z = self.pictures, self.flip_rate, _Z
        centre, width = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return bool((centre - width) / (1 + z * z / n) <= limit + 1e-9)

    def to_dict(self) -> dict[str, float]:
        """Returns the JSON form."""
        return {"sqnr_db": round(self.sqnr_db, 2), "flip_rate": round(self.flip_rate, 4)}


class Judge:
    """Runs graphs as their Q/DQ nodes stand; what is not quantized is FP32, so that the CPU has no half floats to fake.

    Args:
        model: FP32, the reference.
        spec: Of the model.
        batches: Gives the reserved pictures anew each time, uint8 (N, H, W, C).
        threads: Of ONNX Runtime; 0 lets it decide.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        spec: ModelSpec,
        batches: Callable[[], Iterable[NDArray[np.uint8]]],
        *,
        threads: int = 0,
    ) -> None:
        self._spec = spec
        self._batches = batches
        self._threads = threads
        self._reference = self._answers(model)

    def score(self, model: onnx.ModelProto) -> Score:
        """Returns how far a graph is from the reference."""
        answers = self._answers(model)
        flips = flip_rate(answers, self._reference)
        return Score(sqnr_db(answers, self._reference), flips, len(answers))

    def _answers(self, model: onnx.ModelProto) -> NDArray[np.float32]:
        with OrtSession(model.SerializeToString(), self._spec, threads=self._threads, fake_quant=True) as session:
            return np.concatenate([session.infer(batch)["logits"] for batch in self._batches()])
