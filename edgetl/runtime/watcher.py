"""Following a bundle that somebody exchanges."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgetl.bundle import open_bundle
from edgetl.errors import EdgetlError

__all__ = ["Watcher"]

_EVERY_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOG = logging.getLogger("edgetl")
_State = tuple[int, ...]


class Watcher:
    """A thread that looks at a bundle's manifest now and then.

    What is not taken (it may not have been copied whole yet) is tried again, each time after twice the time.

    Args:
        root: The bundle's folder. It is to be exchanged as a whole (``edgetl export --force`` does, ``mv -T`` too).
        digest: Of the one that was loaded from there.
        served: Returns the digest of the one that is served, from there or not.
        reload: Called with the folder when another one is there.
        every_s: How often it looks.
    """

    def __init__(
        self,
        root: Path,
        digest: str,
        served: Callable[[], str],
        reload: Callable[[Path], None],
        every_s: float = _EVERY_S,
    ) -> None:
        self._root = root
        self._loaded = digest
        self._served = served
        self._reload = reload
        self._every_s = every_s
        self._over = threading.Event()
        self._seen: _State | None = None  # nothing yet: it may have been exchanged while it was loaded
        self._failed: _State | None = None
        self._told = ""
        self._pause_s = every_s
        self._again_at = 0.0
        self._thread = threading.Thread(target=self._watch, name="edgetl-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _state(self) -> _State | None:
        try:
            found = (self._root / "manifest.json").stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            state = self._state()
            if state is None or state == self._seen:  # between two renames there may be none
                continue
            if state == self._failed and time.monotonic() < self._again_at:
                continue
            try:
                self._follow()
            except EdgetlError as error:
                self._failed_with(state, str(error))
            except Exception as error:
                self._failed_with(state, f"{type(error).__name__}: {error}", exc_info=True)
            else:
                self._seen, self._failed, self._told = state, None, ""

    def _follow(self) -> None:
        """Goes over to what is there, if it is another one."""
        digest = open_bundle(self._root).digest
        known = self._loaded if self._seen is None else self._served()
        if digest != known:
            self._reload(self._root)
            _LOG.info("%s: serves %s now", self._root, self._served()[:12])

    def _failed_with(self, state: _State, why: str, *, exc_info: bool = False) -> None:
        """Makes a pause, twice as long as the last where it is the same that fails again, and says it once."""
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) if state == self._failed else self._every_s
        self._failed, self._again_at = state, time.monotonic() + self._pause_s
        if why != self._told:
            told = "the bundle that was put in place is not taken, the one before goes on: %s"
            _LOG.error(told, why, exc_info=exc_info)
            self._told = why
