"""The collection: items in a fixed order, split by content, with what was found on the way."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgetl.artifacts import printable
from edgetl.canonical import canonical_json
from edgetl.dataset.look import Audit, Look, look_at_all
from edgetl.dataset.originals import original_of
from edgetl.dataset.sources import BUILT_IN, EXTENSIONS, LAYOUTS, SPLITS, Found, discover, located
from edgetl.errors import DatasetError

__all__ = ["VAL_FRACTION", "Dataset", "Item", "Source", "calibration_sample", "open_dataset"]

VAL_FRACTION = 0.2
MAX_BAD_FRACTION = 0.05


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


def open_dataset(
    source: str | Path,
    *,
    val_fraction: float = VAL_FRACTION,
    allow_leakage: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Reads and audits a collection; every picture is decoded once.

    Args:
        source: Folder, CSV table, the name ``digits``, or one like ``cifar10:DIR``.
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
    if isinstance(source, Path) and (name in BUILT_IN or located(name)):  # a folder of that name
        name = f"./{name}"
    found = list(discover(name, on_progress))
    if not found:
        raise DatasetError(f"{name}: holds no pictures ({', '.join(sorted(EXTENSIONS))}); expected {LAYOUTS}")
    looks = look_at_all(found, on_progress)
    bad = tuple((printable(f.path), look.bad) for f, look in zip(found, looks, strict=True) if look.bad)
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
    notes = [(printable(f.path), look.note) for f, look in kept if look.note]
    notes += _check_classes(name, classes, items, given=any(f.split for f in found))
    original = None if isinstance(source, Path) else original_of(name)
    # CIFAR's own splits share a few pictures; everybody's figures are on them as they are.
    notes += _check_duplicates(items, allow_leakage=allow_leakage or original is not None)
    audit = Audit(len(found), bad, tuple(notes))
    place = None if isinstance(source, Path) else located(name)
    if place is not None:
        absolute = f"{place[0]}:{place[1].resolve()}"
    else:
        absolute = name if name in BUILT_IN else str(Path(name).resolve())
    opened = Source(absolute, val_fraction, allow_leakage)
    return Dataset(printable(name), classes, tuple(items), _digest(classes, items), audit, opened)


def calibration_sample(items: Sequence[Item], count: int, *, each: int | None = None) -> tuple[Item, ...]:
    """Picks pictures for calibration: equally from each class, by content hash, so the choice is stable.

    Args:
        items: Where to pick from (the training split); of equal pictures one is taken.
        count: How many; all are taken where there are fewer.
        each: How many of one class at the most.

    Returns:
        The pictures in an order that has nothing to do with their classes: any part of them is a sample of the whole.
    """
    by_class: dict[int, list[Item]] = defaultdict(list)
    for item in sorted({i.sha256: i for i in items}.values(), key=_calibration_order):
        by_class[item.label].append(item)
    rounds = max((len(v[:each]) for v in by_class.values()), default=0)
    turns = [sorted((v[r] for v in by_class.values() if r < len(v)), key=_calibration_order) for r in range(rounds)]
    taken = [item for turn in turns for item in turn][:count]
    return tuple(sorted(taken, key=lambda item: _salted(item.sha256, "calibration order")))


def _calibration_order(item: Item) -> str:
    return _salted(item.sha256, "calibration")


def _items(kept: Iterable[tuple[Found, Look]], classes: Sequence[str], val_fraction: float) -> list[Item]:
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


def _check_classes(source: str, classes: Sequence[str], items: Sequence[Item], *, given: bool) -> list[tuple[str, str]]:
    train = Counter(item.label for item in items if item.split == "train")
    val = Counter(item.label for item in items if item.split == "val")
    empty = [name for i, name in enumerate(classes) if train[i] == 0]
    if empty:
        raise DatasetError(f'{source}: class "{empty[0]}" has no readable training pictures; add some or remove it')
    if not val and given:
        raise DatasetError(f"{source}: names no usable picture of the split val; add some, or leave the splits out")
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
        notes.append((printable(item.path), f"the same picture as {printable(first.path)}, in {where}"))
    return notes


def _digest(classes: Sequence[str], items: Sequence[Item]) -> str:
    rows = sorted([item.sha256, item.label, item.split] for item in items)
    return hashlib.sha256(canonical_json([list(classes), rows])).hexdigest()
