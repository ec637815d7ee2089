"""What a device app holds: pictures in, labels out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl import host
from edgetl.bundle import Bundle, Variant, open_bundle
from edgetl.errors import EngineError
from edgetl.metrics import softmax
from edgetl.preprocess import Picture, preprocess
from edgetl.runtime.ort import OrtSession
from edgetl.runtime.session import Session
from edgetl.spec import ModelSpec

__all__ = ["ENGINES", "Classifier", "Prediction", "choose_variant", "load", "session_for"]

ENGINES = ("auto", "cpu")


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
        return self._answers(preprocess(picture, self.spec.preprocess)[None])[0]

    def batch(self, pictures: Iterable[Picture]) -> list[Prediction]:
        """Classifies several pictures at once; an empty list gives an empty list.

        Raises:
            PictureError: One of them cannot be read.
            EngineError: The classifier is closed.
        """
        inputs = [preprocess(picture, self.spec.preprocess) for picture in pictures]
        size = self._open().max_batch
        chunks = (inputs[i : i + size] for i in range(0, len(inputs), size))
        return [answer for chunk in chunks for answer in self._answers(np.stack(chunk))]

    def _answers(self, batch: NDArray[np.uint8]) -> list[Prediction]:
        probabilities = softmax(self._open().infer(batch)["logits"])
        best = probabilities.argmax(axis=1)
        labels = self.spec.labels
        return [Prediction(labels[i], float(row[i]), row, labels) for i, row in zip(best, probabilities, strict=True)]

    def _open(self) -> Session:
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


def load(
    bundle: str | Path | Bundle, *, engine: str = "auto", variant: str | None = None, threads: int = 0
) -> Classifier:
    """Loads a bundle for prediction.

    Args:
        bundle: Path of a ``NAME.edgetl`` folder.
        engine: ``auto`` or ``cpu`` (ONNX Runtime).
        variant: Name of a graph; by default the one this machine serves best.
        threads: For one prediction; 0 lets the engine decide.

    Returns:
        A classifier; use it in a ``with`` statement, or close it.

    Raises:
        BundleError: The bundle is damaged.
        EngineError: The engine is unknown, or does not run this variant.
        MissingExtraError: The engine is not installed.
    """
    if engine not in ENGINES:
        raise EngineError(f'engine "{engine}" is unknown: it must be one of {", ".join(ENGINES)}')
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen, reason = choose_variant(opened, variant)
    session = OrtSession(opened.read(chosen), opened.spec, threads=threads)
    return Classifier(session, engine="cpu", variant=chosen.name, reason=reason)


def choose_variant(bundle: Bundle, name: str | None = None) -> tuple[Variant, str]:
    """Returns the graph for this machine's CPU, and why.

    Raises:
        EngineError: The variant asked for is made for another engine.
    """
    native = f"int8-{host.arch()}"
    if name is not None:
        variant = bundle.variant(name)
        if variant.target not in ("any", host.arch()):
            raise EngineError(
                f'variant "{name}" is made for {variant.target}, this machine\'s CPU takes fp32 or {native}'
            )
        return variant, "asked for by name"
    names = {v.name: v for v in bundle.variants}
    if native not in names:
        return bundle.variant("fp32"), f"the bundle has no {native}"
    if names[native].recommended is False:
        return bundle.variant("fp32"), f"{native} is not recommended: {names[native].reason}"
    if native == "int8-x86" and not host.has_int8_dot():
        return bundle.variant("fp32"), f"this processor has no VNNI: {native} could saturate and would be slow"
    return names[native], names[native].reason or "INT8 for this processor"


def session_for(bundle: Bundle, variant: Variant, **options: Any) -> OrtSession:
    """Opens any variant on the CPU, for accuracy: forms made for other machines are computed as they stand."""
    foreign = variant.precision == "int8" and variant.target != host.arch()
    return OrtSession(bundle.read(variant), bundle.spec, fake_quant=foreign, **options)
