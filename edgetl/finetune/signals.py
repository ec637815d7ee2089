"""Ctrl-C and SIGTERM while a run is being made."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgetl.errors import Interrupted

__all__ = ["STOP_SIGNALS", "signals_interrupt", "signals_restored"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_restored() -> Iterator[None]:
    """Puts both signals' handlers back to what they were when the block ends."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Lets both signals raise `Interrupted` where the block is; only the main thread can be interrupted."""
    with signals_restored():
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, _interrupt)
        yield


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted("stopped")
