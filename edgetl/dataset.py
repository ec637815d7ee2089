"""A folder, a table or a built-in collection of pictures, audited and split, always in the same order.

Accepted sources::

    root/{train,val[,test]}/class/picture     split by the folders
    root/class/picture                        split by the pictures' content, stable when files are added
    table.csv                                 columns path,label[,split]; paths relative to the table
    digits                                    scikit-learn's 1,797 scanned digits, 8 x 8
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from edgetl.artifacts import canonical_json, new_folder
from edgetl.errors import DatasetError, InputError, PictureError, require
from edgetl.preprocess import MAX_PIXELS, decode, without_warnings
from edgetl.spec import PreprocessSpec

__all__ = ["EXTENSIONS", "Audit", "Dataset", "Item", "Source", "calibration_sample", "open_dataset", "write_digits"]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
BUILT_IN = ("digits",)
SPLITS = ("train", "val", "test")
_OTHER_SPLITS = frozenset({"val", "test", "valid", "validation", "eval", "dev"})
VAL_FRACTION = 0.2
MAX_BAD_FRACTION = 0.05
_SMALLEST_SIDE = 2
_LARGE_PIXELS = 24_000_000


@dataclass(frozen=True)
class Item:
    """One picture.

    Attributes:
        path: Where it lies.
        label: Index into the dataset's classes.
        split: ``train``, ``val`` or ``test``.
        sha256: Of the file's bytes.
    """

    path: Path
    label: int
    split: str
    sha256: str


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
class Source:
    """How a data set was opened, so that it can be opened the same way again.

    Attributes:
        name: Absolute path, or the name of a built-in.
        val_fraction: Share of pictures for ``val`` where the source has no split.
        allow_leakage: Whether one picture may be in two splits.
    """

    name: str
    val_fraction: float = VAL_FRACTION
    allow_leakage: bool = False


@dataclass(frozen=True)
class Dataset:
    """Pictures in a fixed order.

    Attributes:
        root: The source as the user named it.
        classes: Labels, sorted; an item's label is an index into them.
        items: Sorted by split, class and content, whatever the file system's order.
        digest: SHA-256 over content, label and split of every item, and the classes.
        audit: What was found on the way.
        source: How it was opened.
    """

    root: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    digest: str
    audit: Audit = field(compare=False)
    source: Source = field(compare=False)

    def split(self, name: str) -> tuple[Item, ...]:
        """Returns the items of one split, in order."""
        return tuple(item for item in self.items if item.split == name)


@dataclass(frozen=True)
class _Found:
    """A file named by the source, not yet read."""

    path: Path
    label: str
    split: str | None


def open_dataset(
    source: str | Path,
    *,
    val_fraction: float = VAL_FRACTION,
    allow_leakage: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Reads and audits a collection; every picture is decoded once.

    Args:
        source: Folder, CSV table, or the name ``digits``.
        val_fraction: Share of pictures that go to ``val`` where the source does not say, 0 to 1.
        allow_leakage: Whether the same picture may be in two splits.
        on_progress: Called with (pictures done, pictures in all).

    Raises:
        DatasetError: There is nothing to use, a class is empty, more than 5 % of the files are bad, or a
            picture is in two splits.
    """
    if not 0 < val_fraction < 1:
        raise DatasetError(f"val fraction is {val_fraction}: it must be between 0 and 1")
    name = str(source)
    if isinstance(source, Path) and name in BUILT_IN:  # a folder of that name
        name = f"./{name}"
    found = list(_discover(name))
    if not found:
        raise DatasetError(f"{name}: holds no pictures ({', '.join(sorted(EXTENSIONS))}); expected {_LAYOUTS}")
    looks = _look_at_all(found, on_progress)
    bad = tuple((str(f.path), look.bad) for f, look in zip(found, looks, strict=True) if look.bad)
    if len(bad) > MAX_BAD_FRACTION * len(found):
        path, reason = bad[0]
        raise DatasetError(
            f"{name}: {len(bad)} of {len(found)} files are bad, more than {MAX_BAD_FRACTION:.0%}; "
            f"the first: {path}: {reason}; mend or delete them"
        )
    kept = [(f, look) for f, look in zip(found, looks, strict=True) if not look.bad]
    classes = tuple(sorted({f.label for f in found}))
    if len(classes) < 2:
        raise DatasetError(f'{name}: has one class ("{classes[0]}"); a classifier needs at least 2')
    items = _items(kept, classes, val_fraction)
    notes = [(str(f.path), look.note) for f, look in kept if look.note]
    notes += _check_classes(name, classes, items)
    notes += _check_duplicates(items, allow_leakage=allow_leakage)
    audit = Audit(len(found), bad, tuple(notes))
    absolute = name if name in BUILT_IN else str(Path(name).resolve())
    opened = Source(absolute, val_fraction, allow_leakage)
    return Dataset(name, classes, tuple(items), _digest(classes, items), audit, opened)


