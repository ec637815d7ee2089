"""Files that stages hand to each other, and how they reach the disk: whole or not at all."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.errors import InputError
from edgetl.spec import ModelSpec

__all__ = [
    "Checkpoint",
    "EnginePlan",
    "OnnxModel",
    "cache_folder",
    "made_once",
    "new_folder",
    "printable",
    "sha256_of",
    "write_bytes",
    "write_json",
    "write_text",
]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A trained network on disk.

    Attributes:
        root: The run folder.
        path: ``checkpoint.safetensors`` in it.
        spec: What the network expects and answers.
        sha256: Of the weights file.
        dataset_digest: Of the pictures it was trained on.
    """

    root: Path
    path: Path
    spec: ModelSpec
    sha256: str
    dataset_digest: str


@dataclass(frozen=True)
class OnnxModel:
    """One single-file ONNX graph.

    Attributes:
        path: The file.
        spec: What the graph expects and answers.
        precision: ``fp32``, ``fp16`` or ``int8``.
        target: ``any``, or the INT8 form: ``tensorrt``, ``x86`` or ``arm``.
        sha256: Of the file.
        parent: sha256 of what it was made from.
    """

    path: Path
    spec: ModelSpec
    precision: str
    target: str
    sha256: str
    parent: str


@dataclass(frozen=True)
class EnginePlan:
    """A TensorRT plan: native code that belongs to one machine, never to a bundle.

    Attributes:
        path: The file.
        key: Everything the plan depends on.
        parent: sha256 of the graph it was built from.
    """

    path: Path
    key: str
    parent: str


def cache_folder() -> Path:
    """Returns edgetl's folder in the user's cache: ``$XDG_CACHE_HOME/edgetl`` or ``~/.cache/edgetl``; may not exist.

    Raises:
        InputError: The user has neither.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "edgetl"
    except RuntimeError:  # a user without a home
        raise InputError("this user has no home for a cache; name a folder by XDG_CACHE_HOME") from None


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def printable(path: Path | str) -> str:
    """Returns a path as text that can be printed and written, whatever bytes its name is made of."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, then moves it into place.

    Raises:
        InputError: The folder cannot be written to.
    """
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Writes readable JSON whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def new_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Gives an empty sibling folder that becomes ``target`` when the block ends without an exception.

    An existing target is exchanged in one step, so that a reader sees the old folder or the new one.

    Args:
        target: The folder to make.
        force: Whether an existing target may be replaced.

    Raises:
        InputError: The target exists and ``force`` is false, or its parent cannot be written to.
    """
    target = Path(target)
    if target.exists() and not force:
        raise InputError(f"{target}: exists already; choose another --out or give --force")
    import tempfile

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sibling = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    try:
        yield sibling
        sibling.chmod(0o755)
        _move_into_place(sibling, target, force=force)
    finally:
        _remove(sibling)


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Returns the folder ``target``, which ``make`` has made by `new_folder` if it was not there yet."""
    if not target.is_dir():
        try:
            make(target)
        except InputError:
            if not target.is_dir():  # else another process was faster
                raise
    return target


def _remove(path: Path) -> None:
    """Deletes what is left under the temporary name; after an exchange that may be the user's file or link."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _move_into_place(sibling: Path, target: Path, *, force: bool) -> None:
    if not target.exists():
        sibling.rename(target)
        return
    if not force:
        raise InputError(f"{target}: was made by someone else meanwhile; choose another --out")
    if not _exchange(sibling, target):
        aside = target.with_name(f".{target.name}.old-{os.getpid()}")
        target.rename(aside)
        sibling.rename(target)
        aside.rename(sibling)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two paths atomically by Linux's renameat2; false where that is not to be had."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)
