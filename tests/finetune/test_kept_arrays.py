"""Features and maps on disk: written row by row, bounded, and nothing is left of what did not come to an end."""

import errno
import os
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgetl.artifacts import cache_folder
from edgetl.backbones import Head, Network, load_pretrained, new_network
from edgetl.dataset import Item
from edgetl.errors import InputError
from edgetl.finetune import compute_features
from edgetl.finetune.kept_arrays import check_room, forget_oldest, new_array, read_array
from edgetl.finetune.prefix import map_shape, maps_of
from edgetl.spec import PreprocessSpec

SPEC = PreprocessSpec(size=(8, 8), resize_to=8)
WIDE = 512  # channels of 8 x 8: 128 KB of features for each picture


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that has room until it is asked for it."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return path


def many(picture, count):
    return [Item(picture, i % 2, "train", f"{i:064d}") for i in range(count)]


def features_of(items):
    torch.manual_seed(0)
    network = Network(SPEC, nn.Conv2d(3, WIDE, 1), Head("flatten-mlp:4", (WIDE, 8, 8), 2))
    return compute_features(
        network, items, SPEC, batch_size=2, workers=0, device=torch.device("cpu"), on_progress=lambda *_: None
    )


def maps_from(items, views=1):
    torch.manual_seed(0)
    network, spec = new_network(load_pretrained("small_cnn", "none", size=(32, 32)), ("a", "b"))
    shape = map_shape(network.eval(), 2, spec.preprocess)
    return maps_of(
        network, 2, items, spec.preprocess, shape, views=views, augment="none", seed=0, batch_size=2, workers=0,
        on_progress=lambda *_: None,
    )  # fmt: skip


def peak_of(work):
    """The most bytes that numpy and Python held at once, and the result's own."""
    tracemalloc.start()
    try:
        size = work().nbytes
        return tracemalloc.get_traced_memory()[1], size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("make", "count"), [(features_of, 60), (maps_from, 200)])
def test_memory_does_not_grow_with_the_number_of_pictures(make, count, cache, picture):
    few, _ = peak_of(lambda: make(many(picture, 6)))
    peak, size = peak_of(lambda: make(many(picture, count)))
    assert size > 3e6
    assert peak < few + 0.2 * size


def test_features_are_found_again_and_are_those_that_were_computed(cache, picture):
    first = features_of(many(picture, 5))
    [path] = (cache / "features").iterdir()
    assert read_array(path, (5, WIDE * 64), np.float32) is not None
    assert np.array_equal(features_of(many(picture, 5)), first)
    torch.from_numpy(first)[0, 0] = 3.0  # may be written to, which changes nothing on disk
    assert np.load(path)[0, 0] != 3.0


def test_on_a_full_disk_features_stay_in_memory_and_maps_are_refused(cache, full_disk, picture):
    assert features_of(many(picture, 3)).shape == (3, WIDE * 64)
    with pytest.raises(InputError, match="maps: cannot be written \\(No space left on device\\)"):
        maps_from(many(picture, 3))
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_what_was_not_finished_is_not_kept(cache):
    def interrupted():
        with new_array(cache / "a.npy", (2, 3), np.float32) as array:
            array[0] = 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(cache.iterdir()) == []


def test_the_oldest_are_forgotten_by_their_bytes_and_so_is_what_killed_processes_left(tmp_path):
    now = time.time()
    ages = {"old.npy": 3000, "newer.npy": 2000, "newest.npy": 1000, ".today.npy": 5000, ".abandoned.npy": 90_000}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (now - age, now - age))
    forget_oldest(tmp_path / "newest.npy", 250)
    assert {path.name for path in tmp_path.iterdir()} == {"newer.npy", "newest.npy", ".today.npy"}
    forget_oldest(tmp_path / "newest.npy", 50)  # itself is kept whatever it takes
    assert {path.name for path in tmp_path.iterdir()} == {"newest.npy", ".today.npy"}


def test_room_is_asked_for_before_anything_is_written(tmp_path):
    check_room(tmp_path / "not" / "there", 1, "this")
    with pytest.raises(InputError, match=r"this would take 1048576\.0 GiB of the .* free in "):
        check_room(tmp_path / "not" / "there", 1 << 50, "this")
