"""How far a quantized graph's answers are from FP32's, on calibration pictures reserved for that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.metrics import flip_rate, sqnr_db
from edgetl.runtime.ort import OrtSession
from edgetl.spec import ModelSpec

__all__ = ["Judge", "Score", "nearness"]

_Z = 1.645
# Below this, less noise often means smaller logits, not nearer ones: a graph that answers 0 has 0 dB.
_MEANINGFUL_DB = 10.0


def nearness(sqnr_db: float, flip_rate: float) -> tuple[float, float, float]:
    """Returns a sort key, greater is nearer to FP32: by noise, or by decisions where noise drowns the logits."""
    return (1.0, sqnr_db, -flip_rate) if sqnr_db >= _MEANINGFUL_DB else (0.0, -flip_rate, sqnr_db)


@dataclass(frozen=True)
class Score:
    """Of one graph, against FP32.

    Attributes:
        sqnr_db: Signal-to-noise ratio of the logits, dB.
        flip_rate: Share of pictures with another decision.
        lost: Pictures whose decision was right and no longer is; all that flipped, where labels are not known.
        won: Pictures whose decision became right; 0 where labels are not known.
        pictures: How many were judged.
    """

    sqnr_db: float
    flip_rate: float
    lost: int
    won: int
    pictures: int

    @property
    def noise(self) -> float:
        """Power of the error over that of the signal; the noises of single layers nearly add up."""
        return float(10 ** (-self.sqnr_db / 10))

    @property
    def nearness(self) -> tuple[float, float, float]:
        """Sort key, greater is nearer to FP32."""
        return nearness(self.sqnr_db, self.flip_rate)

    def beats(self, other: Score, margin: float) -> bool:
        """Tells whether this is nearer, by a margin in dB."""
        return nearness(self.sqnr_db - margin, self.flip_rate) > other.nearness

    def may_drop(self, limit: float) -> bool:
        """Tells whether the lost pictures are no evidence of a drop above a limit: a handful is lost by chance.

        One-sided 95 %, for the difference of paired shares.
        """
        net, changed, n = self.lost - self.won, self.lost + self.won, self.pictures
        width = _Z * float(np.sqrt(max(0.0, changed - net * net / n)))
        return net - width <= limit * n + 1e-9

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "sqnr_db": round(self.sqnr_db, 2),
            "flip_rate": round(self.flip_rate, 4),
            "lost": self.lost,
            "won": self.won,
            "pictures": self.pictures,
        }


class Judge:
    """Runs graphs as their Q/DQ nodes stand; what is not quantized is FP32, so that the CPU has no half floats to fake.

    Args:
        model: FP32, the reference.
        spec: Of the model.
        batches: Gives the reserved pictures anew each time, uint8 (N, H, W, C).
        labels: (N,) true classes of the reserved pictures, or None.
        threads: Of ONNX Runtime; 0 lets it decide.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        spec: ModelSpec,
        batches: Callable[[], Iterable[NDArray[np.uint8]]],
        labels: NDArray[np.int64] | None = None,
        *,
        threads: int = 0,
    ) -> None:
        self._spec = spec
        self._batches = batches
        self._labels = labels
        self._threads = threads
        self._reference = self._answers(model)

    def score(self, model: onnx.ModelProto, batches: int | None = None) -> Score:
        """Returns how far a graph is from the reference.

        Args:
            model: To judge.
            batches: How many to look at, None for all; few are enough to order candidates by the noise of their logits.
        """
        answers = self._answers(model, batches)
        reference = self._reference[: len(answers)]
        now, before = answers.argmax(axis=1), reference.argmax(axis=1)
        lost, won = now != before, np.zeros(len(now), bool)
        if self._labels is not None:
            labels = self._labels[: len(answers)]
            right, was_right = now == labels, before == labels
            lost, won = was_right & ~right, right & ~was_right
        flips = flip_rate(answers, reference)
        return Score(sqnr_db(answers, reference), flips, int(lost.sum()), int(won.sum()), len(now))

    def _answers(self, model: onnx.ModelProto, batches: int | None = None) -> NDArray[np.float32]:
        with OrtSession(model.SerializeToString(), self._spec, threads=self._threads, fake_quant=True) as session:
            return np.concatenate([session.infer(batch)["logits"] for batch in islice(self._batches(), batches)])
