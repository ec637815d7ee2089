"""edgetl.dataset: layouts, splits that stay, and an audit that tells everything."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import encoded, noise

from edgetl.dataset import Item, calibration_sample, open_dataset, write_digits
from edgetl.errors import DatasetError, InputError


def picture(seed: int) -> bytes:
    return encoded(Image.fromarray(noise(4, 4, seed=seed)))


def fill(folder: Path, count: int, *, first: int = 0) -> Path:
    """Writes ``count`` different pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"{seed:04d}.png").write_bytes(picture(seed))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """100 pictures of two classes, not split."""
    fill(tmp_path / "photos" / "cat", 50)
    fill(tmp_path / "photos" / "dog", 50, first=1000)
    return tmp_path / "photos"


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """Two classes, split by folders."""
    root = tmp_path / "parted"
    fill(root / "train" / "cat", 3)
    fill(root / "train" / "dog", 2, first=10)
    fill(root / "val" / "cat", 1, first=20)
    fill(root / "val" / "dog", 1, first=30)
    return root


def refusal(source: object, **options: object) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def places(data) -> dict[str, str]:
    return {item.sha256: item.split for item in data.items}


# Layouts


def test_split_folders(parted):
    fill(parted / "test" / "cat", 2, first=40)

    data = open_dataset(parted)

    assert data.classes == ("cat", "dog")
    assert Counter((i.split, i.label) for i in data.items) == {
        ("train", 0): 3, ("train", 1): 2, ("val", 0): 1, ("val", 1): 1, ("test", 0): 2,
    }  # fmt: skip
    assert [i.split for i in data.items] == ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    assert data.split("val") == data.items[5:7]
    assert all(i.path.parent.name == data.classes[i.label] for i in data.items)
    assert data.audit.pictures == 9
    assert (data.audit.bad, data.source.name) == ((), str(parted.resolve()))


def test_class_folders_with_subfolders_and_other_files(tmp_path):
    fill(tmp_path / "cat" / "indoors" / "2024", 5)
    fill(tmp_path / "dog", 5, first=100)
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"not a picture either")
    (tmp_path / ".thumbnails").mkdir()

    data = open_dataset(str(tmp_path))

    assert data.classes == ("cat", "dog")
    assert Counter(i.label for i in data.items) == {0: 5, 1: 5}
    assert {i.split for i in data.items} == {"train", "val"}


def test_table(tmp_path):
    fill(tmp_path / "pictures", 6)
    rows = [
        "path,label,split",
        *(f"pictures/{i:04d}.png,{'ab'[i % 2]},{'train' if i < 4 else 'val'}" for i in range(6)),
    ]
    (tmp_path / "table.csv").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")

    data = open_dataset(tmp_path / "table.csv")

    assert data.classes == ("a", "b")
    assert [(int(i.path.stem), i.label, i.split) for i in sorted(data.items, key=lambda i: i.path)] == [
        (0, 0, "train"), (1, 1, "train"), (2, 0, "train"), (3, 1, "train"), (4, 0, "val"), (5, 1, "val"),
    ]  # fmt: skip


def test_table_without_split_is_split_as_folders_are(photos):
    rows = [f"{p.relative_to(photos.parent)},{p.parent.name}" for p in photos.rglob("*.png")]
    table = photos.parent / "table.csv"
    table.write_text("path,label\n" + "\n".join(rows))

    assert open_dataset(table).digest == open_dataset(photos).digest


def test_digits_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    data = open_dataset("digits")
    written = (tmp_path / "edgetl" / "digits-1").stat().st_mtime_ns
    again = open_dataset("digits")

    assert data.classes == tuple("0123456789")
    assert (len(data.split("train")), len(data.split("val"))) == (1348, 449)
    assert data.source.name == "digits"
    assert again == data
    assert (tmp_path / "edgetl" / "digits-1").stat().st_mtime_ns == written


