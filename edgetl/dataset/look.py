"""A look at every picture before training: can it be read, and is there anything unusual about it?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.dataset.sources import Found
from edgetl.errors import PictureError
from edgetl.preprocess import MAX_PIXELS, NARROWEST, decode, open_image
from edgetl.quiet import without_warnings
from edgetl.spec import PreprocessSpec

__all__ = ["Audit", "Look", "look_at_all"]

_SMALLEST_SIDE = 2
_LARGE_PIXELS = 24_000_000


@dataclass(frozen=True)
class Audit:
    """What a look at every picture found.

    Attributes:
        pictures: How many were looked at.
        bad: (path, reason) of those left out.
        notes: (path or class, remark) of those kept that deserve a look.
    """

    pictures: int
    bad: tuple[tuple[str, str], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "pictures": self.pictures,
            "bad": [{"path": p, "reason": r} for p, r in self.bad],
            "notes": [{"path": p, "note": n} for p, n in self.notes],
        }


@dataclass(frozen=True)
class Look:
    """What one file is: its SHA-256, why it cannot be used, what is unusual about it."""

    sha256: str = ""
    bad: str = ""
    note: str = ""


def look_at_all(found: Sequence[Found], on_progress: Callable[[int, int], None] | None) -> list[Look]:
    """Reads and decodes every file, several at a time; the answers are in the files' order."""
    looks = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for look in pool.map(lambda f: _look(f.path), found):
            looks.append(look)
            if on_progress is not None:
                on_progress(len(looks), len(found))
    return looks


def _look(path: Path) -> Look:
    """Reads and decodes one file, and says what is wrong or unusual about it."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        return Look(bad=f"cannot be read ({getattr(error, 'strerror', error)})")
    if not data:
        return Look(bad="zero bytes")
    try:
        note = _remark(data)
        image = decode(data, _AUDIT_SPEC)
    except PictureError as error:
        return Look(bad=str(error).removeprefix("picture bytes: "))
    if min(image.size) < _SMALLEST_SIDE:
        return Look(bad=f"{image.width} x {image.height} pixels")
    if max(image.size) > NARROWEST * min(image.size):
        return Look(bad=f"{image.width} x {image.height} pixels, too narrow")
    return Look(hashlib.sha256(data).hexdigest(), note=note)


_AUDIT_SPEC = PreprocessSpec()


def _remark(data: bytes) -> str:
    """Names what is unusual about a picture that can be used, read from its header."""
    remarks = []
    try:
        with without_warnings(), open_image(data) as image:
            if image.mode == "CMYK":
                remarks.append("CMYK, converted")
            if image.mode.startswith("I") or image.mode == "F" or any(";16" in str(tile[3]) for tile in image.tile):
                remarks.append("16-bit, upper 8 bits used")
            if image.mode in ("P", "PA"):
                remarks.append("palette, converted")
            if image.getexif().get(0x0112, 1) != 1:
                remarks.append("rotated by its EXIF orientation")
            if getattr(image, "n_frames", 1) > 1:
                remarks.append("animated, first frame used")
            if _LARGE_PIXELS < image.width * image.height <= MAX_PIXELS:
                remarks.append(f"{image.width * image.height / 1e6:.0f} megapixels, slow to decode")
    except Exception:  # decode() reports what is wrong with it
        return ""
    return "; ".join(remarks)
