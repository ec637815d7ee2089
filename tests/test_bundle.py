"""edgetl.bundle: what was written is opened, and nothing else is."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_graph, tiny_spec, tiny_variant, write_tiny_bundle

from edgetl.bundle import FORMAT_VERSION, VARIANTS, Bundle, Variant, open_bundle, write_manifest
from edgetl.canonical import canonical_json
from edgetl.errors import BundleError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.edgetl", ("fp32", "int8-x86"))


def manifest_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "manifest.json").read_text(encoding="utf-8"))


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the digest that belongs to it, as a careful forger would write it."""
    rest = {k: v for k, v in manifest.items() if k != "digest"}
    return {"digest": hashlib.sha256(canonical_json(rest)).hexdigest(), **rest}


def write(root: Path, manifest: object) -> None:
    (root / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def refusal(root: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bundle_is_what_was_written(tmp_path):
    root = tmp_path / "tiny.edgetl"
    root.mkdir()
    (root / "calibration.json").write_text("{}")
    metrics = {"top1": 0.9, "top1_drop": None}
    written = tiny_variant(root, "fp32", tiny_graph(), recommended=True, reason="the reference", metrics=metrics)

    digest = write_manifest(root, tiny_spec(), [written], provenance={"seed": 1}, proof={"top1": 0.9})
    opened = open_bundle(str(root))

    assert (opened.root, opened.spec, opened.variants, opened.digest) == (root, tiny_spec(), (written,), digest)
    assert opened.variant("fp32") == written
    assert opened.read(written) == tiny_graph()
    assert (root / "labels.txt").read_text() == "blue\ngreen\nred\n"
    manifest = manifest_of(root)
    assert list(manifest) == [
        "digest", "format_version", "spec", "variants", "provenance", "proof", "decisions", "exemplars", "files"
    ]  # fmt: skip
    assert manifest["format_version"] == FORMAT_VERSION == 1
    assert (manifest["provenance"], manifest["proof"]) == ({"seed": 1}, {"top1": 0.9})
    assert manifest["files"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.iterdir())
        if path.name != "manifest.json"
    }
    assert sealed(manifest) == manifest
    opened.verify()


def test_same_content_gives_the_same_digest(bundle, tmp_path):
    again = write_tiny_bundle(tmp_path / "again.edgetl", ("fp32", "int8-x86"))
    other = write_tiny_bundle(tmp_path / "other.edgetl", ("fp32",))

    assert open_bundle(again).digest == open_bundle(bundle).digest != open_bundle(other).digest


def test_variant_that_is_not_there(bundle):
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle).variant("fp16")
    assert str(caught.value) == f'{bundle}: has no variant "fp16"; it has fp32, int8-x86'
    assert {"fp32", "fp16", "int8-x86"} < set(VARIANTS)


@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_flipped_bit_in_a_graph(bundle, where):
    path = bundle / "model.fp32.onnx"
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    opened = open_bundle(bundle)
    message = f"{path}: is damaged or was replaced (sha256 differs); export or copy the bundle again"

    with pytest.raises(BundleError) as caught:
        opened.read(opened.variant("fp32"))
    assert str(caught.value) == message
    with pytest.raises(BundleError) as caught:
        opened.verify()
    assert str(caught.value) == message
    assert opened.read(opened.variant("int8-x86")) == tiny_graph()


def test_missing_files(bundle):
    (bundle / "model.fp32.onnx").unlink()
    opened = open_bundle(bundle)

    for check in (lambda: opened.read(opened.variant("fp32")), opened.verify):
        with pytest.raises(BundleError) as caught:
            check()
        assert str(caught.value) == f"{bundle / 'model.fp32.onnx'}: is missing; export or copy the bundle again"


