"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST from the files that their authors published.

They are unpacked once, as PNG (no pixel changes) and a table, into a folder of the user's cache that is named after
the content of the original files: what follows needs to know nothing of them.

=================  ========================================================================================
``cifar10:DIR``    ``data_batch_1`` ... ``test_batch`` (also under ``cifar-10-batches-py/``), or the ``.bin`` form
``cifar100:DIR``   ``train``, ``test``, ``meta`` (also under ``cifar-100-python/``), or the ``.bin`` form; fine labels
``mnist:DIR``      ``train-images-idx3-ubyte`` ..., also ``.gz``, also under ``MNIST/raw/`` or ``FashionMNIST/raw/``
=================  ========================================================================================

Formats: Krizhevsky 2009 (https://www.cs.toronto.edu/~kriz/cifar.html); LeCun et al., "THE MNIST DATABASE".
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.artifacts import cache_folder, made_once, new_folder
from edgetl.errors import DatasetError

__all__ = ["ORIGINALS", "original_of", "unpacked"]

Pictures = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]

_VERSION = 1
_LARGEST = 1 << 28  # bytes of one file, unpacked: the largest real one has 155 MB


@dataclass(frozen=True)
class _Part:
    """A split of an original, read: pictures (N, 32, 32, 3) or (N, 28, 28), and labels (N,)."""

    split: str
    pictures: Pictures
    labels: Labels


@dataclass(frozen=True)
class _Original:
    """How one of them is read.

    Attributes:
        forms: What may lie in a folder: the files' names, and what reads them in that order.
        folders: Where they may lie below the folder that was named.
        publisher: Where to get them.
    """

    forms: tuple[tuple[tuple[str, ...], Callable[[Sequence[bytes]], tuple[list[_Part], tuple[str, ...]]]], ...]
    folders: tuple[str, ...]
    publisher: str


def original_of(source: str) -> tuple[str, Path] | None:
    """Returns (kind, folder) of a source like ``cifar10:DIR``, or None where it is something else."""
    kind, colon, folder = source.partition(":")
    return (kind, Path(folder or ".")) if colon and kind in ORIGINALS else None


def unpacked(kind: str, folder: Path, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Returns the table of an original's pictures, unpacked into the cache if they were not yet.

    Args:
        kind: ``cifar10``, ``cifar100``, ``mnist`` or ``fashion-mnist``.
        folder: Where the published files are.
        on_progress: Called with (pictures unpacked, pictures in all).

    Raises:
        DatasetError: The files are not there, or damaged.
        InputError: The cache cannot be written to.
    """
    paths, read = _find(kind, folder)
    digest = hashlib.sha256(f"{_VERSION}".encode())
    blobs = []
    for path in paths:
        blobs.append(_bytes_of(path))
        digest.update(hashlib.sha256(blobs[-1]).digest())

    def unpack(target: Path) -> None:
        try:
            parts, classes = read(blobs)
        except Exception as error:  # a damaged pickle may raise anything
            reason = " ".join(str(error).split())[:120]
            raise DatasetError(f"{paths[0].parent}: is not {kind} as published ({reason}); get it anew") from None
        _write(target, parts, classes, on_progress)

    return made_once(cache_folder() / f"{kind}-{digest.hexdigest()[:16]}", unpack) / "table.csv"


def _find(kind: str, folder: Path) -> tuple[list[Path], Callable[..., Any]]:
    original = ORIGINALS[kind]
    for below in (*original.folders, ""):  # MNIST and Fashion-MNIST have the same names of files
        for names, read in original.forms:
            found = [_existing(folder / below / name) for name in names]
            paths = [path for path in found if path is not None]
            if len(paths) == len(names):
                return paths, read
            if paths:
                missing = next(name for name, path in zip(names, found, strict=True) if path is None)
                raise DatasetError(
                    f"{folder / below}: {missing} of {kind} is missing; get it from {original.publisher}"
                )
    first = original.forms[0][0][0]
    raise DatasetError(
        f"{folder}: holds no {kind} as published ({first} ...); get it from {original.publisher}, or give --download"
    )


def _existing(path: Path) -> Path | None:
    zipped = path.with_name(f"{path.name}.gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def _bytes_of(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_LARGEST)
            if file.read(1):
                raise DatasetError(f"{path}: holds more than {_LARGEST >> 20} MB, which no original does")
            return data
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from None


def _write(
    target: Path, parts: Sequence[_Part], classes: Sequence[str], on_progress: Callable[[int, int], None] | None
) -> None:
    total = sum(len(part.labels) for part in parts)
    with new_folder(target) as folder:
        rows = []
        for part in parts:
            (folder / part.split).mkdir()
            for i, (pixels, label) in enumerate(zip(part.pictures, part.labels, strict=True)):
                name = f"{part.split}/{i:05d}.png"
                Image.fromarray(pixels).save(folder / name, compress_level=1)
                rows.append((name, classes[int(label)], part.split))
                if on_progress is not None and (len(rows) % 100 == 0 or len(rows) == total):
                    on_progress(len(rows), total)
        with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "label", "split"), *rows])


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, texts, containers and numpy arrays, as CIFAR's files hold, and refuses all else."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
            ("_codecs", "encode"),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _plain_dtype
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and such a file holds only arrays")
        return super().find_class(module, name)


def _plain_dtype(kind: Any, *_: Any) -> np.dtype[Any]:
    """Returns numpy's own type of a number: those of objects and records could be given any content."""
    found: np.dtype[Any] = np.dtype(kind)
    if found.kind not in "uib":
        raise pickle.UnpicklingError(f"it holds an array of {found}")
    return found


def _unpickled(blob: bytes) -> dict[bytes, Any]:
    found = _PlainUnpickler(io.BytesIO(blob), encoding="bytes").load()
    return {name.encode() if isinstance(name, str) else name: value for name, value in found.items()}


def _cifar_pictures(rows: Any) -> Pictures:
    """Turns rows of 3,072 bytes, red, green, blue planes of 32 x 32, into (N, 32, 32, 3)."""
    planes = np.asarray(rows, np.uint8).reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _pickled_cifar(blobs: Sequence[bytes], labels: bytes, names: bytes) -> tuple[list[_Part], tuple[str, ...]]:
    """Reads training batches, the test batch and the names, in that order."""
    *batches, meta = [_unpickled(blob) for blob in blobs]
    pictures = [_cifar_pictures(batch[b"data"]) for batch in batches]
    classes = [np.asarray(batch[labels], np.int64) for batch in batches]
    texts = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in meta[names])
    return _two_parts(pictures, classes, texts)


