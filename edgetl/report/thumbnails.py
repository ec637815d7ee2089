"""Small pictures inside the page. Whatever is wrong with a file is said in its place."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.errors import PictureError
from edgetl.preprocess import decode
from edgetl.spec import PreprocessSpec

__all__ = ["Thumbnails"]

_SIDE = 96
_QUALITY = 72
_LARGEST_PAGE = 600_000  # bytes for all pictures of a page
_READER = PreprocessSpec(size=(_SIDE, _SIDE), resize_to=_SIDE, decode="reduced")


@dataclass
class Thumbnails:
    """The pictures of one page.

    Attributes:
        room: Characters that are left for all of them.
    """

    room: int = _LARGEST_PAGE
    _made: dict[str, tuple[str, str]] = field(default_factory=dict)

    def get(self, path: str) -> tuple[str, str]:
        """Returns a ``data:`` URI, or nothing and why there is none."""
        if path not in self._made:
            self._made[path] = _thumbnail(path)
        uri, why = self._made[path]
        if len(uri) > self.room:
            return "", "not shown: this page has enough pictures"
        self.room -= len(uri)
        return uri, why


def _thumbnail(path: str) -> tuple[str, str]:
    if not path:
        return "", "its path was not kept"
    if not Path(path).exists():
        return "", "no longer there"
    try:
        image = decode(path, _READER)
        image.thumbnail((_SIDE, _SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY, optimize=True)
    except (PictureError, OSError, ValueError):
        return "", "cannot be read"
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", ""
