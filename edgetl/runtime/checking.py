"""What can be done beside the start of an engine: checking a bundle's files, and getting ready to read a picture."""

from __future__ import annotations

import threading
from collections.abc import Collection
from importlib import import_module

from edgetl.bundle import Bundle

__all__ = ["Checking"]


class Checking:
    """Checks a bundle's files in a thread: hashing needs no lock of Python's, nor has the engine's start to wait.

    Args:
        bundle: Whose files are checked.
        but: Names of those that are left out.
    """

    def __init__(self, bundle: Bundle, but: Collection[str]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._check, args=(bundle, but), name="edgetl-check")
        self._thread.start()

    def _check(self, bundle: Bundle, but: Collection[str]) -> None:
        try:
            bundle.verify(but=but)
            import_module("PIL.JpegImagePlugin")  # the first picture is most often a JPEG, and the engine is not up yet
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        """Waits until all are checked."""
        self._thread.join()

    def result(self) -> None:
        """Ends silently where every file is as exported.

        Raises:
            BundleError: One is not.
        """
        if self._error is not None:
            raise self._error
