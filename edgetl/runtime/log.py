"""The program's log; logging itself is imported when there is something to say."""

from __future__ import annotations

from typing import Any

__all__ = ["warn"]


def warn(text: str, *values: Any) -> None:
    """Tells the program's log of something that it may want to know, as `logging.Logger.warning` does."""
    import logging

    logging.getLogger("edgetl").warning(text, *values)
