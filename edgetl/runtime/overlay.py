"""What a device has learned, as a small file beside the bundle that it belongs to.

``{"format_version", "bundle", "classes": [{"label", "pictures", "embeddings"}], "hmac"}``: the bundle's digest, and the
embeddings of the pictures as base64 of float16. The classes are fitted anew from them. With a device key (a secret of
this one device, never the one that signs bundles) the file is authenticated: HMAC-SHA256, RFC 2104.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.artifacts import write_json
from edgetl.canonical import canonical_json
from edgetl.errors import BundleError, InputError
from edgetl.files import read_regular
from edgetl.spec import is_label

__all__ = ["OtherBundleError", "keep_aside", "kept_aside", "read_overlay", "write_overlay"]

_FORMAT_VERSION = 1
_LARGEST = 64 << 20  # bytes
_DIGEST = re.compile("[0-9a-f]{64}")
Array = NDArray[np.float32]


class OtherBundleError(BundleError):
    """An overlay belongs to another bundle."""


def write_overlay(path: Path, digest: str, support: Mapping[str, Array], key: bytes | None) -> None:
    """Writes what was learned.

    Args:
        path: File to write, in one step.
        digest: Of the bundle.
        support: By name, embeddings (n, D).
        key: Of this device, or None.

    Raises:
        InputError: It cannot be written.
    """
    classes = [
        {
            "label": label,
            "pictures": len(points),
            "embeddings": base64.b64encode(points.astype("<f2").tobytes()).decode(),
        }
        for label, points in support.items()
    ]
    content = {"format_version": _FORMAT_VERSION, "bundle": digest, "classes": classes}
    write_json(path, {**content, "hmac": None if key is None else _mac(content, key)})


def read_overlay(path: Path, digest: str, width: Callable[[], int], key: bytes | None) -> dict[str, Array]:
    """Reads what was learned.

    Args:
        path: Of the file.
        digest: Of the bundle that is served.
        width: Returns D, of its embeddings; asked when it is certain that the file is that bundle's.
        key: Of this device, if what is read must be its own.

    Returns:
        By name, embeddings (n, D), float32.

    Raises:
        OtherBundleError: It belongs to another bundle.
        BundleError: The file cannot be read, or is not of this device.
    """
    try:
        found = json.loads(read_regular(path, _LARGEST))
        version = found["format_version"]
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(f"{path}: is no overlay, or damaged; learn the classes again") from None
    if version != _FORMAT_VERSION:
        raise BundleError(f"{path}: has format {version!r:.20}, this edgetl reads {_FORMAT_VERSION}: update edgetl")
    if key is not None:
        content = {name: value for name, value in found.items() if name != "hmac"}
        try:
            is_own = hmac.compare_digest(_mac(content, key), str(found.get("hmac")))
        except (ValueError, TypeError):  # no number that JSON knows, or text that is none
            is_own = False
        if not is_own:
            raise BundleError(f"{path}: was not written by this device, or was changed; learn the classes again")
    if found.get("bundle") != digest:
        told = "was learned with another bundle, whose embeddings differ; learn the classes again"
        raise OtherBundleError(f"{path}: {told}")
    columns = width()
    try:
        support = {_label(entry): _points(entry, columns) for entry in found["classes"]}
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"{path}: is damaged; learn the classes again") from None
    return support


def kept_aside(path: Path, digest: str) -> Path:
    """Returns where the overlay of a bundle is kept when another bundle's takes its place."""
    return path.with_name(f"{path.stem}.{digest[:12]}.json")


def keep_aside(path: Path, digest: str) -> None:
    """Renames an overlay that belongs to another bundle than this one, so that nothing learned is overwritten.

    Raises:
        InputError: The folder cannot be written to.
    """
    try:
        other = str(json.loads(read_regular(path, _LARGEST))["bundle"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # there is none, or nothing that anybody could read
    if other == digest or not _DIGEST.fullmatch(other):
        return
    try:
        path.replace(kept_aside(path, other))
    except OSError as error:
        raise InputError(f"{path}: cannot be renamed ({error.strerror}); save to another path") from None


def _label(entry: Mapping[str, Any]) -> str:
    label = entry["label"]
    if not isinstance(label, str) or not is_label(label):
        raise ValueError("no name of a class")
    return label


def _points(entry: Mapping[str, Any], width: int) -> Array:
    points = np.frombuffer(base64.b64decode(entry["embeddings"], validate=True), "<f2").reshape(-1, width)
    if len(points) != entry["pictures"] or not len(points) or not np.isfinite(points).all():
        raise ValueError("not as many as announced, or not finite")
    return points.astype(np.float32)


def _mac(content: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, b"edgetl overlay 1\n" + canonical_json(content), hashlib.sha256).hexdigest()