def _binary_cifar(blobs: Sequence[bytes], skipped: int) -> tuple[list[_Part], tuple[str, ...]]:
    """Reads records of ``skipped`` bytes, the label, and 3,072 of the picture; the last file has the names."""
    *batches, meta = blobs
    records = [np.frombuffer(blob, np.uint8).reshape(-1, skipped + 1 + 3072) for blob in batches]
    pictures = [_cifar_pictures(record[:, skipped + 1 :]) for record in records]
    classes = [record[:, skipped].astype(np.int64) for record in records]
    return _two_parts(pictures, classes, tuple(line.strip() for line in meta.decode().splitlines() if line.strip()))


def _two_parts(
    pictures: Sequence[Pictures], labels: Sequence[Labels], classes: tuple[str, ...]
) -> tuple[list[_Part], tuple[str, ...]]:
    """Joins all but the last file to ``train``; the last is ``val``."""
    parts = [
        _Part("train", np.concatenate(pictures[:-1]), np.concatenate(labels[:-1])),
        _Part("val", pictures[-1], labels[-1]),
    ]
    return [_checked(part, len(classes)) for part in parts], classes


def _checked(part: _Part, classes: int) -> _Part:
    if len(part.pictures) != len(part.labels):
        raise ValueError(f"{part.split} has {len(part.pictures)} pictures and {len(part.labels)} labels")
    if len(part.labels) and not 0 <= part.labels.min() <= part.labels.max() < classes:
        raise ValueError(f"a label of {part.split} is not within the {classes} classes")
    return part


def _idx(blob: bytes) -> Pictures:
    """Reads LeCun's idx format: two zeros, the type (8: unsigned byte), the number of dimensions, the dimensions."""
    zeros, kind, dimensions = struct.unpack_from(">HBB", blob)
    if zeros != 0 or kind != 8 or dimensions not in (1, 3):
        raise ValueError("no idx file of unsigned bytes")
    shape = struct.unpack_from(f">{dimensions}I", blob, 4)
    start = 4 + 4 * dimensions
    if len(blob) != start + math.prod(shape):
        raise ValueError(f"{math.prod(shape)} bytes announced, {len(blob) - start} there")
    return np.frombuffer(blob, np.uint8, offset=start).reshape(shape)


def _idx_parts(blobs: Sequence[bytes], classes: tuple[str, ...]) -> tuple[list[_Part], tuple[str, ...]]:
    train, train_labels, val, val_labels = map(_idx, blobs)
    parts = [_Part("train", train, train_labels), _Part("val", val, val_labels)]
    for part in parts:
        if part.pictures.ndim != 3 or part.labels.ndim != 1:
            raise ValueError("pictures and labels are exchanged")
    return [_checked(part, len(classes)) for part in parts], classes


_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _mnist(classes: tuple[str, ...], name: str, publisher: str) -> _Original:
    return _Original(((_IDX, lambda blobs: _idx_parts(blobs, classes)),), (f"{name}/raw", "raw"), publisher)


_TORONTO = "https://www.cs.toronto.edu/~kriz/cifar.html"
ORIGINALS: dict[str, _Original] = {
    "cifar10": _Original(
        (
            (
                (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
                lambda blobs: _pickled_cifar(blobs, b"labels", b"label_names"),
            ),
            (
                (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
                lambda blobs: _binary_cifar(blobs, 0),
            ),
        ),
        ("cifar-10-batches-py", "cifar-10-batches-bin"),
        _TORONTO,
    ),
    "cifar100": _Original(
        (
            (("train", "test", "meta"), lambda blobs: _pickled_cifar(blobs, b"fine_labels", b"fine_label_names")),
            (("train.bin", "test.bin", "fine_label_names.txt"), lambda blobs: _binary_cifar(blobs, 1)),
        ),
        ("cifar-100-python", "cifar-100-binary"),
        _TORONTO,
    ),
    "mnist": _mnist(tuple("0123456789"), "MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "fashion-mnist": _mnist(_FASHION, "FashionMNIST", "https://github.com/zalandoresearch/fashion-mnist"),
}
