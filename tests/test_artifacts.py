"""edgetl.artifacts: files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl import artifacts
from edgetl.artifacts import new_folder, sha256_of, write_bytes, write_json, write_text
from edgetl.canonical import canonical_json
from edgetl.errors import InputError


@contextmanager
def full_disk() -> Iterator[None]:
    """Lets this process write 1,000 bytes into a file and no more, like a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_of_any_size(tmp_path, size):
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "f").write_bytes(data[:size])
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data[:size]).hexdigest()


def test_canonical_json_is_one_form():
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=5))
def test_canonical_json_does_not_know_the_order(data):
    assert canonical_json(dict(reversed(data.items()))) == canonical_json(data)


def test_write_makes_folders_and_readable_files(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"

    write_bytes(path, b"\x00\xff")

    assert path.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert names(path.parent) == ["file.bin"]


def test_write_text_and_json(tmp_path):
    write_text(tmp_path / "t", "Grüße\n")
    write_json(tmp_path / "j", {"ä": [1]})

    assert (tmp_path / "t").read_bytes() == "Grüße\n".encode()
    assert (tmp_path / "j").read_text(encoding="utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    write_bytes(path, b"old")

    with full_disk(), pytest.raises(InputError) as caught:
        write_bytes(path, bytes(2000))

    assert str(caught.value) == f"{path}: cannot be written (File too large)"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_refused_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"top1": 0.5})

    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"top1": value})

    assert path.read_text() == '{\n  "top1": 0.5\n}\n'
    assert names(tmp_path) == ["file.json"]


def test_write_below_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("x")
    path = tmp_path / "file" / "below.json"

    with pytest.raises(InputError) as caught:
        write_json(path, {})
    assert str(caught.value).startswith(f"{path}: cannot be written (")


def test_write_over_a_folder_is_an_input_error(tmp_path):
    (tmp_path / "folder").mkdir()

    with pytest.raises(InputError) as caught:
        write_text(tmp_path / "folder", "x")

    assert str(caught.value) == f"{tmp_path / 'folder'}: cannot be written (Is a directory)"
    assert names(tmp_path) == ["folder"]


def test_new_folder_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "run"

    with new_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
        assert folder.parent == target.parent

    assert names(target) == ["a"]
    assert names(target.parent) == ["run"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_new_folder_leaves_nothing_when_the_block_raises(tmp_path, kind):
    block = new_folder(tmp_path / "run")
    folder = block.__enter__()
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_text("1")

    assert not block.__exit__(kind, kind(), None)

    assert names(tmp_path) == []


def test_new_folder_refuses_an_existing_target(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError) as caught, new_folder(tmp_path / "run"):
        pytest.fail("the block must not start")
    assert str(caught.value) == f"{tmp_path / 'run'}: exists already; choose another --out or give --force"


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "without-renameat2"])
def test_new_folder_replaces_with_force(tmp_path, monkeypatch, exchange):
    if not exchange:  # what a file system without renameat2 answers; there is none to be had here
        monkeypatch.setattr(artifacts, "_exchange", lambda a, b: False)
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("1")

    with new_folder(target, force=True) as folder:
        (folder / "new").write_text("2")
        assert names(target) == ["old"]

    assert names(target) == ["new"]
    assert names(tmp_path) == ["run"]


def test_exchange_swaps_in_one_step(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was_{name}").write_text("")

    assert artifacts._exchange(tmp_path / "a", tmp_path / "b")

    assert names(tmp_path / "a") == ["was_b"]
    assert names(tmp_path / "b") == ["was_a"]
    assert not artifacts._exchange(tmp_path / "a", tmp_path / "absent")


def test_new_folder_with_force_keeps_the_old_one_when_the_block_raises(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("1")

    with pytest.raises(ValueError, match="half way"), new_folder(target, force=True):
        raise ValueError("half way")

    assert names(target) == ["old"]
    assert names(tmp_path) == ["run"]


def test_new_folder_with_force_replaces_a_file(tmp_path):
    (tmp_path / "run").write_text("a file")

    with new_folder(tmp_path / "run", force=True) as folder:
        (folder / "a").write_text("1")

    assert names(tmp_path / "run") == ["a"]
    assert names(tmp_path) == ["run"]


def test_new_folder_with_force_replaces_a_link_and_not_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "precious").write_text("1")
    (tmp_path / "link").symlink_to("real")

    with new_folder(tmp_path / "link", force=True) as folder:
        (folder / "a").write_text("1")

    assert not (tmp_path / "link").is_symlink()
    assert names(tmp_path / "link") == ["a"]
    assert names(tmp_path / "real") == ["precious"]
    assert names(tmp_path) == ["link", "real"]


def test_new_folder_keeps_what_someone_else_made_meanwhile(tmp_path):
    target = tmp_path / "run"
    block = new_folder(target)
    block.__enter__()
    target.mkdir()
    (target / "theirs").write_text("1")

    with pytest.raises(InputError) as caught:
        block.__exit__(None, None, None)

    assert str(caught.value) == f"{target}: was made by someone else meanwhile; choose another --out"
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["run"]


def test_new_folder_below_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught, new_folder(tmp_path / "file" / "run"):
        pytest.fail("the block must not start")
    assert str(caught.value).startswith(f"{tmp_path / 'file' / 'run'}: cannot be written (")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_new_folder_in_a_folder_without_write_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(InputError, match=r"run: cannot be written \(Permission denied\)"):
        new_folder(tmp_path / "locked" / "run").__enter__()
