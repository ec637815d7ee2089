"""A camera, of which the newest frame is what matters."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import InputError, require
from edgetl.runtime.meters import Meters

__all__ = ["Frames"]

_PATIENCE_S = 5.0  # with a camera that is to be closed


class Frames:
    """Reads a camera as fast as it delivers, and gives the newest frame; those that nobody had time for are dropped.

    ::

        with edgetl.Frames(0) as frames:
            for frame in frames:
                print(classify(frame).label, frames.dropped)

    Args:
        source: What OpenCV opens: the number of a camera, a file, a URL, a GStreamer pipeline; or any iterable of RGB
            uint8 arrays (H, W, 3).
        meters: Of the classifier that looks at them (``classify.meters``): counts the dropped ones too.

    Attributes:
        dropped: Frames for which a newer one came before they were asked for.

    Raises:
        InputError: OpenCV cannot open it.
        MissingExtraError: OpenCV is not installed, and the source is no iterable.
    """

    def __init__(self, source: int | str | Path | Iterable[NDArray[np.uint8]], *, meters: Meters | None = None) -> None:
        self.dropped = 0
        self._meters = meters
        self._camera: Any = None
        if isinstance(source, int | str | Path):
            self._camera, frames = _opened(source)
        else:
            frames = iter(source)
        self._changed = threading.Condition()
        self._newest: NDArray[np.uint8] | None = None
        self._error: Exception | None = None
        self._over = False
        self._thread = threading.Thread(target=self._read, args=(frames,), name="edgetl-frames", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yields frames (H, W, 3), uint8, RGB, each once, until the source ends or this is closed.

        Raises:
            Exception: What the source raised.
        """
        while True:
            with self._changed:
                while self._newest is None and not self._over:
                    self._changed.wait()
                frame, self._newest = self._newest, None
                error, self._error = (None, self._error) if frame is not None else (self._error, None)
            if error is not None:
                raise error
            if frame is None:
                return
            yield frame if self._camera is None else np.ascontiguousarray(frame[..., ::-1])  # OpenCV gives BGR

    def close(self) -> None:
        """Ends reading; a loop over the frames ends too. A camera that hangs is released when it answers again."""
        with self._changed:
            self._over = True
            self._newest = None
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=_PATIENCE_S)

    def _read(self, frames: Iterator[NDArray[np.uint8]]) -> None:
        try:
            for frame in frames:
                with self._changed:
                    if self._over:
                        return
                    dropped = self._newest is not None
                    self.dropped += dropped
                    self._newest = frame
                    self._changed.notify()
                if dropped and self._meters is not None:
                    self._meters.count("frames_dropped")
        except Exception as error:
            self._error = error
        finally:
            try:
                if self._camera is not None:
                    self._camera.release()
            finally:
                with self._changed:
                    self._over = True
                    self._changed.notify_all()

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _opened(source: int | str | Path) -> tuple[Any, Iterator[NDArray[np.uint8]]]:
    cv2 = require("cv2", "camera")
    camera = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    if not camera.isOpened():
        raise InputError(f"{source}: OpenCV cannot open this camera or video; is it there, and free?")

    def frames() -> Iterator[NDArray[np.uint8]]:
        while True:
            there, frame = camera.read()
            if not there:
                return
            yield frame

    return camera, frames()