def test_write_digits_can_be_limited(tmp_path):
    write_digits(tmp_path / "few", only=(3, 7), per_class=4)

    data = open_dataset(tmp_path / "few")

    assert data.classes == ("3", "7")
    assert Counter(i.label for i in data.split("train")) == {0: 4, 1: 4}
    with Image.open(data.items[0].path) as scan:
        assert (scan.size, scan.mode) == ((8, 8), "L")
    with pytest.raises(InputError, match="exists already"):
        write_digits(tmp_path / "few")


# Splits


def test_split_is_stable_when_files_are_added(photos):
    before = places(open_dataset(photos))

    fill(photos / "cat", 60, first=5000)
    fill(photos / "dog", 5, first=6000)
    fill(photos / "owl", 10, first=7000)
    after = places(open_dataset(photos))

    assert len(after) == len(before) + 75
    assert {sha: after[sha] for sha in before} == before


def test_split_does_not_know_names_or_order(photos, tmp_path):
    files = list(photos.rglob("*.png"))
    random.Random(0).shuffle(files)
    for i, path in enumerate(files):
        folder = tmp_path / "renamed" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"z{i:03d}.png")

    data, renamed = open_dataset(photos), open_dataset(tmp_path / "renamed")

    assert places(renamed) == places(data)
    assert renamed.digest == data.digest
    assert [i.sha256 for i in renamed.items] == [i.sha256 for i in data.items]


def test_split_follows_the_fraction(tmp_path):
    fill(tmp_path / "a", 200)
    fill(tmp_path / "b", 200, first=1000)
    small, large = (open_dataset(tmp_path, val_fraction=f) for f in (0.1, 0.5))

    # 400 draws: three standard deviations are 18 and 30.
    assert abs(len(small.split("val")) - 40) <= 18
    assert abs(len(large.split("val")) - 200) <= 30
    assert {i.sha256 for i in small.split("val")} < {i.sha256 for i in large.split("val")}
    assert large.source.val_fraction == 0.5


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_every_class_keeps_both_splits(photos, fraction):
    data = open_dataset(photos, val_fraction=fraction)

    smaller = data.split("val" if fraction < 0.5 else "train")
    assert {i.label for i in data.split("train")} == {i.label for i in data.split("val")} == {0, 1}
    assert len(smaller) <= 4


@pytest.mark.parametrize("fraction", [0, 1, -0.5, float("nan")])
def test_fraction_out_of_range(photos, fraction):
    assert refusal(photos, val_fraction=fraction) == f"val fraction is {fraction}: it must be between 0 and 1"


def test_digest_tells_content_label_and_split(parted):
    digests = {open_dataset(parted).digest}
    (parted / "train" / "cat" / "0000.png").rename(parted / "train" / "dog" / "0000.png")
    digests.add(open_dataset(parted).digest)
    (parted / "train" / "dog" / "0000.png").rename(parted / "val" / "dog" / "0000.png")
    digests.add(open_dataset(parted).digest)
    (parted / "val" / "dog" / "0000.png").write_bytes(picture(99))
    digests.add(open_dataset(parted).digest)
    (parted / "val" / "dog").rename(parted / "val" / "fox")
    (parted / "train" / "dog").rename(parted / "train" / "fox")
    digests.add(open_dataset(parted).digest)

    assert len(digests) == 5


# Audit


def test_bad_files_are_listed_with_reasons_and_left_out(photos):
    jpeg = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    bad = {
        "a.jpg": (b"", "zero bytes"),
        "b.jpg": (jpeg[:-300], "cannot be decoded (image file is truncated"),
        "c.jpg": (b"hello, I am text", "is not a picture that can be read (or is empty)"),
        "d.png": (encoded(Image.new("RGB", (1, 1))), "1 x 1 pixels"),
        "e.png": (encoded(Image.new("1", (10_000, 10_000)), compress_level=1), "100 megapixels, more than 89"),
    }
    for name, (data, _) in bad.items():
        (photos / "cat" / name).write_bytes(data)

    data = open_dataset(photos)

    assert data.audit.pictures == 105
    assert [Path(path).name for path, _ in data.audit.bad] == sorted(bad)
    for path, reason in data.audit.bad:
        assert reason.startswith(bad[Path(path).name][1])
    assert len(data.items) == 100
    assert not {i.path.name for i in data.items} & set(bad)
    assert data.audit.to_dict()["bad"][0] == {"path": str(photos / "cat" / "a.jpg"), "reason": "zero bytes"}


