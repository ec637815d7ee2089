"""The pictures of a recipe's source stage: which are fetched, and which are refused."""

import shutil

import click
import pytest
from PIL import Image
from tiny import noise

from edgetl.cli.finetune import _fetch, _Source
from edgetl.cli.main import cli, run
from edgetl.cli.select import _split_options
from edgetl.dataset import open_dataset
from edgetl.errors import DatasetError
from edgetl.finetune import Recipe


def pictures(root, seed):
    for split, count in (("train", 3), ("val", 2)):
        for label in "ab":
            for i in range(count):
                path = root / split / label / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise(8, 8, seed=(seed := seed + 1))).save(path)
    return root


@pytest.fixture
def folders(tmp_path):
    return pictures(tmp_path / "target", 100), pictures(tmp_path / "source", 200)


def checked(target, source, *, allow_leakage=False, data="folder"):
    place = _Source(Recipe("r", "d"), data, target.parent / "run")
    place.check_apart(open_dataset(source), open_dataset(target), allow_leakage=allow_leakage)
    return place


def test_pictures_apart_are_taken_and_the_sources_run_lies_beside(folders, tmp_path):
    assert checked(*folders).out == tmp_path / "run.source"


def test_a_source_that_holds_a_validation_picture_is_refused_unless_that_is_allowed(folders):
    target, source = folders
    shutil.copy(target / "train" / "a" / "0.png", source / "train" / "a" / "9.png")
    checked(target, source)  # learned twice: it was not judged on
    shutil.copy(target / "val" / "a" / "1.png", source / "train" / "b" / "8.png")
    with pytest.raises(DatasetError, match=r"a/1\.png: is a validation picture, and among the source's in .*source"):
        checked(target, source)
    checked(target, source, allow_leakage=True)


def test_the_very_same_pictures_are_refused_whatever_is_allowed(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "copy")
    with pytest.raises(DatasetError, match="holds the same pictures as"):
        checked(folders[0], tmp_path / "copy", allow_leakage=True)


@pytest.mark.parametrize(
    ("data", "source", "fetched"),
    [
        ("cifar100:d", "cifar10:d", ["cifar100:d", "cifar10:d"]),
        ("photos", "cifar10:d", ["cifar10:d"]),
        ("mnist:d", "photos", ["mnist:d"]),
        ("mnist:d", None, ["mnist:d"]),
    ],
)
def test_what_is_published_is_fetched(data, source, fetched, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("edgetl.finetune.fetch_original", told.append)
    _fetch(data, None if source is None else _Source(Recipe("r", "d"), source, tmp_path))
    assert told == fetched


def test_where_nothing_is_published_there_is_nothing_to_fetch(folders, capsys):
    assert run(["finetune", str(folders[0]), "--download"]) == 2
    assert f"--download: {folders[0]} is not published" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ([], []),
        (["--val-fraction", "20%"], ["--val-fraction", "20%"]),
        (["--allow-leakage", "--val-fraction", "7.5pt"], ["--val-fraction", "7.5%", "--allow-leakage"]),
    ],
)
def test_the_command_that_select_prints_splits_the_pictures_as_it_did(typed, options):
    with cli.commands["select"].make_context("select", ["photos", *typed]) as ctx:
        assert isinstance(ctx, click.Context)
        assert _split_options(ctx) == options
