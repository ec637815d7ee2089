"""Whatever happens to a bundle's files is refused by load and by verify, each kind in words of its own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import time

import numpy as np
import pytest
from tiny import TINY_LABELS, tiny_graph, write_tiny_bundle

import edgetl
from edgetl import host
from edgetl.bundle import Bundle, open_bundle
from edgetl.canonical import canonical_json
from edgetl.cli.main import run
from edgetl.errors import BundleError
from edgetl.signing import check_signature, make_keys, sign_bundle

EXEMPLARS = {name: np.eye(3, dtype=np.float32) + 0.1 * i for i, name in enumerate(TINY_LABELS)}
FLIPS = 60  # of each file


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys") / "key")


@pytest.fixture
def root(tmp_path, public):
    """A signed bundle with every kind of file that there is."""
    root = tmp_path / "whole.edgetl"
    metrics = {"top1": 0.9876543210123456, "latency_ratio": 1.25e-05, "sqnr_db": None}
    names = ("fp32", "fp16", f"int8-{host.arch()}", "int8-tensorrt")
    write_tiny_bundle(root, names, exemplars=EXEMPLARS, recommended=True, metrics=metrics, reason="half\x1f of FP32's")
    for name in ("calibration.json", "latency.json"):
        (root / name).write_text(json.dumps({"values": [0.5] * 50}))
    listed(root, "calibration.json", "latency.json")
    sign_bundle(open_bundle(root), public.with_suffix(""))
    return root


def reseal(root, manifest):
    """Writes a manifest with the digest that belongs to it, as a careful forger would."""
    rest = {k: v for k, v in manifest.items() if k != "digest"}
    digest = hashlib.sha256(canonical_json(rest)).hexdigest()
    text = json.dumps({"digest": digest, **rest}, indent=2, ensure_ascii=False)
    (root / "manifest.json").write_text(text + "\n", encoding="utf-8")


def listed(root, *names):
    """Lets the manifest list files as they are now."""
    manifest = dict(open_bundle(root).manifest)
    manifest["files"] |= {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}
    reseal(root, manifest)


def verify(root, public):
    opened = open_bundle(root)
    opened.verify()
    check_signature(opened, [public])


def refusals(root, public):
    """What load and verify say; each must refuse."""
    told = []
    for check in (lambda: edgetl.load(root, trusted_keys=[public]).close(), lambda: verify(root, public)):
        with pytest.raises(BundleError) as caught:
            check()
        told.append(str(caught.value))
    assert all("\n" not in line for line in told)
    return told


FILES = (
    "manifest.json", "manifest.sig", "labels.txt", "exemplars.npy", "calibration.json", "latency.json",
    "model.fp32.onnx", "model.fp16.onnx", f"model.int8-{host.arch()}.onnx", "model.int8-tensorrt.onnx",
)  # fmt: skip


def test_the_bundle_has_every_file_and_is_sound(root, public):
    assert {path.name for path in root.iterdir()} == set(FILES)
    with edgetl.load(root, trusted_keys=[public]) as classify:
        assert classify.variant == f"int8-{host.arch()}"


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_refused(root, public, name):
    path, rng = root / name, random.Random(name)
    whole = path.read_bytes()
    bits = range(8 * len(whole))
    for bit in rng.sample(bits, min(len(bits), FLIPS)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refusals(root, public)


def taken(path, bits, check):
    """The places where a flipped bit goes unnoticed."""
    whole, found = path.read_bytes(), []
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with contextlib.suppress(BundleError):
            check()
            found.append(bytes(damaged[max(0, bit // 8 - 20) : bit // 8 + 20]))
    path.write_bytes(whole)
    return found


def test_numbers_and_escapes_of_a_manifest_have_one_spelling(root):
    """JSON has several: 1e-05 and 1E-05, letters in escapes, digits that no float holds."""
    text = (root / "manifest.json").read_bytes()
    spans = [match.span() for match in re.finditer(rb"-?[0-9]+[.e][0-9.e+-]+|\\u....", text)]
    assert len(spans) > 10
    bits = {8 * at + bit for start, end in spans for at in range(start, end) for bit in range(8)}
    few = random.Random(0).sample(sorted(bits), 300)
    letters = {8 * at + 5 for start, end in spans for at in range(start, end)}  # upper and lower case
    assert not taken(root / "manifest.json", {*few, *letters}, lambda: open_bundle(root))


def test_every_bit_of_a_signature_counts(root, public):
    opened, path = open_bundle(root), root / "manifest.sig"
    size = 8 * path.stat().st_size
    bits = {*range(size - 80, size), *random.Random(0).sample(range(size), 300)}  # its last letter says less than 6
    assert not taken(path, bits, lambda: check_signature(opened, [public]))


def test_base64_that_means_the_same_is_another_signature(root, public):
    path = root / "manifest.sig"
    found = json.loads(path.read_text())
    text = found["signature"]
    assert text.endswith("==")
    other = text[:-3] + chr(ord(text[-3]) + 1) + "=="
    assert base64.b64decode(other) == base64.b64decode(text)
    path.write_text(json.dumps({**found, "signature": other}))
    with pytest.raises(BundleError, match=r"manifest\.sig: is damaged; sign the bundle again"):
        check_signature(open_bundle(root), [public])


def replaced(root, name, content):
    (root / name).unlink()
    (root / name).write_bytes(content)


def linked(root, name):
    shutil.move(root / name, root.parent / "elsewhere")
    (root / name).symlink_to(root.parent / "elsewhere")


def piped(root, name):
    (root / name).unlink()
    os.mkfifo(root / name)


def foldered(root, name):
    (root / name).unlink()
    (root / name).mkdir()


KINDS = {
    "flipped": (lambda r, n: replaced(r, n, (r / n).read_bytes()[:-1] + b"\x01"), "is damaged or was replaced (sha256"),
    "link": (linked, "cannot be read (is a symbolic link, which may lead anywhere)"),
    "pipe": (piped, "cannot be read (is a pipe, not a plain file)"),
    "folder": (foldered, "cannot be read (is a folder, not a plain file)"),
    "missing": (lambda r, n: (r / n).unlink(), "is missing; export or copy the bundle again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [f"model.int8-{host.arch()}.onnx", "model.fp16.onnx", "labels.txt", "exemplars.npy"])
def test_each_kind_of_damage_has_its_own_words(root, public, name, kind):
    damage, words = KINDS[kind]
    damage(root, name)
    for told in refusals(root, public):
        assert f"{root / name}: {words}" in told


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_the_manifest_and_its_signature_are_plain_files_too(root, public, name, kind):
    damage, words = KINDS[kind]
    damage(root, name)
    for told in refusals(root, public):
        assert f"{root / name}: {words}" in told


def test_a_replaced_file_of_another_size(root, public):
    replaced(root, "model.fp16.onnx", tiny_graph() + b"\x00")
    for told in refusals(root, public):
        assert "model.fp16.onnx: is damaged or was replaced (it has 394 bytes, the manifest says 393)" in told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("C:\\x", "is an absolute path"),
        ("../x", "leads out of the bundle"),
        ("a/../../x", "leads out of the bundle"),
        ("a\\..\\x", "leads out of the bundle"),
        ("a/b", "'a/b' is not a plain file name"),
    ],
)
def test_names_of_files_that_lead_elsewhere(root, public, name, words):
    manifest = dict(open_bundle(root).manifest)
    manifest["files"] |= {name: "0" * 64}
    reseal(root, manifest)
    for told in refusals(root, public):
        assert words in told


def test_a_file_that_cannot_be_read_is_told_as_that(root, public, monkeypatch):
    def vanishing(self, size=-1):
        raise OSError(5, "Input/output error")

    class File:
        read = vanishing

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("edgetl.bundle.open_regular", lambda path: (File(), path.stat().st_size))
    for told in refusals(root, public):
        assert "cannot be read (Input/output error); export or copy the bundle again" in told


def npy(header, data=b"\0" * 54, version=b"\x01\x00"):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


GOOD = "{'descr': '<f2', 'fortran_order': False, 'shape': (9, 3), }"
MALFORMED = {
    "empty": b"",
    "text": b"hello",
    "a zip, as npz is": b"PK\x03\x04" + b"\0" * 60,
    "a pickle": b"\x80\x04N.",
    "no header": b"\x93NUMPY\x01\x00",
    "header cut off": npy(GOOD)[:40],
    "header of no Python": npy("{'descr': '<f2', 'fortran_order': (False, 'shape"),
    "header that computes": npy(GOOD.replace("(9, 3)", "(9, 3 * 1)")),
    "deep header": npy("(" * 90),
    "2 PiB": npy(GOOD.replace("(9, 3)", "(999999999, 999999999)")),
    "wider": npy(GOOD.replace("(9, 3)", "(9, 4)")),
    "of width 0": npy(GOOD.replace("(9, 3)", "(9, 0)"), b""),
    "one axis": npy(GOOD.replace("(9, 3)", "(27,)")),
    "other numbers": npy(GOOD.replace("<f2", "<f4"), b"\0" * 108),
    "objects": npy(GOOD.replace("<f2", "|O")),
    "by columns": npy(GOOD.replace("False", "True")),
    "format 2": npy(GOOD, version=b"\x02\x00"),
    "cut off": npy(GOOD)[:-1],
    "longer": npy(GOOD) + b"\0",
    "not finite": npy(GOOD, b"\xff" * 54),
    "other counts": npy(GOOD.replace("(9, 3)", "(8, 3)"), b"\0" * 48),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_exemplars_with_good_hashes(root, kind):
    begun = time.monotonic()
    (root / "exemplars.npy").write_bytes(MALFORMED[kind])
    listed(root, "exemplars.npy")
    with edgetl.load(root) as classify:
        with pytest.raises(BundleError, match=r"exemplars\.npy: is malformed \(.*\); export the bundle again"):
            classify.learn("white", [np.full((16, 16, 3), 255, np.uint8)])
        assert classify(np.full((16, 16, 3), (255, 0, 0), np.uint8)).label == "red"
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "told",
    [
        [],
        {},
        {"counts": 3},
        *({"counts": counts} for counts in ([3, 3], [3, 3, "3"], [9, 0, 0], [True, 4, 4], [10**400] * 3)),
    ],
)
def test_malformed_counts_of_exemplars(root, told):
    reseal(root, {**open_bundle(root).manifest, "exemplars": told})
    with pytest.raises(BundleError, match=r"exemplars\.npy: is malformed"):
        open_bundle(root).exemplars()


def test_exemplars_have_a_largest_size(root):
    with (root / "exemplars.npy").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(BundleError, match=r"exemplars\.npy: has 67108865 bytes, it may have 67108864"):
        open_bundle(root).exemplars()


def test_verify_names_what_was_not_exported(root, capsys):
    assert open_bundle(root).unlisted() == []
    (root / "notes.txt").write_text("mine")
    (root / ".hidden").write_text("mine")
    assert open_bundle(root).unlisted() == [".hidden", "notes.txt"]
    assert run(["bundle", "verify", str(root)]) == 0
    told = capsys.readouterr().out
    assert f"{root / 'notes.txt'}: was not exported with the bundle, and nothing reads it" in told.replace("\n", " ")
    assert run(["bundle", "verify", str(root), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["unlisted"] == [".hidden", "notes.txt"]


def test_a_bundle_may_be_reached_through_a_link(root, tmp_path):
    (tmp_path / "current").symlink_to(root)
    with edgetl.load(tmp_path / "current") as classify:
        assert classify.digest == open_bundle(root).digest


def test_what_is_checked_ends_before_load_does(root, monkeypatch):
    ended = []

    def slow(self, *, but):
        time.sleep(0.2)
        ended.append(set(but))

    monkeypatch.setattr(Bundle, "verify", slow)
    with edgetl.load(root):
        assert ended == [{f"model.int8-{host.arch()}.onnx"}]  # which is checked as it is read
