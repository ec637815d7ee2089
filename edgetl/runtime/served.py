"""One loaded model: its graph, what its answers mean, and who is using it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgetl.bundle import Bundle, Decision
from edgetl.errors import EngineError, InputError
from edgetl.preprocess import Picture
from edgetl.runtime.prediction import Prediction, predictions
from edgetl.runtime.session import Session
from edgetl.spec import is_label

if TYPE_CHECKING:  # an app that learns nothing need not import it
    from numpy.typing import NDArray

    from edgetl.runtime.learning import Known, Learned

__all__ = ["Held", "Served", "default_overlay", "several"]


def default_overlay(root: Path) -> Path:
    """Returns where what was learned on top of a bundle is kept: beside it."""
    return root.with_name(f"{root.name.removesuffix('.edgetl')}.overlay.json")


def several(pictures: Iterable[Picture]) -> Iterable[Picture]:
    """Returns several pictures as they are.

    Raises:
        InputError: It is one picture, whose rows or letters would be taken for pictures.
    """
    one = isinstance(pictures, str | bytes | bytearray | os.PathLike | Image.Image)
    if one or (isinstance(pictures, np.ndarray) and pictures.ndim < 4) or not isinstance(pictures, Iterable):
        raise InputError(f"{type(pictures).__name__} is one picture, or none: give a list of pictures")
    return pictures


@dataclass(eq=False, repr=False)
class Held:
    """A graph, how many calls use it, and its bundle's exemplars once they were needed; kept by the classifier."""

    session: Session
    users: int = 0
    exemplars: tuple[NDArray[np.float32], tuple[int, ...]] | None = None
    known: Known | None = None


@dataclass(eq=False, repr=False)
class Served:
    """A model that answers.

    Attributes:
        held: The graph.
        bundle: Where it is from.
        engine: What runs it.
        variant: Name of the graph.
        reason: Why that one.
        decision: What its logits are worth.
        learned: Classes added on this device, or None.
    """

    held: Held
    bundle: Bundle
    engine: str
    variant: str
    reason: str
    decision: Decision = field(default_factory=Decision)
    learned: Learned | None = None
    labels: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        learned = () if self.learned is None else self.learned.labels
        self.labels = self.session.spec.labels + learned

    @property
    def session(self) -> Session:
        """The graph."""
        return self.held.session

    def answer(self, batch: NDArray[np.uint8]) -> list[Prediction | EngineError]:
        """Returns an answer or an error for each picture of a batch uint8 (N, H, W, C), N up to ``max_batch``."""
        outputs = self.session.infer(batch)
        logits = outputs["logits"]
        if self.learned is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # a row that is not finite is told as such
                logits = self.learned.logits(self._embedding(outputs), logits, self.decision.temperature)
        return predictions(logits, self.labels, self.decision.temperature, self.decision.min_log_odds)

    def with_learned(self, label: str, pictures: Iterable[Picture]) -> Served:
        """Returns the model with a further class, or with more pictures of one that was learned."""
        if not isinstance(label, str) or not label.strip():
            raise InputError("a class needs a name")
        if not is_label(label):
            raise InputError(f"{label!a:.80} is no name of a class: it is one line of text")
        if label in self.session.spec.labels:
            raise InputError(f'"{label}" is one of the classes that the model was trained on; give another name')
        points = np.array([self._point(picture) for picture in several(pictures)], np.float32)
        if not len(points):
            raise InputError(f'"{label}": there are no pictures to learn from')
        support = self._support()
        support[label] = np.vstack([support[label], points]) if label in support else points
        return self.taught(support)

    def without_learned(self, label: str) -> Served:
        """Returns the model without a class that was learned."""
        support = self._support()
        if label not in support:
            raise InputError(f'"{label}" was not learned here; learned are {", ".join(support) or "none"}')
        del support[label]
        return self.taught(support)

    def taught(self, support: Mapping[str, NDArray[np.float32]]) -> Served:
        """Returns the model with these further classes and no others.

        Args:
            support: By name, embeddings (n, D).
        """
        if not support:
            return replace(self, learned=None)
        from edgetl.runtime.learning import Known, fit_learned

        if self.held.known is None:
            self.held.known = Known.fitted(*self.exemplars())
        return replace(self, learned=fit_learned(self.held.known, support))

    def exemplars(self) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Returns the bundle's exemplars, read once: another bundle may have been put in its place since.

        Raises:
            BundleError: There are none, or they are damaged.
        """
        if self.held.exemplars is None:
            self.held.exemplars = self.bundle.exemplars()
        return self.held.exemplars

    def _point(self, picture: Picture) -> NDArray[np.float32]:
        """Returns the mean embedding (D,) of a picture's views: of few pictures every hint counts."""
        from edgetl.runtime.learning import views

        inputs = np.stack(views(picture, self.session.spec.preprocess))
        size = self.session.max_batch
        chunks = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        found = np.concatenate([self._embedding(self.session.infer(chunk)) for chunk in chunks])
        if not np.isfinite(found).all():
            raise EngineError(f"{self.bundle.root}: {self.variant} sees something in a picture that is not finite")
        lengths = np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return np.asarray((found / lengths).mean(axis=0), np.float32)

    def _embedding(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Returns the embeddings (N, D) among a graph's outputs."""
        width = self.exemplars()[0].shape[1]
        found = outputs.get("embedding")
        if found is None or found.shape[1:] != (width,):
            has = 'has no output "embedding"' if found is None else f"answers with embeddings {found.shape}"
            raise EngineError(
                f"{self.bundle.root}: {self.variant} {has}, learning needs (N, {width}) as the exemplars have it; "
                "export the bundle again"
            )
        return found

    def _support(self) -> dict[str, NDArray[np.float32]]:
        return {} if self.learned is None else dict(self.learned.support)

    def warm_up(self, pictures: int = 1) -> None:
        """Runs the graph once, so that the first picture does not wait and a graph that cannot run is never served.

        Args:
            pictures: How many at once; the engine then has the memory for so many, from one thread.

        Raises:
            EngineError: It cannot, or answers with numbers that are not finite.
        """
        blank = np.zeros((pictures, *self.session.spec.preprocess.input_shape), np.uint8)
        if not np.isfinite(self.session.infer(blank)["logits"]).all():
            raise EngineError(f"{self.bundle.root}: {self.variant} answers with numbers that are not finite")