def test_more_than_a_twentieth_bad_is_an_error(photos):
    for i in range(6):
        (photos / "dog" / f"bad{i}.jpg").write_bytes(b"")

    assert refusal(photos) == (
        f"{photos}: 6 of 106 files are bad, more than 5%; the first: {photos / 'dog' / 'bad0.jpg'}: zero bytes; "
        "mend or delete them"
    )


def test_unusual_pictures_are_kept_and_noted(photos):
    turned = Image.Exif()
    turned[0x0112] = 8
    rgb = Image.fromarray(noise(4, 6, seed=1))
    unusual = {
        "cmyk.jpg": (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "CMYK, converted"),
        "deep.png": (encoded(Image.fromarray(np.full((4, 4), 999, np.uint16))), "16-bit, upper 8 bits used"),
        "palette.png": (encoded(rgb.quantize(8)), "palette, converted"),
        "turned.jpg": (encoded(rgb, "JPEG", exif=turned), "rotated by its EXIF orientation"),
        "animated.gif": (
            encoded(Image.new("L", (4, 4)), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 255)]),
            "palette, converted; animated, first frame used",
        ),
        "large.png": (encoded(Image.new("1", (5000, 5000)), compress_level=1), "25 megapixels, slow to decode"),
    }
    for name, (data, _) in unusual.items():
        (photos / "cat" / name).write_bytes(data)

    data = open_dataset(photos)

    assert {Path(path).name: note for path, note in data.audit.notes} == {n: note for n, (_, note) in unusual.items()}
    assert len(data.items) == 106
    assert {"path": str(photos / "cat" / "deep.png"), "note": "16-bit, upper 8 bits used"} in (
        data.audit.to_dict()["notes"]
    )


def test_progress_counts_to_the_end(parted):
    seen: list[tuple[int, int]] = []
    open_dataset(parted, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 7) for i in range(1, 8)]


# Classes


def test_empty_class(photos):
    (photos / "owl").mkdir()
    assert refusal(photos) == (f"{photos / 'owl'}: class without pictures; add some or delete the folder from {photos}")


def test_class_whose_pictures_are_all_bad(photos):
    fill(photos / "owl", 1)
    (photos / "owl" / "0000.png").write_bytes(b"")
    assert refusal(photos) == f'{photos}: class "owl" has no readable training pictures; add some or remove it'


def test_class_that_is_in_val_alone(parted):
    fill(parted / "val" / "owl", 1, first=50)
    assert refusal(parted) == f'{parted}: class "owl" has no readable training pictures; add some or remove it'


def test_class_of_one_picture_is_noted(photos):
    fill(photos / "owl", 1, first=7000)

    data = open_dataset(photos)

    assert ("owl", "one training picture: expect little of this class") in data.audit.notes
    assert ("owl", "no validation picture: not judged") in data.audit.notes
    assert [i.split for i in data.items if i.label == 2] == ["train"]


def test_one_class_is_not_enough(tmp_path):
    fill(tmp_path / "cat", 3)
    assert refusal(tmp_path) == f'{tmp_path}: has one class ("cat"); a classifier needs at least 2'


def test_one_picture_in_every_class_leaves_nothing_to_validate(tmp_path):
    fill(tmp_path / "cat", 1)
    fill(tmp_path / "dog", 1, first=9)
    assert refusal(tmp_path) == (
        f"{tmp_path}: no class has 2 or more pictures, so nothing is left for validation; add some"
    )


# The same picture twice


