"""Keeping other libraries from talking to edgetl's users."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["quiet", "without_warnings"]

_quiet = ExitStack()
_quiet_count = 0
_quiet_lock = threading.Lock()
_quiet_forks = 0


def _start_anew() -> None:
    """Restores the warnings in a forked process: the threads that were in a block, or held the lock, are not in it."""
    global _quiet_count, _quiet_lock, _quiet_forks
    _quiet_lock, _quiet_count = threading.Lock(), 0
    _quiet_forks += 1
    _quiet.close()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_anew)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences Pillow's remarks on odd files while any thread is in the block.

    Threads that enter and leave ``warnings.catch_warnings`` crosswise restore each other's filters and
    leave the whole process silent; counting them does not.
    """
    global _quiet_count
    with _quiet_lock:
        if _quiet_count == 0:
            _quiet.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _quiet_count += 1
        forks = _quiet_forks
    try:
        yield
    finally:
        with _quiet_lock:
            if forks == _quiet_forks:  # else this block was entered in the process before
                _quiet_count -= 1
                if _quiet_count == 0:
                    _quiet.close()


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Lets libraries say nothing but errors inside the block: no warnings, and no advice by these loggers."""
    import logging  # whoever loads a bundle imports this module, and says nothing

    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    try:
        for logger in named:
            logger.setLevel(logging.ERROR)
        with without_warnings():
            yield
    finally:
        for logger, level in zip(named, levels, strict=True):
            logger.setLevel(level)
