"""WebDataset shards: tar files that machines read from front to back, unpacked once into the cache of each.

``webdataset:DIR`` takes ``DIR/{train,val[,test]}/*.tar``, or ``DIR/*.tar``, split by the pictures' content. A sample is
what shares a name up to its first dot: a picture (``0001.jpg``) and its label, ``0001.cls`` with a name or a number, or
``0001.json`` with ``label``, ``class`` or ``cls``. ``DIR/classes.txt`` gives numbers their names, one a line.
Format: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgetl.artifacts import cache_folder, made_once, new_folder
from edgetl.canonical import canonical_json
from edgetl.errors import DatasetError

__all__ = ["shards_of", "unpacked_shards"]

_KIND = "webdataset"
_VERSION = 2
_LARGEST_LABEL = 1 << 16  # bytes
_LARGEST_PICTURE = 1 << 30


def shards_of(source: str) -> Path | None:
    """Returns the folder of a source like ``webdataset:DIR``, or None where it is something else."""
    kind, colon, folder = source.partition(":")
    return Path(folder or ".") if colon and kind == _KIND else None


def unpacked_shards(folder: Path, extensions: frozenset[str], splits: tuple[str, ...]) -> Path:
    """Returns the table of the shards' pictures, unpacked into the cache if they were not yet.

    Args:
        folder: Of the shards.
        extensions: Of pictures, with their dot.
        splits: Names that folders of splits have.

    Raises:
        DatasetError: There are no shards, one is damaged, or a sample has no label or two pictures.
        InputError: The cache cannot be written to.
    """
    shards = [(split, path) for split in splits for path in sorted((folder / split).glob("*.tar"))]
    shards = shards or [("", path) for path in sorted(folder.glob("*.tar"))]
    if not shards:
        raise DatasetError(f"{folder}: holds no shards; expected {folder}/train/*.tar and {folder}/val/*.tar")
    names = _names(folder / "classes.txt")
    known = [[split, path.name, path.stat().st_size, path.stat().st_mtime_ns] for split, path in shards]
    digest = hashlib.sha256(canonical_json([_VERSION, str(folder.resolve()), known, names])).hexdigest()
    target = cache_folder() / f"{_KIND}-{digest[:16]}"
    return made_once(target, lambda folder: _unpack(shards, names, extensions, folder)) / "table.csv"


def _names(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _unpack(shards: list[tuple[str, Path]], names: list[str], extensions: frozenset[str], target: Path) -> None:
    with new_folder(target) as folder:
        rows: list[tuple[str, str, str]] = []
        for split, path in shards:
            for picture, label in _samples(path, extensions, folder, len(rows)):
                rows.append((picture, _named(label, names, path), split))
        if not rows:
            raise DatasetError(f"{shards[0][1]}: holds no pictures")
        with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "label", "split"), *rows])


def _samples(path: Path, extensions: frozenset[str], folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """Yields (file name, label) of a shard's samples; pictures are written under numbers, whatever they are called."""
    pictures: dict[str, str] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                key, suffix = _key(member.name)
                content = tar.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                if suffix in extensions:
                    if key in pictures:
                        raise DatasetError(_two(path, key, Path(pictures[key]).suffix, suffix))
                    pictures[key] = f"{count + len(pictures):07d}{suffix}"
                    _copy(content, member.size, folder / pictures[key], path)
                elif suffix in (".cls", ".json") and key not in labels:
                    labels[key] = _label(content.read(_LARGEST_LABEL), suffix, f"{path}: {member.name}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{path}: cannot be read as tar ({error})") from None
    for key, name in pictures.items():
        if not labels.get(key):
            raise DatasetError(f"{path}: {key} has a picture and no label; expected {key}.cls or {key}.json beside it")
        yield name, labels[key]


def _key(name: str) -> tuple[str, str]:
    """Splits a member's name at the first dot of its last part."""
    path = PurePosixPath(name)
    stem, dot, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, f"{dot}{suffix}".lower()


def _two(shard: Path, key: str, first: str, second: str) -> str:
    """Names a sample of which either picture may be the one to learn from: one of them may be a mask."""
    return (
        f"{shard}: {key} has two pictures ({first} and {second}), and which to learn from is not known; leave one out, "
        f"or name it {key}.mask{second}"
    )


def _copy(content: IO[bytes], size: int, target: Path, shard: Path) -> None:
    if size > _LARGEST_PICTURE:
        raise DatasetError(f"{shard}: a picture of {size >> 20} MB; split it, or leave it out")
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def _label(data: bytes, suffix: str, origin: str) -> str:
    try:
        text = data.decode("utf-8").strip()
        if suffix == ".cls":
            return text
        found: Any = json.loads(text)
        for name in ("label", "class", "cls"):
            if isinstance(found, dict) and isinstance(found.get(name), str | int):
                return str(found[name])
    except ValueError as error:
        raise DatasetError(f"{origin}: cannot be read ({error})") from None
    return ""


def _named(label: str, names: list[str], shard: Path) -> str:
    if not names or not label.isdecimal():
        return label
    if int(label) >= len(names):
        raise DatasetError(f"{shard}: a label is {label}, and classes.txt has {len(names)} lines")
    return names[int(label)]
