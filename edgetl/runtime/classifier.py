"""What a device app holds: pictures in, labels out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EngineError
from edgetl.metrics import softmax
from edgetl.preprocess import Picture, preprocess
from edgetl.runtime.session import Session
from edgetl.spec import ModelSpec

__all__ = ["Classifier", "Prediction", "predictions"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: The most likely class.
        confidence: Its probability, 0 to 1.
        scores: (C,) float32, the probability of every class.
        labels: The classes' names, in the scores' order.
    """

    label: str
    confidence: float
    scores: NDArray[np.float32] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Returns the ``count`` most likely (label, probability), best first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.labels[i], float(self.scores[i])) for i in order]


def predictions(logits: NDArray[np.float32], labels: tuple[str, ...]) -> list[Prediction]:
    """Returns an answer for each row of logits (N, C)."""
    probabilities = softmax(logits)
    best = probabilities.argmax(axis=1)
    return [Prediction(labels[i], float(row[i]), row, labels) for i, row in zip(best, probabilities, strict=True)]


class Classifier:
    """A loaded model. Any number of threads may call it.

    Attributes:
        spec: What the model expects and answers.
        engine: What runs the graph.
        variant: Name of the graph that was chosen.
        reason: Why that one.
    """

    def __init__(self, session: Session, *, engine: str, variant: str, reason: str) -> None:
        self._session: Session | None = session
        self.spec: ModelSpec = session.spec
        self.engine = engine
        self.variant = variant
        self.reason = reason

    def __call__(self, picture: Picture) -> Prediction:
        """Classifies one picture: a path, encoded bytes, a Pillow image, or an RGB uint8 array (H, W, 3).

        Raises:
            PictureError: The picture cannot be read.
            EngineError: The classifier is closed.
        """
        return predictions(self._logits(preprocess(picture, self.spec.preprocess)[None]), self.spec.labels)[0]

    def batch(self, pictures: Iterable[Picture]) -> list[Prediction]:
        """Classifies several pictures at once; an empty list gives an empty list.

        Raises:
            PictureError: One of them cannot be read.
            EngineError: The classifier is closed.
        """
        inputs = [preprocess(picture, self.spec.preprocess) for picture in pictures]
        size = self.session.max_batch
        chunks = (inputs[i : i + size] for i in range(0, len(inputs), size))
        return [answer for chunk in chunks for answer in predictions(self._logits(np.stack(chunk)), self.spec.labels)]

    def _logits(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.session.infer(batch)["logits"]

    @property
    def session(self) -> Session:
        """The graph alone, for those who preprocess by themselves or want embeddings.

        Raises:
            EngineError: The classifier is closed.
        """
        if self._session is None:
            raise EngineError("this classifier is closed; call edgetl.load again")
        return self._session

    def close(self) -> None:
        """Releases the engine; closing twice does nothing."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session is None else self.variant
        return f"<edgetl.Classifier {self.spec.backbone}, {len(self.spec.labels)} classes, {self.engine}: {state}>"