def calibration_sample(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """Picks pictures for calibration: equally from each class, by content hash, so the choice is stable.

    Args:
        items: Where to pick from (the training split).
        count: How many; all are taken where there are fewer.
    """
    by_class: dict[int, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda i: _salted(i.sha256, "calibration")):
        by_class[item.label].append(item)
    rounds = max((len(v) for v in by_class.values()), default=0)
    ordered = [by_class[label][r] for r in range(rounds) for label in sorted(by_class) if r < len(by_class[label])]
    return tuple(ordered[:count])


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


_LAYOUTS = "root/{train,val}/class/picture, root/class/picture, a CSV table, or the name digits"


def _discover(source: str) -> Iterator[_Found]:
    if source == "digits":
        yield from _discover_folder(_digits_folder())
        return
    path = Path(source)
    if path.is_dir():
        yield from _discover_folder(path)
    elif path.suffix.lower() == ".csv" and path.is_file():
        yield from _discover_table(path)
    elif path.exists():
        raise DatasetError(f"{source}: is neither a folder nor a .csv table; expected {_LAYOUTS}")
    else:
        raise DatasetError(f"{source}: no such folder or table; expected {_LAYOUTS}")


def _digits_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetl"
    folder = cache / "digits-1"
    if not folder.is_dir():
        try:
            write_digits(folder)
        except InputError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def _discover_folder(root: Path) -> Iterator[_Found]:
    folders = _subfolders(root)
    names = {f.name for f in folders}
    if "train" in names and names <= set(SPLITS):
        if "val" not in names:
            raise DatasetError(f"{root}: has train/ but no val/; add it, or put the classes directly in {root}")
        for split in folders:
            for folder in _subfolders(split):
                yield from (_Found(p, folder.name, split.name) for p in _pictures(folder, root))
        return
    if "train" in names and names & _OTHER_SPLITS:
        odd = ", ".join(sorted(names - set(SPLITS)))
        raise DatasetError(
            f"{root}: has the splits train/, val/, test/ mixed with {odd}; rename or move what is no split"
        )
    for folder in folders:
        yield from (_Found(p, folder.name, None) for p in _pictures(folder, root))


def _subfolders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path, root: Path) -> list[Path]:
    paths = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file() and not p.name.startswith(".")
    )
    if not paths:
        raise DatasetError(f"{folder}: class without pictures; add some or delete the folder from {root}")
    return paths


def _discover_table(table: Path) -> Iterator[_Found]:
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
        yield _Found(table.parent / row["path"], row["label"], split)


@dataclass(frozen=True)
class _Look:
    sha256: str = ""
    bad: str = ""
    note: str = ""


def _look_at_all(found: Sequence[_Found], on_progress: Callable[[int, int], None] | None) -> list[_Look]:
    looks = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for look in pool.map(lambda f: _look(f.path), found):
            looks.append(look)
            if on_progress is not None:
                on_progress(len(looks), len(found))
    return looks