def test_same_picture_in_two_splits(parted):
    copy = parted / "val" / "cat" / "copy.png"
    shutil.copy(parted / "train" / "cat" / "0001.png", copy)

    assert refusal(parted) == (
        f"{copy}: the same picture as {parted / 'train' / 'cat' / '0001.png'}, in val and in train; "
        "delete one, or allow it with --allow-leakage"
    )
    allowed = open_dataset(parted, allow_leakage=True)
    assert len(allowed.items) == 8
    assert allowed.source.allow_leakage
    assert (str(copy), f"the same picture as {parted / 'train' / 'cat' / '0001.png'}, in the same class") in (
        allowed.audit.notes
    )


def test_same_picture_twice_in_one_class_stays_on_one_side(photos):
    for path in (photos / "cat").glob("*.png"):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))

    data = open_dataset(photos)

    assert len(data.items) == 150
    assert len({(i.sha256, i.split) for i in data.items}) == 100
    assert len(data.audit.notes) == 50


def test_same_picture_in_two_classes_is_noted(parted):
    shutil.copy(parted / "train" / "cat" / "0001.png", parted / "train" / "dog" / "copy.png")
    notes = open_dataset(parted).audit.notes
    assert [note for _, note in notes] == [
        f"the same picture as {parted / 'train' / 'cat' / '0001.png'}, in another class"
    ]


# Sources that cannot be used


def test_sources_that_cannot_be_used(tmp_path):
    (tmp_path / "file.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    kinds = ", ".join(f"{kind}:DIR" for kind in ("cifar10", "cifar100", "mnist", "fashion-mnist", "webdataset"))
    layouts = f"expected root/{{train,val}}/class/picture, root/class/picture, a CSV table, digits, or one of {kinds}"

    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such folder or table; {layouts}"
    assert refusal(tmp_path / "file.zip") == f"{tmp_path / 'file.zip'}: is neither a folder nor a .csv table; {layouts}"
    assert refusal(tmp_path / "empty").startswith(f"{tmp_path / 'empty'}: holds no pictures (.avif, .bmp, .gif,")


def test_train_without_val(parted):
    shutil.rmtree(parted / "val")
    assert refusal(parted) == f"{parted}: has train/ but no val/; add it, or put the classes directly in {parted}"


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "valid"), ("train", "validation"), ("training", "validation"), ("Train", "Val"), ("train", "backup")],
)
def test_splits_of_other_names_are_not_taken_for_classes(parted, train, val):
    (parted / "train").rename(parted / train)
    (parted / "val").rename(parted / val)
    assert refusal(parted).endswith(
        "/ holds folders and looks like a split, but splits are named train/, val/ and test/ and stand alone; "
        "rename it, or move what is no split"
    )


