"""The answer for a picture, made of a graph's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np

from edgetl.confidence import passes
from edgetl.errors import EngineError
from edgetl.metrics import softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Prediction", "checked", "predictions"]

_NOT_FINITE = "the model answered with numbers that are not finite; export it again, or take fp32"


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: The most likely class; None where it is too unlikely to be any of them.
        confidence: Probability of the most likely class, 0 to 1.
        scores: (C,) float32, the probability of every class.
        labels: The classes' names, in the scores' order.
    """

    label: str | None
    confidence: float
    scores: NDArray[np.float32] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Returns the ``count`` most likely (label, probability), best first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.labels[i], float(self.scores[i])) for i in order]


def predictions(
    logits: NDArray[np.float32], labels: tuple[str, ...], temperature: float = 1.0, min_log_odds: float | None = None
) -> list[Prediction | EngineError]:
    """Returns an answer for each row of logits (N, C), or the error of a row whose numbers are not finite.

    Args:
        logits: (N, C).
        labels: C names.
        temperature: What logits are divided by, so that confidence means what it says.
        min_log_odds: Of the best class against all others, below which a picture shows none of the classes.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of rows that are errors
        probabilities = softmax(logits if temperature == 1 else logits * np.float32(1 / temperature))
        unknown = None if min_log_odds is None else (~passes(logits, temperature, min_log_odds)).tolist()
    answers: list[Prediction | EngineError] = []
    for number, (i, row) in enumerate(zip(probabilities.argmax(axis=1).tolist(), probabilities, strict=True)):
        confidence = float(row[i])
        if confidence != confidence:  # one NaN or infinity makes all of a row NaN
            answers.append(EngineError(_NOT_FINITE))
            continue
        label = None if unknown is not None and unknown[number] else labels[i]
        answers.append(Prediction(label, confidence, row, labels))
    return answers


def checked(answers: Sequence[Prediction | EngineError]) -> list[Prediction]:
    """Returns the answers, all of which were to be had.

    Raises:
        EngineError: One was not.
    """
    for answer in answers:
        if isinstance(answer, EngineError):
            raise answer
    return cast("list[Prediction]", answers)