def test_verify_reads_what_no_variant_needs(bundle):
    (bundle / "labels.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(BundleError, match=r"labels\.txt: is damaged or was replaced"):
        open_bundle(bundle).verify()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["spec"]["labels"].reverse(),
        lambda m: m["spec"]["preprocess"].update(resize_to=17),
        lambda m: m["variants"][1].update(recommended=True),
        lambda m: m["provenance"].update(made_by="someone else"),
        lambda m: m.update(more=1),
        lambda m: m.pop("digest"),
        lambda m: m.update(digest=""),
        lambda m: m.update(digest="", proof=float("nan")),
    ],
)
def test_changed_manifest(bundle, change):
    manifest = manifest_of(bundle)
    change(manifest)
    write(bundle, manifest)
    assert refusal(bundle) == (
        f"{bundle / 'manifest.json'}: was changed after export (its digest differs); export it again"
    )


def test_order_of_keys_is_no_change(bundle):
    manifest = manifest_of(bundle)
    write(bundle, dict(reversed(manifest.items())))
    assert open_bundle(bundle).digest == manifest["digest"]


@pytest.mark.parametrize("version", [2, 10**30])
@pytest.mark.parametrize("wrote", [None, 3, "1; rm -rf", "9" * 99, ["1.0"]])
def test_future_format(bundle, version, wrote):
    write(bundle, {"format_version": version, "a_new": "world", "provenance": {"edgetl": wrote}})
    assert refusal(bundle) == (
        f"{bundle}: has format {version}, this edgetl reads 1: it needs a newer edgetl: pip install -U edgetl"
    )


@pytest.mark.parametrize("wrote", ["0.9.0", "2.0rc1"])
def test_future_format_names_the_edgetl_that_wrote_it(bundle, wrote):
    write(bundle, {"format_version": 2, "provenance": {"edgetl": wrote}})
    assert refusal(bundle) == (
        f"{bundle}: has format 2, this edgetl reads 1: it needs edgetl {wrote} or newer: "
        f"pip install -U 'edgetl>={wrote}'"
    )
    write(bundle, {"format_version": 2, "provenance": []})
    assert "it needs a newer edgetl" in refusal(bundle)


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.0, True, [1]])
def test_no_format(bundle, version):
    write(bundle, sealed(manifest_of(bundle) | {"format_version": version}))
    assert refusal(bundle) == f"{bundle / 'manifest.json'}: has no format_version; is this a bundle?"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\nb", "a" * 129])
def test_names_that_leave_the_folder(bundle, name):
    manifest = manifest_of(bundle)
    in_files = copy.deepcopy(manifest)
    in_files["files"][name] = "0" * 64
    manifest["variants"][0]["file"] = name
    manifest["files"][name] = manifest["variants"][0]["sha256"]

    for forged in (in_files, manifest):
        write(bundle, sealed(forged))
        text = refusal(bundle)
        assert text.startswith(f"{bundle / 'manifest.json'}: is malformed (ValueError: ")
        assert text.endswith("is not a plain file name)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON ("),
        (b"{", "cannot be read as JSON ("),
        (b"\xff\xfe", "cannot be read as JSON ("),
        (b"[" * 200_000, "cannot be read as JSON ("),
        (b'{"format_version": 1, "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "cannot be read as JSON ("),
        (b"[]", "must hold a JSON object"),
        (b"null", "must hold a JSON object"),
        (b'"manifest"', "must hold a JSON object"),
        (b"{}", "has no format_version; is this a bundle?"),
        (b" " * ((64 << 20) + 1), "is larger than 64 MiB, no manifest is"),
    ],
    ids=["empty", "cut", "not-utf8", "deep-open", "deep", "list", "null", "string", "no-fields", "large"],
)
def test_manifest_that_is_none(bundle, content, message):
    (bundle / "manifest.json").write_bytes(content)
    assert refusal(bundle).startswith(f"{bundle / 'manifest.json'}: {message}")


@pytest.mark.parametrize("depth", range(300, 1000, 50))
def test_nesting_of_any_depth_is_refused(bundle, depth):
    """Near the interpreter's limit a manifest may be read and still be too deep for what follows."""
    manifest = manifest_of(bundle)
    text = json.dumps({k: v for k, v in manifest.items() if k != "digest"})
    nested = text[:-1] + ', "more": ' + "[" * depth + "]" * depth + "}"
    digest = manifest["digest"]
    (bundle / "manifest.json").write_text(f'{{"digest": "{digest}", {nested[1:]}')
    assert "manifest.json: " in refusal(bundle)


