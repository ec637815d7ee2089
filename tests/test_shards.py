"""WebDataset shards: what is in them is what comes out, and a hostile name writes nowhere."""

import io
import json
import tarfile

import pytest
from PIL import Image
from tiny import encoded, noise

from edgetl.artifacts import cache_folder
from edgetl.dataset import open_dataset
from edgetl.errors import DatasetError


def picture(seed, kind="PNG"):
    return encoded(Image.fromarray(noise(12, 10, seed=seed)), kind)


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Two shards for training, one for validation; labels by number, by name and in JSON."""
    for number in range(2):
        members = []
        for i in range(3):
            members += [(f"a/{number}{i}.png", picture(number * 10 + i)), (f"a/{number}{i}.cls", str(i % 2).encode())]
        write_shard(tmp_path / "train" / f"s-{number:03d}.tar", members)
    write_shard(
        tmp_path / "val" / "s-000.tar",
        [
            ("x.json", json.dumps({"label": "bolt"}).encode()),
            ("x.seg.txt", b"not ours"),
            ("x.png", picture(50)),
            ("y.png", picture(51)),
            ("y.cls", b"1\n"),
        ],
    )
    (tmp_path / "classes.txt").write_text("bolt\nnut\n")
    return tmp_path


def test_samples_keep_their_pictures_labels_and_splits(shards):
    dataset = open_dataset(f"webdataset:{shards}")
    assert dataset.classes == ("bolt", "nut")
    assert dataset.source.name == f"webdataset:{shards}"
    found = {(i.split, i.path.read_bytes()): dataset.classes[i.label] for i in dataset.items}
    wanted = {("train", picture(n * 10 + i)): ("bolt", "nut")[i % 2] for n in range(2) for i in range(3)}
    assert found == {**wanted, ("val", picture(50)): "bolt", ("val", picture(51)): "nut"}


def test_they_are_unpacked_once_until_a_shard_changes(shards):
    first = open_dataset(f"webdataset:{shards}").items[0].path
    assert open_dataset(f"webdataset:{shards}").items[0].path == first
    write_shard(shards / "train" / "s-002.tar", [("n.png", picture(99)), ("n.cls", b"nut")])
    assert len(open_dataset(f"webdataset:{shards}").split("train")) == 7


def test_without_folders_of_splits_the_content_splits(tmp_path):
    members = []
    for i in range(40):
        members += [(f"{i:03d}.png", picture(i)), (f"{i:03d}.cls", b"ab"[i % 2 : i % 2 + 1])]
    write_shard(tmp_path / "all.tar", members)
    dataset = open_dataset(f"webdataset:{tmp_path}")
    assert dataset.classes == ("a", "b")
    assert 0 < len(dataset.split("val")) < 20


def test_a_member_cannot_leave_the_cache(tmp_path):
    outside = cache_folder().parent / "escaped.png"
    members = [(f"../../{outside.name}", picture(1)), (f"../../{outside.stem}.cls", b"a")]
    members += [("/tmp/edgetl-escaped.png", picture(2)), ("/tmp/edgetl-escaped.cls", b"b")]
    write_shard(tmp_path / "train" / "s.tar", members)
    write_shard(tmp_path / "val" / "s.tar", [("v.png", picture(3)), ("v.cls", b"a")])
    dataset = open_dataset(f"webdataset:{tmp_path}")
    assert len(dataset.items) == 3
    assert all(item.path.is_relative_to(cache_folder()) for item in dataset.items)
    assert not outside.exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], "a has a picture and no label; expected a.cls or a.json beside it"),
        ([("a.txt", b"x")], "holds no pictures"),
        ([("a.png", b"x"), ("a.json", b"{")], "a.json: cannot be read"),
        ([("a.png", b"x"), ("a.json", b'{"name": 3}')], "a has a picture and no label"),
        ([("a.jpg", b"x"), ("a.png", b"y"), ("a.cls", b"1")], "a has two pictures (.jpg and .png), and which to learn"),
        ([("a.png", b"x"), ("b.png", b"y"), ("a.png", b"z")], "a has two pictures (.png and .png), and which to learn"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_kept(members, message, tmp_path):
    write_shard(tmp_path / "s.tar", members)
    before = sorted(cache_folder().glob("webdataset-*"))
    with pytest.raises(DatasetError) as caught:
        open_dataset(f"webdataset:{tmp_path}")
    assert message in str(caught.value)
    assert sorted(cache_folder().glob("webdataset-*")) == before


def test_a_label_beyond_the_names_and_a_damaged_shard_are_named(shards):
    write_shard(shards / "train" / "s-009.tar", [("n.png", picture(1)), ("n.cls", b"2")])
    with pytest.raises(DatasetError, match=r"s-009\.tar: a label is 2, and classes\.txt has 2 lines"):
        open_dataset(f"webdataset:{shards}")
    shard = shards / "train" / "s-009.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DatasetError, match=r"s-009\.tar: cannot be read as tar"):
        open_dataset(f"webdataset:{shards}")
    with pytest.raises(DatasetError, match="holds no shards; expected"):
        open_dataset(f"webdataset:{shards / 'none'}")
