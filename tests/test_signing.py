"""Who made a bundle: keys, signatures, and every way in which they do not fit."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess

import pytest
from tiny import tiny_graph, write_tiny_bundle

import edgetl
from edgetl.bundle import open_bundle
from edgetl.cli.main import run
from edgetl.errors import BundleError, InputError
from edgetl.signing import check_signature, make_keys, sign_bundle


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    root = tmp_path_factory.mktemp("keys")
    return {name: (root / name, make_keys(root / name)) for name in ("ours", "theirs")}


@pytest.fixture
def signed(tmp_path, keys):
    root = write_tiny_bundle(tmp_path / "tiny.edgetl")
    sign_bundle(open_bundle(root), keys["ours"][0])
    return root


def test_a_signed_bundle_is_taken_by_those_who_trust_its_key(signed, keys):
    ours, theirs = keys["ours"][1], keys["theirs"][1]
    for trusted in ([ours], [str(ours)], [ours.read_bytes()], [ours.read_text()], [theirs, ours]):
        with edgetl.load(signed, trusted_keys=trusted) as classify:
            assert classify.labels
    with edgetl.load(signed) as classify:
        classify.reload()
    assert stat.S_IMODE(keys["ours"][0].stat().st_mode) == 0o600


def test_others_are_refused_each_with_its_own_line(signed, keys, tmp_path):
    ours, theirs = ([keys[name][1]] for name in ("ours", "theirs"))
    with pytest.raises(BundleError, match=r"is signed by key [0-9a-f]{16}, which is not trusted here"):
        edgetl.load(signed, trusted_keys=theirs)
    unsigned = write_tiny_bundle(tmp_path / "unsigned.edgetl")
    with pytest.raises(BundleError, match=r"is not signed; edgetl bundle sign .*unsigned\.edgetl --key KEY signs it"):
        edgetl.load(unsigned, trusted_keys=ours)
    changed = write_tiny_bundle(tmp_path / "changed.edgetl", labels=("x", "y", "z"))
    shutil.copy(signed / "manifest.sig", changed)
    with pytest.raises(BundleError, match=r"manifest\.sig: is not a signature of this bundle"):
        edgetl.load(changed, trusted_keys=ours)
    with pytest.raises(InputError, match="trusted_keys is empty"):
        edgetl.load(signed, trusted_keys=[])
    with pytest.raises(InputError, match=r"is a private key, which has no place on a device; give its \.pub"):
        edgetl.load(signed, trusted_keys=[keys["ours"][0]])
    with pytest.raises(InputError, match=r"none\.pub: cannot be read"):
        edgetl.load(signed, trusted_keys=[tmp_path / "none.pub"])
    with pytest.raises(InputError, match="is no PEM public key"):
        edgetl.load(signed, trusted_keys=[b"-----BEGIN nonsense"])
    # A replaced file passes the signature and fails its hash.
    (signed / "model.fp32.onnx").write_bytes(tiny_graph() + b"\0")
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx: is damaged or was replaced \(it has \d+ bytes"):
        edgetl.load(signed, trusted_keys=ours)
    (signed / "model.fp32.onnx").write_bytes(tiny_graph()[::-1])
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx: is damaged or was replaced \(sha256"):
        edgetl.load(signed, trusted_keys=ours)


def test_every_bit_of_a_signature_counts(signed, keys):
    path, trusted = signed / "manifest.sig", [keys["ours"][1]]
    whole = json.loads(path.read_text())
    raw = base64.b64decode(whole["signature"])
    for bit in range(0, 512, 7):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_text(json.dumps({**whole, "signature": base64.b64encode(flipped).decode()}))
        with pytest.raises(BundleError, match="is not a signature of this bundle"):
            check_signature(open_bundle(signed), trusted)
    for text in ("", "[]", "{}", '{"format_version": 1, "key": 3, "signature": 4}', "\x00", '{"a":' * 2000):
        path.write_text(text)
        with pytest.raises(BundleError, match="is damaged; sign the bundle again"):
            check_signature(open_bundle(signed), trusted)
    path.write_text(json.dumps({**whole, "format_version": 2}))
    with pytest.raises(BundleError, match="has format 2, this edgetl reads 1"):
        check_signature(open_bundle(signed), trusted)


def test_reload_asks_for_a_signature_too(signed, keys, tmp_path):
    unsigned = write_tiny_bundle(tmp_path / "other.edgetl", labels=("x", "y", "z"))
    with edgetl.load(signed, trusted_keys=[keys["ours"][1]]) as classify:
        with pytest.raises(BundleError, match="is not signed"):
            classify.reload(unsigned)
        assert classify.labels == ("blue", "green", "red")
        sign_bundle(open_bundle(unsigned), keys["ours"][0])
        classify.reload(unsigned)
        assert classify.labels == ("x", "y", "z")


def test_a_damaged_bundle_is_not_signed(signed, keys):
    (signed / "labels.txt").write_text("other\n")
    with pytest.raises(BundleError, match=r"labels\.txt: is damaged"):
        sign_bundle(open_bundle(signed), keys["ours"][0])


def test_commands(tmp_path, capsys):
    root = write_tiny_bundle(tmp_path / "tiny.edgetl")
    key = tmp_path / "release.key"
    assert run(["bundle", "verify", str(root)]) == 0
    assert "2 files are as exported" in capsys.readouterr().out
    assert run(["bundle", "sign", str(root), "--key", str(key)]) == 2
    assert "release.key: cannot be read" in capsys.readouterr().err
    assert run(["bundle", "keygen", str(key)]) == 0
    assert run(["bundle", "keygen", str(key)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(["bundle", "sign", str(root), "--key", str(key)]) == 0
    assert run(["bundle", "verify", str(root), "--trusted-key", f"{key}.pub"]) == 0
    assert "signed by key" in capsys.readouterr().out
    assert run(["bundle", "sign", str(root), "--key", f"{key}.pub"]) == 2
    assert "is no PEM file of an unencrypted private key" in capsys.readouterr().err


def test_openssls_keys_do_too(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    root = write_tiny_bundle(tmp_path / "tiny.edgetl")
    name = sign_bundle(open_bundle(root), key)
    assert check_signature(open_bundle(root), [public]) == name
