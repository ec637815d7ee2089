"""manifest.json of a bundle as it is on disk: read as exactly what was written, or refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetl.canonical import canonical_json
from edgetl.errors import BundleError
from edgetl.files import read_regular

__all__ = ["FORMAT_VERSION", "MANIFEST", "check_name", "digest_of", "read_manifest"]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_LARGEST = 64 << 20  # bytes
# Compiled when they are used: most starts of an app need but the first.
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_ABSOLUTE = r"[/\\]|[A-Za-z]:"
_VERSION = r"[0-9]{1,6}(\.[0-9a-z]{1,12}){1,4}"
# A letter of an escaped character that is not as json writes it.
_ODD_ESCAPE = r"(?<!\\)(?:\\\\)*\\u[0-9a-f]{0,3}[A-F]"


def read_manifest(root: Path) -> dict[str, Any]:
    """Reads a bundle's manifest.

    Raises:
        BundleError: There is none, it was changed, or its format is newer than this edgetl.
    """
    manifest = _parsed(root)
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise BundleError(f"{root / MANIFEST}: has no format_version; is this a bundle?")
    if version > FORMAT_VERSION:
        raise BundleError(f"{root}: has format {version}, this edgetl reads {FORMAT_VERSION}: {_cure(manifest)}")
    recorded = manifest.get("digest")
    if not recorded or recorded != digest_of({k: v for k, v in manifest.items() if k != "digest"}):
        raise BundleError(f"{root / MANIFEST}: was changed after export (its digest differs); export it again")
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Returns the digest of a manifest without that field; empty where it cannot be told."""
    try:
        return hashlib.sha256(canonical_json(manifest)).hexdigest()
    except (ValueError, TypeError, RecursionError):
        return ""


def check_name(name: str) -> None:
    """A manifest names files of its own folder, nothing else.

    Raises:
        ValueError: The name could lead elsewhere.
    """
    if re.fullmatch(_NAME, name):
        return
    shown = f"{name!r:.80}"
    if re.match(_ABSOLUTE, name):
        raise ValueError(f"{shown} is an absolute path; it is not a plain file name")
    if ".." in re.split(r"[/\\]", name):
        raise ValueError(f"{shown} leads out of the bundle; it is not a plain file name")
    raise ValueError(f"{shown} is not a plain file name")


def _cure(manifest: Mapping[str, Any]) -> str:
    """Says which edgetl reads a format of the future: the one that wrote it."""
    provenance = manifest.get("provenance")
    wrote = provenance.get("edgetl") if isinstance(provenance, dict) else None
    if isinstance(wrote, str) and re.fullmatch(_VERSION, wrote):
        return f"it needs edgetl {wrote} or newer: pip install -U 'edgetl>={wrote}'"
    return "it needs a newer edgetl: pip install -U edgetl"


def _parsed(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        if not root.exists():
            raise BundleError(f"{root}: no such bundle; edgetl export makes one")
        if not root.is_dir() or not (path.exists() or path.is_symlink()):
            raise BundleError(f"{root}: is not a bundle (no {MANIFEST}); edgetl export makes one")
        if path.stat().st_size > _LARGEST:
            raise BundleError(f"{path}: is larger than {_LARGEST >> 20} MiB, no manifest is")
        text = read_regular(path, _LARGEST).decode()
        if "\\u" in text and re.search(_ODD_ESCAPE, text):
            raise ValueError("letters are not escaped as edgetl does it")
        data = json.loads(text, parse_float=_exact)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); export or copy the bundle again") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read as JSON ({str(error)[:100]})") from None
    if not isinstance(data, dict):
        raise BundleError(f"{path}: must hold a JSON object")
    return data


def _exact(text: str) -> float:
    """Returns a number that is written as json writes it: 1e5 may also stand as 1E5, but then a bit was flipped."""
    value = float(text)
    if repr(value) != text:
        raise ValueError(f"{text:.40} is not as edgetl writes numbers")
    return value