def _look(path: Path) -> _Look:
    """Reads and decodes one file, and says what is wrong or unusual about it."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        return _Look(bad=f"cannot be read ({getattr(error, 'strerror', error)})")
    if not data:
        return _Look(bad="zero bytes")
    try:
        note = _remark(data)
        image = decode(data, _AUDIT_SPEC)
    except PictureError as error:
        return _Look(bad=str(error).removeprefix("picture bytes: "))
    if min(image.size) < _SMALLEST_SIDE:
        return _Look(bad=f"{image.width} x {image.height} pixels")
    return _Look(hashlib.sha256(data).hexdigest(), note=note)


_AUDIT_SPEC = PreprocessSpec()


def _remark(data: bytes) -> str:
    """Names what is unusual about a picture that can be used, read from its header."""
    remarks = []
    try:
        with without_warnings(), Image.open(io.BytesIO(data)) as image:
            if image.mode == "CMYK":
                remarks.append("CMYK, converted")
            if image.mode.startswith("I") or image.mode == "F":
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


def _items(kept: Iterable[tuple[_Found, _Look]], classes: Sequence[str], val_fraction: float) -> list[Item]:
    index = {name: i for i, name in enumerate(classes)}
    given: list[Item] = []
    free: dict[int, list[Item]] = defaultdict(list)
    for found, look in kept:
        item = Item(found.path, index[found.label], found.split or "", look.sha256)
        (given if found.split else free[item.label]).append(item)
    for members in free.values():
        given += _split_class(members, val_fraction)
    return sorted(given, key=lambda i: (SPLITS.index(i.split), i.label, i.sha256, i.path.name))


def _split_class(items: list[Item], val_fraction: float) -> list[Item]:
    """Sends a picture to ``val`` by its own content alone, so that new files move no old ones.

    Only where that would leave a class without training or without validation pictures, the one nearest
    to the line changes sides.
    """
    place = {item.sha256: int(_salted(item.sha256, "split")[:13], 16) / 16**13 for item in items}
    val = {digest for digest, where in place.items() if where < val_fraction}
    ordered = sorted(place, key=lambda digest: place[digest])
    if not val and len(ordered) > 1:
        val = {ordered[0]}
    elif len(val) == len(ordered):
        val.discard(ordered[-1])
    return [replace(item, split="val" if item.sha256 in val else "train") for item in items]


def _salted(digest: str, purpose: str) -> str:
    return hashlib.sha256(f"edgetl:{purpose}:{digest}".encode()).hexdigest()


def _check_classes(source: str, classes: Sequence[str], items: Sequence[Item]) -> list[tuple[str, str]]:
    train = Counter(item.label for item in items if item.split == "train")
    val = Counter(item.label for item in items if item.split == "val")
    empty = [name for i, name in enumerate(classes) if train[i] == 0]
    if empty:
        raise DatasetError(f'{source}: class "{empty[0]}" has no readable training pictures; add some or remove it')
    if not val:
        raise DatasetError(f"{source}: no class has 2 or more pictures, so nothing is left for validation; add some")
    notes = [
        (name, "one training picture: expect little of this class") for i, name in enumerate(classes) if train[i] == 1
    ]
    return notes + [(name, "no validation picture: not judged") for i, name in enumerate(classes) if val[i] == 0]


def _check_duplicates(items: Sequence[Item], *, allow_leakage: bool) -> list[tuple[str, str]]:
    seen: dict[str, Item] = {}
    notes = []
    for item in items:
        first = seen.setdefault(item.sha256, item)
        if first is item:
            continue
        if first.split != item.split and not allow_leakage:
            raise DatasetError(
                f"{item.path}: the same picture as {first.path}, in {item.split} and in {first.split}; "
                "delete one, or allow it with --allow-leakage"
            )
        where = "another class" if first.label != item.label else "the same class"
        notes.append((str(item.path), f"the same picture as {first.path}, in {where}"))
    return notes


def _digest(classes: Sequence[str], items: Sequence[Item]) -> str:
    rows = sorted([item.sha256, item.label, item.split] for item in items)
    return hashlib.sha256(canonical_json([list(classes), rows])).hexdigest()