def test_not_a_bundle(tmp_path):
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such bundle; edgetl export makes one"
    for path in (tmp_path, tmp_path / "file"):
        assert refusal(path) == f"{path}: is not a bundle (no manifest.json); edgetl export makes one"
    assert "cannot be read (File name too long)" in refusal(tmp_path / ("n" * 5000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("spec"), "is malformed (KeyError: 'spec')"),
        (lambda m: m.pop("files"), "is malformed (KeyError: 'files')"),
        (lambda m: m.update(variants=None), "is malformed (TypeError: "),
        (lambda m: m.update(files=[]), "is malformed (AttributeError: "),
        (lambda m: m.update(files=[], variants=[]), "is malformed (AttributeError: "),
        (lambda m: m["variants"][0].pop("sha256"), "is malformed (TypeError: "),
        (lambda m: m["variants"][0].update(speed=2), "is malformed (TypeError: "),
        (lambda m: m["variants"][0].update(sha256="0" * 64), "is malformed (ValueError: variant fp32 and"),
        (lambda m: m["files"].pop("model.fp32.onnx"), "is malformed (KeyError: 'model.fp32.onnx')"),
        (lambda m: m["variants"][0].update(metrics=1), "is malformed (TypeError: variant field metrics is 1)"),
        (lambda m: m["variants"][0].update(reason=None), "is malformed (TypeError: variant field reason is None)"),
        (lambda m: m["variants"][0].update(name=["fp32"]), "is malformed (TypeError: variant field name is ['fp32'])"),
        (lambda m: m["spec"].update(labels=["a"]), "labels has 1 entries: a classifier needs at least 2"),
        (lambda m: m["spec"]["preprocess"].update(sharpen=True), 'preprocess has an unknown field "sharpen"'),
        (lambda m: m["spec"]["preprocess"].update(mean=[10**400] * 3), "preprocess.mean is"),
    ],
)  # fmt: skip
def test_malformed_manifest_with_a_good_digest(bundle, change, message):
    manifest = manifest_of(bundle)
    change(manifest)
    write(bundle, sealed(manifest))
    assert refusal(bundle).startswith(f"{bundle / 'manifest.json'}: {message}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def paths(data: object, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON document."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(deeper for key, value in inner for deeper in paths(value, (*path, key)))]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = write_tiny_bundle(tmp_path_factory.mktemp("fuzz") / "tiny.edgetl", ("fp32", "int8-x86"))
    return root, manifest_of(root)


@settings(max_examples=250)
@given(st.data())
def test_mutated_manifests_open_or_raise_bundle_error(fuzzed, data):
    root, original = fuzzed
    manifest: Any = copy.deepcopy(original)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(paths(manifest)[1:]))
        target = manifest
        for key in parents:
            target = target[key]
        if data.draw(st.booleans()):
            target[last] = data.draw(JSON)
        else:
            target.pop(last)
        if not manifest:
            break
    if data.draw(st.booleans()):
        manifest = sealed(manifest)
    write(root, manifest)

    try:
        opened = open_bundle(root)
    except BundleError:
        return
    # What opens can be used: a wrong file is a BundleError too, never anything else.
    assert isinstance(opened, Bundle)
    assert all(isinstance(v, Variant) and v.to_dict() for v in opened.variants)
    try:
        opened.verify()
        for variant in opened.variants:
            opened.read(variant)
    except BundleError:
        return


@given(st.binary(max_size=200))
def test_random_bytes_as_manifest(fuzzed, data):
    root, _ = fuzzed
    (root / "manifest.json").write_bytes(data)
    assert "manifest.json" in refusal(root)


def test_copied_bundle_is_the_same(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "elsewhere")
    moved = open_bundle(tmp_path / "elsewhere")
    moved.verify()
    assert moved.digest == open_bundle(bundle).digest
