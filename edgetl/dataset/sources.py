"""Where pictures come from: folders, tables, built-in collections. Files are named here, not read."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgetl.artifacts import cache_folder, made_once, new_folder
from edgetl.dataset.originals import ORIGINALS, original_of, unpacked
from edgetl.dataset.shards import shards_of, unpacked_shards
from edgetl.errors import DatasetError, require
from edgetl.preprocess import FORMATS

__all__ = ["BUILT_IN", "EXTENSIONS", "LAYOUTS", "SPLITS", "Found", "discover", "located", "pictures_in", "write_digits"]

# Formats that Pillow may not decode (a phone's .heic) are named too, so that the audit can say they were left out.
EXTENSIONS = frozenset(ending for endings in FORMATS.values() for ending in endings)
BUILT_IN = ("digits",)
SPLITS = ("train", "val", "test")
LAYOUTS = "root/{train,val}/class/picture, root/class/picture, a CSV table, digits, or one of " + ", ".join(
    f"{kind}:DIR" for kind in (*ORIGINALS, "webdataset")
)
_LIKE_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "eval", "dev", "test", "testing"})


@dataclass(frozen=True)
class Found:
    """A file named by the source, not yet read."""

    path: Path
    label: str
    split: str | None


def located(source: str) -> tuple[str, Path] | None:
    """Returns (kind, folder) of a source like ``cifar10:DIR`` or ``webdataset:DIR``, or None where it has no kind."""
    shards = shards_of(source)
    return ("webdataset", shards) if shards is not None else original_of(source)


def discover(source: str, on_unpacked: Callable[[int, int], None] | None = None) -> Iterator[Found]:
    """Yields the files that a source names, in no order that matters.

    Args:
        source: See the package.
        on_unpacked: Called with (pictures, pictures in all) while a published collection becomes files.

    Raises:
        DatasetError: The source is nothing of the kind, or a class or a line of it is empty.
    """
    if source == "digits":
        yield from _discover_folder(_digits_folder())
        return
    original = original_of(source)
    if original is not None:
        yield from _discover_table(unpacked(*original, on_unpacked))
        return
    shards = shards_of(source)
    if shards is not None:
        yield from _discover_table(unpacked_shards(shards, EXTENSIONS, SPLITS))
        return
    path = Path(source)
    if path.is_dir():
        yield from _discover_folder(path)
    elif path.suffix.lower() == ".csv" and path.is_file():
        yield from _discover_table(path)
    elif path.exists():
        raise DatasetError(f"{source}: is neither a folder nor a .csv table; expected {LAYOUTS}")
    else:
        raise DatasetError(f"{source}: no such folder or table; expected {LAYOUTS}")


def _digits_folder() -> Path:
    return made_once(cache_folder() / "digits-1", write_digits)


def pictures_in(path: Path) -> list[Path]:
    """Returns the pictures of a folder and of those below it, whatever their names; a file is itself.

    Raises:
        DatasetError: A folder holds none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    if not found:
        raise DatasetError(f"{path}: holds no pictures ({', '.join(sorted(EXTENSIONS))})")
    return found


def _discover_folder(root: Path) -> Iterator[Found]:
    folders = _subfolders(root)
    names = {f.name for f in folders}
    if "train" in names and names <= set(SPLITS):
        if "val" not in names:
            raise DatasetError(f"{root}: has train/ but no val/; add it, or put the classes directly in {root}")
        for split in folders:
            for folder in _subfolders(split):
                yield from (Found(p, folder.name, split.name) for p in _pictures(folder, root))
        return
    for folder in folders:
        if folder.name.lower() in _LIKE_SPLITS and _subfolders(folder) and not any(_direct_pictures(folder)):
            raise DatasetError(
                f"{root}: {folder.name}/ holds folders and looks like a split, but splits are named train/, val/ and "
                "test/ and stand alone; rename it, or move what is no split"
            )
    for folder in folders:
        yield from (Found(p, folder.name, None) for p in _pictures(folder, root))


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _direct_pictures(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)


def _pictures(folder: Path, root: Path) -> list[Path]:
    paths = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file() and not p.name.startswith(".")
    )
    if not paths:
        raise DatasetError(f"{folder}: class without pictures; add some or delete the folder from {root}")
    return paths


def _discover_table(table: Path) -> Iterator[Found]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read as CSV ({error})") from None
    if not {"path", "label"} <= set(columns):
        raise DatasetError(f"{table}: first line must name the columns path,label[,split], not {','.join(columns)}")
    for number, row in rows:
        if not row["path"] or not row["label"]:
            raise DatasetError(f"{table}:{number}: path or label is empty")
        split = row.get("split") or None
        if split is not None and split not in SPLITS:
            raise DatasetError(f'{table}:{number}: split is "{split}", it must be one of {", ".join(SPLITS)}')
        yield Found(table.parent / row["path"], row["label"], split)


def write_digits(root: Path, *, only: Iterable[int] = range(10), per_class: int | None = None) -> None:
    """Writes scikit-learn's scanned digits as ``root/{train,val}/DIGIT/NNNN.png``, 8 x 8 grey.

    Args:
        root: Folder to make.
        only: The digits to write.
        per_class: At most this many training pictures for each class.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    datasets = require("sklearn.datasets", "train")
    scans = datasets.load_digits()
    wanted = set(only)
    counts: Counter[tuple[str, int]] = Counter()
    with new_folder(root) as folder:
        for i, (pixels, digit) in enumerate(zip(scans.images, scans.target, strict=True)):
            split = "val" if i % 4 == 3 else "train"
            key = (split, int(digit))
            if digit not in wanted or (split == "train" and per_class is not None and counts[key] >= per_class):
                continue
            counts[key] += 1
            path = folder / split / str(digit) / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(path)
