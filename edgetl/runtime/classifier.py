"""What a device app holds: pictures in, labels out, while models are exchanged below it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.bundle import Bundle
from edgetl.errors import EngineError, PictureError
from edgetl.preprocess import Picture, preprocess
from edgetl.runtime.current import Current
from edgetl.runtime.log import warn
from edgetl.runtime.meters import Meters
from edgetl.runtime.prediction import Prediction, checked
from edgetl.runtime.served import Served, default_overlay, several
from edgetl.runtime.session import Session
from edgetl.spec import ModelSpec

if TYPE_CHECKING:  # an app that asks for one picture at a time needs none of it
    from concurrent.futures import Future

    from edgetl.runtime.batcher import Batcher
    from edgetl.runtime.batching import Batching
    from edgetl.runtime.watcher import Watcher

__all__ = ["Classifier"]

# Pictures of `Classifier.batch` in one call of the engine: a processor gains nothing from more.
_CHUNK, _CHUNK_OF_GPU = 32, 64


def _going_on(before: Served, after: Served) -> Served:
    """Returns a model with what the one before had learned, if it is the same."""
    if before.learned is None:
        return after
    if after.bundle.digest == before.bundle.digest:
        return after.taught(before.learned.support)
    # Embeddings of another network mean something else.
    warn("%s: does not know what was learned: %s", after.bundle.root, ", ".join(before.learned.labels))
    return after


class Classifier:
    """A loaded model. Any number of threads may call it.

    Args:
        served: The model to begin with.
        open_bundle: Opens another one the same way, verified and warm; for `reload`.
        batching: How `submit` puts requests together.
        watch: Follow what is moved to the bundle's place.
        device_key: Authenticates what `save` writes.
    """

    def __init__(
        self,
        served: Served,
        *,
        open_bundle: Callable[[str | Path | Bundle], Served] | None = None,
        batching: Batching | None = None,
        watch: bool = False,
        device_key: bytes | None = None,
    ) -> None:
        self._current = Current(served)
        self._open = open_bundle
        self._batching = batching
        self._device_key = device_key
        self._batcher: Batcher | None = None
        self._starting = threading.RLock()  # the batcher; held while _closing changes
        self._ending = threading.RLock()  # a signal's handler may close what its thread is closing
        self._closing = False  # no more requests are taken
        self.meters = Meters()
        self._watcher: Watcher | None = None
        if watch:
            from edgetl.runtime.watcher import Watcher

            self._watcher = Watcher(served.bundle.root, served.bundle.digest, lambda: self.digest, self.reload)

    def __call__(self, picture: Picture) -> Prediction:
        """Classifies one picture: a path, encoded bytes, a Pillow image, or an RGB uint8 array (H, W, 3).

        Raises:
            PictureError: The picture cannot be read.
            EngineError: The classifier is closed.
        """
        begun = time.perf_counter()
        with self._counted(), self._current.in_use() as served:
            [answer] = checked(served.answer(preprocess(picture, served.session.spec.preprocess)[None]))
        self.meters.observe("classify_seconds", time.perf_counter() - begun, 1, int(answer.label is None))
        return answer

    def batch(self, pictures: Iterable[Picture]) -> list[Prediction]:
        """Classifies several pictures, some at a time; an empty list gives an empty list.

        Args:
            pictures: Read one after another, so that there may be more of them than fit into memory.

        Raises:
            PictureError: One of them cannot be read.
            InputError: It is one picture instead of a list.
            EngineError: The classifier is closed.
        """
        begun = time.perf_counter()
        answers: list[Prediction] = []
        with self._counted(), self._current.in_use() as served:
            left, spec = iter(several(pictures)), served.session.spec.preprocess
            size = min(served.session.max_batch, _CHUNK if served.engine == "cpu" else _CHUNK_OF_GPU)
            while inputs := [preprocess(picture, spec) for picture in islice(left, size)]:
                answers += checked(served.answer(np.stack(inputs)))
        unknown = sum(answer.label is None for answer in answers)
        self.meters.observe("classify_seconds", time.perf_counter() - begun, len(answers), unknown)
        return answers

    def submit(self, picture: Picture, *, deadline_ms: float | None = None) -> Future[Prediction]:
        """Asks for an answer and returns at once; requests of many threads are answered in batches.

        Args:
            picture: As for a call. It is read later: do not change an array meanwhile.
            deadline_ms: When an answer is of no use any more. A request that waited until one could not be expected by
                then, as batches last took, fails with `DeadlineExceeded`; the engine is not troubled with it.

        Returns:
            A future; cancelling it takes a request that was not begun out of the queue.

        Raises:
            Overloaded: So many requests wait that this one was not taken.
            EngineError: The classifier is closed.
        """
        return self._submitter().submit(picture, deadline_ms)

    async def answer(self, picture: Picture, *, deadline_ms: float | None = None) -> Prediction:
        """Is `submit` for asyncio: ``prediction = await classify.answer(picture)``.

        Raises:
            PictureError: The picture cannot be read.
            EngineError: As `submit`.
        """
        import asyncio

        return await asyncio.wrap_future(self.submit(picture, deadline_ms=deadline_ms))

    def reload(self, bundle: str | Path | Bundle | None = None) -> None:
        """Exchanges the model: the new one is verified, opened as `load` was told, and run once before it serves.

        Calls under way end with the model they began with; no answer is lost, and none is of two models. Classes that
        were learned stay if it is the same bundle, and are left behind if not: its embeddings are others.

        Args:
            bundle: By default the one that is served, read anew.

        Raises:
            BundleError: It is damaged, or not signed as asked; the old model goes on.
            EngineError: The engine refuses it; the old model goes on.
        """
        with self._current.changing() as before:
            if self._open is None:
                raise EngineError("this classifier was not made by edgetl.load and cannot open a bundle")
            try:
                after = self._open(bundle if bundle is not None else before.bundle.root)
                try:
                    if self._batcher is not None:
                        after.warm_up(min(self._batcher.max_batch, after.session.max_batch))
                    after = _going_on(before, after)
                except BaseException:
                    after.session.close()
                    raise
            except Exception:
                self.meters.count("reloads_failed")
                raise
            self._current.exchange(after)
            self.meters.count("reloads")

    def learn(self, label: str, pictures: Iterable[Picture]) -> None:
        """Adds a class from a handful of pictures, or more pictures to a class that was learned before.

        Beside running the graph on the pictures, the first class takes tenths of a second, on a busy machine seconds,
        and a further one milliseconds. Decisions between the old classes stay as they were; an old class loses hardly
        any picture to the new one. `save` keeps it.

        Args:
            label: Name of the class; not one that the model was trained on.
            pictures: Some five of them, as for a call, seen as the device will see them.

        Raises:
            PictureError: One of them cannot be read; nothing is learned then.
            InputError: There are none, or it is one picture instead of a list, or the label is empty, of several lines,
                or the model's own.
            BundleError: The bundle has no exemplars, or they are damaged.
            EngineError: The classifier is closed, or its graph gives no embeddings as learning needs them.
        """
        with self._current.changing() as served:
            self._current.exchange(served.with_learned(label, pictures))

    def forget(self, label: str) -> None:
        """Takes a class away that was learned.

        Raises:
            InputError: It was not.
        """
        with self._current.changing() as served:
            self._current.exchange(served.without_learned(label))

    @property
    def learned(self) -> dict[str, int]:
        """The classes that were learned, each with its number of pictures."""
        known = self._served.learned
        return {} if known is None else {label: len(points) for label, points in known.support.items()}

    def save(self, path: str | Path | None = None) -> Path:
        """Writes what was learned, for ``edgetl.load(..., overlay=...)``.

        Args:
            path: By default ``NAME.overlay.json`` beside ``NAME.edgetl``. What lies there of another bundle (this one
                has taken its place) is kept as ``NAME.overlay.DIGEST.json``, and found again if that one comes back.

        Returns:
            The path.

        Raises:
            InputError: It cannot be written.
        """
        from edgetl.runtime.overlay import keep_aside, write_overlay

        served = self._current.get()
        target = default_overlay(served.bundle.root) if path is None else Path(path)
        if path is None:
            keep_aside(target, served.bundle.digest)
        support = {} if served.learned is None else served.learned.support
        write_overlay(target, served.bundle.digest, support, self._device_key)
        return target

    def close(self, *, drain: bool = True) -> None:
        """Releases the engine, after what is under way; closing twice does nothing, at the same time waits for the end.

        Args:
            drain: Whether requests that wait are answered first; else they are cancelled.
        """
        if self._current.is_forked:  # the engine's threads are in the other process
            return
        batcher = self._batcher
        # Who closes waits for the batcher's threads, so that one of these may not wait for it.
        waits = batcher is None or not batcher.owns(threading.current_thread())
        if not self._ending.acquire(blocking=waits):
            return
        try:
            self._end(drain)
        finally:
            self._ending.release()

    def _end(self, drain: bool) -> None:
        if self._watcher is not None:
            self._watcher.close()
        with self._starting:
            self._closing = True
            batcher = self._batcher
        if batcher is not None:
            batcher.close(drain=drain)
        self._current.end()

    @property
    def _served(self) -> Served:
        return self._current.served

    @property
    def spec(self) -> ModelSpec:
        """What the model expects and answers."""
        return self._served.session.spec

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, those that were learned last."""
        return self._served.labels

    @property
    def engine(self) -> str:
        """What runs the graph."""
        return self._served.engine

    @property
    def variant(self) -> str:
        """Name of the graph that was chosen."""
        return self._served.variant

    @property
    def reason(self) -> str:
        """Why that one."""
        return self._served.reason

    @property
    def digest(self) -> str:
        """Of the bundle that is served."""
        return self._served.bundle.digest

    @property
    def session(self) -> Session:
        """The graph alone, for those who preprocess by themselves or want embeddings.

        Raises:
            EngineError: The classifier is closed.
        """
        return self._current.get().session

    def metrics(self) -> dict[str, Any]:
        """Returns counters and histograms since it was loaded; `prometheus` says the same as text."""
        self._current.check_fork()
        return self.meters.to_dict()

    def prometheus(self, labels: Mapping[str, str] | None = None) -> str:
        """Returns counters and histograms in the text format of Prometheus, and which model is served.

        Args:
            labels: Of every series, to tell several classifiers apart.
        """
        self._current.check_fork()
        served = self._served
        model = {"model": served.bundle.root.name, "variant": served.variant, "engine": served.engine}
        return self.meters.prometheus({**model, "digest": served.bundle.digest}, labels)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except PictureError:
            self.meters.count("picture_errors")
            raise
        except EngineError:
            self._current.check_fork()
            self.meters.count("engine_errors")
            raise

    def _submitter(self) -> Batcher:
        self._current.get()
        batcher = self._batcher
        if batcher is None:
            from edgetl.runtime.batcher import Batcher
            from edgetl.runtime.batching import Batching

            with self._starting:
                self._current.get()
                if self._closing:
                    raise EngineError("this classifier is closed; call edgetl.load again")
                if self._batcher is None:
                    self._batcher = Batcher(self._answers, self._batching or Batching(), self.meters)
                batcher = self._batcher
        return batcher

    def _answers(self, pictures: Sequence[Picture]) -> list[Prediction | Exception]:
        """Answers a batch; a picture that cannot be read fails alone."""
        found: list[Prediction | Exception] = []
        with self._current.in_use() as served:
            spec, size = served.session.spec.preprocess, served.session.max_batch
            inputs, places = [], []
            for picture in pictures:
                try:
                    inputs.append(preprocess(picture, spec))
                except PictureError as error:
                    self.meters.count("picture_errors")
                    found.append(error)
                    continue
                places.append(len(found))
                found.append(EngineError("not answered"))
            for start in range(0, len(inputs), size):
                try:
                    answers: Sequence[Prediction | Exception] = served.answer(np.stack(inputs[start : start + size]))
                except EngineError as error:
                    self.meters.count("engine_errors")
                    answers = [error] * len(inputs[start : start + size])
                else:
                    self.meters.count("engine_errors", sum(isinstance(answer, EngineError) for answer in answers))
                for place, answer in zip(places[start : start + size], answers, strict=True):
                    found[place] = answer
        return found

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        served = self._served
        state = "closed" if self._current.closed else served.variant
        classes = f"{len(served.labels)} classes"
        return f"<edgetl.Classifier {served.session.spec.backbone}, {classes}, {served.engine}: {state}>"
