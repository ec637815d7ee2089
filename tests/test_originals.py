"""CIFAR and MNIST as published: pixel by pixel, label by label, and nothing run that a file names."""

import gzip
import hashlib
import http.server
import os
import pickle
import threading

import numpy as np
import pytest
from originals import CIFAR10, blobs, write_cifar10, write_cifar100, write_mnist
from PIL import Image

from edgetl.artifacts import cache_folder
from edgetl.dataset import open_dataset
from edgetl.errors import DatasetError, InputError


def pixels(item):
    return np.asarray(Image.open(item.path))


def by_content(dataset, split):
    return sorted((pixels(item).tobytes(), dataset.classes[item.label]) for item in dataset.split(split))


@pytest.mark.parametrize("binary", [False, True])
def test_cifar10_is_read_as_it_is(binary, tmp_path):
    dataset = open_dataset(f"cifar10:{write_cifar10(tmp_path, each=12, binary=binary)}")
    assert dataset.classes == tuple(sorted(CIFAR10))
    assert {split: len(dataset.split(split)) for split in ("train", "val")} == {"train": 60, "val": 12}
    pictures, labels = blobs(12, 10, 32, 3, seed=5)  # the test file
    assert by_content(dataset, "val") == sorted(
        (p.tobytes(), CIFAR10[label]) for p, label in zip(pictures, labels, strict=True)
    )


def test_both_forms_of_cifar_are_the_same_data(tmp_path):
    ours = open_dataset(f"cifar100:{write_cifar100(tmp_path / 'a')}")
    theirs = open_dataset(f"cifar100:{write_cifar100(tmp_path / 'b', binary=True)}")
    assert ours.digest == theirs.digest
    assert len(ours.classes) == 100
    assert ours.source.name == f"cifar100:{tmp_path / 'a'}"
    assert len(ours.split("train")) == 200


@pytest.mark.parametrize(("folder", "zipped"), [("MNIST/raw", False), (".", True)])
def test_mnist_is_read_as_it_is(folder, zipped, tmp_path):
    dataset = open_dataset(f"mnist:{write_mnist(tmp_path / 'd', folder=folder, zipped=zipped)}")
    assert dataset.classes == tuple("0123456789")
    pictures, labels = blobs(20, 10, 28, 1, seed=91)
    assert by_content(dataset, "val") == sorted(
        (p.tobytes(), str(label)) for p, label in zip(pictures[..., 0], labels, strict=True)
    )


def test_fashion_keeps_its_names(tmp_path):
    dataset = open_dataset(f"fashion-mnist:{write_mnist(tmp_path, folder='FashionMNIST/raw')}")
    assert "T-shirt/top" in dataset.classes
    assert len(dataset.classes) == 10


def test_files_are_unpacked_once_and_named_by_their_content(tmp_path):
    write_mnist(tmp_path / "one")
    write_mnist(tmp_path / "other")
    first = open_dataset(f"mnist:{tmp_path / 'one'}").items[0].path
    before = first.stat().st_mtime_ns
    assert open_dataset(f"mnist:{tmp_path / 'other'}").items[0].path == first
    assert first.stat().st_mtime_ns == before
    assert first.is_relative_to(cache_folder())


def test_a_pickle_that_names_code_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil(), b"labels": [0]}))
    with pytest.raises(DatasetError, match=r"is not cifar10 as published \(it names posix\.mkdir"):
        open_dataset(f"cifar10:{tmp_path}")
    assert not (tmp_path / "made").exists()


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no mnist as published .* or give --download"):
        open_dataset(f"mnist:{tmp_path}")
    write_mnist(tmp_path)
    images = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match="47040 bytes announced, 47039 there"):
        open_dataset(f"mnist:{tmp_path}")
    images.write_bytes(b"\x00\x00\x0d\x03" + whole[4:])
    with pytest.raises(DatasetError, match="no idx file of unsigned bytes"):
        open_dataset(f"mnist:{tmp_path}")
    images.unlink()
    with pytest.raises(DatasetError, match="train-images-idx3-ubyte of mnist is missing"):
        open_dataset(f"mnist:{tmp_path}")
    images.with_name(f"{images.name}.gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        open_dataset(f"mnist:{tmp_path}")


def test_a_label_beyond_the_classes_is_refused(tmp_path):
    write_cifar10(tmp_path, binary=True)
    file = tmp_path / "cifar-10-batches-bin/test_batch.bin"
    data = bytearray(file.read_bytes())
    data[0] = 10
    file.write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="a label of val is not within the 10 classes"):
        open_dataset(f"cifar10:{tmp_path}")


def test_shared_pictures_of_published_splits_are_noted_and_allowed(tmp_path):
    write_cifar10(tmp_path, each=10, binary=True)
    folder = tmp_path / "cifar-10-batches-bin"
    (folder / "test_batch.bin").write_bytes((folder / "data_batch_1.bin").read_bytes())
    dataset = open_dataset(f"cifar10:{tmp_path}")
    assert len([note for _, note in dataset.audit.notes if note.startswith("the same picture as")]) == 10


def test_what_is_not_there_is_downloaded_once(monkeypatch, tmp_path):
    from torchvision import datasets

    from edgetl.finetune import fetch_original

    published = write_mnist(tmp_path / "server", folder=".", zipped=True)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(published))

        def log_message(self, form, *arguments):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        digests = [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in sorted(published.glob("*.gz"))]
        monkeypatch.setattr(datasets.MNIST, "resources", digests)
        assert fetch_original(f"mnist:{tmp_path / 'd'}") == tmp_path / "d"
        assert set(asked) == {f"/{name}" for name, _ in digests}
        asked.clear()
        fetch_original(f"mnist:{tmp_path / 'd'}")
        assert not asked
        assert open_dataset(f"mnist:{tmp_path / 'd'}").digest == open_dataset(f"mnist:{published}").digest
        monkeypatch.setattr(datasets.MNIST, "resources", [(name, "0" * 32) for name, _ in digests])
        with pytest.raises(DatasetError, match=r"mnist cannot be downloaded to .*; get it another way"):
            fetch_original(f"mnist:{tmp_path / 'other'}")
        server.shutdown()
    with pytest.raises(InputError, match="--download: digits is not published"):
        fetch_original("digits")
