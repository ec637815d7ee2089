"""The model that is served now: exchanged while calls use it, and released by the last call that does."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgetl.errors import EngineError
from edgetl.runtime.served import Served

__all__ = ["Current"]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class Current:
    """Holds a model, counts who uses it, and lets another take its place.

    Args:
        served: The model to begin with.

    Attributes:
        served: The model now, closed or not.
        closed: Whether it was the last.
    """

    def __init__(self, served: Served) -> None:
        self.served = served
        self.closed = False
        self._lock = threading.RLock()  # a signal's handler may close what its own thread is counting
        self._changing = threading.Lock()
        self._forks = _forks

    @property
    def is_forked(self) -> bool:
        """Whether the engine's threads are in another process than this one."""
        return self._forks != _forks

    def check_fork(self) -> None:
        """Comes before every lock: whoever held one is in the other process.

        Raises:
            EngineError: This process was forked since.
        """
        if self._forks != _forks:
            raise EngineError("this process was forked after edgetl.load; call edgetl.load in each process")

    def get(self) -> Served:
        """Returns the model.

        Raises:
            EngineError: It is closed, or in another process.
        """
        self.check_fork()
        if self.closed:
            raise EngineError("this classifier is closed; call edgetl.load again")
        return self.served

    @contextmanager
    def in_use(self) -> Iterator[Served]:
        """Keeps a model from being released while it is used.

        Raises:
            EngineError: As `get`.
        """
        self.check_fork()
        with self._lock:
            served = self.get()
            held = served.held
            held.users += 1
        try:
            yield served
        finally:
            with self._lock:
                held.users -= 1
                last = held.users == 0 and (self.closed or self.served.held is not held)
            if last:
                held.session.close()

    @contextmanager
    def changing(self) -> Iterator[Served]:
        """Lets one change end before the next begins, and keeps what is changed from being released.

        Raises:
            EngineError: As `get`.
        """
        self.get()
        with self._changing, self.in_use() as served:
            yield served

    def exchange(self, after: Served) -> None:
        """Serves another model from now on; the one before is released when its last call ends.

        Raises:
            EngineError: It was closed meanwhile; the other model is released.
        """
        with self._lock:
            before = after if self.closed else self.served
            if not self.closed:
                self.served = after
            idle = (self.closed or before.held is not after.held) and before.held.users == 0
        if idle:
            before.session.close()
        self.get()

    def end(self) -> None:
        """Takes no more calls, and releases the model when the last one ends."""
        with self._lock:
            idle = not self.closed and self.served.held.users == 0
            self.closed = True
        if idle:
            self.served.session.close()