def test_a_table_without_val_is_told_so(tmp_path):
    fill(tmp_path / "a", 2)
    fill(tmp_path / "b", 2, first=10)
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name},train" for p in sorted(tmp_path.glob("*/*.png"))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    assert "names no usable picture of the split val" in refusal(table)


def test_narrow_pictures_foreign_formats_and_odd_names_are_listed_not_fatal(tmp_path):
    fill(tmp_path / "a", 40)
    fill(tmp_path / "b", 40, first=100)
    Image.new("RGB", (300, 2)).save(tmp_path / "a" / "narrow.png")
    (tmp_path / "a" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    odd = os.fsdecode(os.fsencode(tmp_path / "b") + b"/caf\xe9.png")
    Image.new("P", (8, 8)).save(odd)
    audit = open_dataset(tmp_path).audit
    reasons = {Path(path).name: reason for path, reason in audit.bad}
    assert reasons["narrow.png"] == "300 x 2 pixels, too narrow"
    assert "is not a picture that can be read" in reasons["phone.heic"]
    assert [note for path, note in audit.notes if path.endswith("caf\\udce9.png")] == ["palette, converted"]
    json.dumps(audit.to_dict(), ensure_ascii=False).encode()


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path / "train", 5)
    fill(tmp_path / "plane", 5, first=100)
    assert open_dataset(tmp_path).classes == ("plane", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path;label\na.png;x\n", ": first line must name the columns path,label[,split], not path;label"),
        ("file,label\na.png,x,surplus\n", ": first line must name the columns path,label[,split], not file,label"),
        ("a.png,x\n", ": first line must name the columns path,label[,split], not a.png,x"),
        ("", ": first line must name the columns path,label[,split], not "),
        ("path,label\na.png,\n", ":2: path or label is empty"),
        ("path,label\n\n\na.png,x\n,x\n", ":5: path or label is empty"),
        ("path,label\na.png\n", ":2: path or label is empty"),
        (
            'path,label,split\na.png,"x\ny",train\nb.png,x,valid\n',
            ':4: split is "valid", it must be one of train, val, test',
        ),
        ("path,label\n", ": holds no pictures ("),
        (b"path,label\n\xff.png,x\n", ": cannot be read as CSV ("),
    ],
    ids=[
        "semicolons",
        "wrong-column",
        "no-header",
        "empty",
        "no-label",
        "blank-lines",
        "short",
        "split",
        "bare",
        "latin",
    ],
)
def test_table_errors_name_file_and_line(tmp_path, text, message):
    table = tmp_path / "table.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(table).startswith(f"{table}{message}")


@pytest.mark.parametrize(("path", "reason"), [("none.png", "No such file or directory"), ("a\0b.png", "embedded null")])
def test_table_that_names_an_absent_file(tmp_path, path, reason):
    (tmp_path / "table.csv").write_text(f"path,label\n{path},x\n{path},y\n")
    assert re.search(rf"2 of 2 files are bad.*cannot be read \({reason}", refusal(tmp_path / "table.csv"))


# Calibration


def items(*counts: int) -> list[Item]:
    return [
        Item(Path(f"{label}-{i}.png"), label, "train", f"{label * 1000 + i:064x}")
        for label, count in enumerate(counts)
        for i in range(count)
    ]


def test_calibration_takes_equally_from_every_class():
    sample = calibration_sample(items(100, 50, 2), 30)

    assert Counter(i.label for i in sample) == {0: 14, 1: 14, 2: 2}
    assert len(set(sample)) == 30


def test_a_large_class_does_not_fill_what_small_ones_leave():
    assert Counter(i.label for i in calibration_sample(items(100, 50, 2), 60, each=20)) == {0: 20, 1: 20, 2: 2}


@pytest.mark.parametrize("count", [1, 7, 64])
def test_calibration_is_deterministic_and_does_not_know_the_order(count):
    given = items(40, 30)
    shuffled = random.Random(count).sample(given, len(given))

    sample = calibration_sample(given, count)

    assert len(sample) == count
    assert calibration_sample(given, count) == sample
    assert calibration_sample(shuffled, count) == sample


def test_a_larger_calibration_sample_holds_the_smaller():
    given = items(40, 30)
    assert set(calibration_sample(given, 20)) < set(calibration_sample(given, 50))


def test_any_part_of_a_calibration_sample_is_one_of_all_its_classes():
    """The last quarter judges what the others taught: it must not be what was left of the largest class."""
    sample = calibration_sample(items(1000, 40, 40), 300)
    assert Counter(i.label for i in sample) == {0: 220, 1: 40, 2: 40}
    judged = Counter(i.label for i in sample[-64:])
    assert 38 <= judged[0] <= 56
    assert min(judged[1], judged[2]) >= 3


def test_calibration_of_more_classes_than_pictures_takes_them_from_everywhere():
    sample = calibration_sample(items(*[5] * 200), 50)
    labels = {i.label for i in sample}
    assert len(labels) == 50
    assert min(labels) < 40
    assert max(labels) > 160


def test_calibration_takes_equal_pictures_once():
    given = items(10, 10)
    twice = [*given, *(replace(item, path=Path(f"copy-{item.path}")) for item in given)]
    assert len({i.sha256 for i in calibration_sample(twice, 100)}) == len(calibration_sample(twice, 100)) == 20


def test_calibration_does_not_take_the_first_files():
    chosen = {int(i.path.stem.split("-")[1]) for i in calibration_sample(items(1000), 10)}
    assert max(chosen) > 100


def test_calibration_takes_all_where_there_are_fewer():
    assert set(calibration_sample(items(3, 2), 100)) == set(items(3, 2))
    assert calibration_sample([], 5) == ()
