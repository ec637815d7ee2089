"""edgetl.spec: exact JSON round trip, and every refusal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.errors import SpecError
from edgetl.spec import ModelSpec, PreprocessSpec

SIDES = st.integers(1, 8192)
NORMAL = st.floats(-1e6, 1e6, allow_nan=False)
POSITIVE = st.floats(1e-6, 1e6, allow_nan=False)


@st.composite
def preprocess_specs(draw: st.DrawFn) -> PreprocessSpec:
    size = (draw(SIDES), draw(SIDES))
    mode = draw(st.sampled_from(["shortest", "squash", "letterbox"]))
    channels, color = draw(st.sampled_from([(3, "RGB"), (1, "L")]))
    interpolation = draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]))
    return PreprocessSpec(
        size=size,
        resize_to=draw(st.integers(max(size), 8192)) if mode == "shortest" else None,
        crop="center" if mode == "shortest" else "none",
        mode=mode,
        interpolation=interpolation,
        antialias=interpolation == "lanczos" or draw(st.booleans()),
        decode=draw(st.sampled_from(["full", "reduced"])),
        exif=draw(st.booleans()),
        color=color,
        scale=draw(POSITIVE),
        mean=tuple(draw(st.lists(NORMAL, min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(POSITIVE, min_size=channels, max_size=channels))),
    )


LABELS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)


@given(
    preprocess_specs(),
    st.lists(LABELS, min_size=2, max_size=5, unique=True),
    st.text(max_size=20),
    st.sampled_from(["linear", "mlp:32", "own"]),
)
def test_json_round_trip_is_exact(preprocess, labels, backbone, head):
    spec = ModelSpec(backbone, preprocess, tuple(labels), head)

    back = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))

    assert back == spec
    assert back.to_dict() == spec.to_dict()


def test_json_form_names_every_field():
    spec = ModelSpec("mobilenet_v2", PreprocessSpec(), ("cat", "dog"))

    assert spec.to_dict() == {
        "task": "classification",
        "backbone": "mobilenet_v2",
        "head": "linear",
        "preprocess": {
            "version": 1,
            "size": [224, 224],
            "resize_to": 256,
            "crop": "center",
            "mode": "shortest",
            "interpolation": "bilinear",
            "antialias": True,
            "decode": "full",
            "exif": True,
            "color": "RGB",
            "scale": 1 / 255,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "labels": ["cat", "dog"],
    }


def test_absent_fields_take_their_default():
    assert PreprocessSpec.from_dict({}) == PreprocessSpec()
    spec = ModelSpec.from_dict({"preprocess": {"size": [32, 48]}, "labels": ["a", "b"]})
    assert spec == ModelSpec("unknown", PreprocessSpec(size=(32, 48)), ("a", "b"))


def test_shape_follows_size_and_colour():
    grey = PreprocessSpec(size=(30, 40), color="L", mean=(0.5,), std=(0.5,))

    assert (grey.channels, grey.input_shape) == (1, (30, 40, 1))
    assert (PreprocessSpec().channels, PreprocessSpec().input_shape) == (3, (224, 224, 3))


def test_specs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PreprocessSpec().exif = False


WRONG_PREPROCESS = [
    ({"version": 2}, "preprocess.version is 2, this edgetl knows 1: update edgetl"),
    ({"size": [0, 224]}, "preprocess.size is [0, 224]: it must be [height, width], each 1 to 8192"),
    ({"size": [8193, 1]}, "preprocess.size is [8193, 1]: it must be"),
    ({"size": [224]}, "preprocess.size is [224]: it must be [height, width]"),
    ({"mode": "stretch"}, 'preprocess.mode is "stretch": it must be one of shortest, squash, letterbox'),
    ({"interpolation": "cubic"}, 'preprocess.interpolation is "cubic": it must be one of nearest, bilinear'),
    ({"interpolation": "lanczos", "antialias": False}, 'preprocess.interpolation "lanczos" needs antialias'),
    ({"decode": "half"}, 'preprocess.decode is "half": it must be one of full, reduced'),
    ({"color": "BGR"}, 'preprocess.color is "BGR": it must be one of RGB, L'),
    ({"resize_to": None}, 'preprocess.resize_to is missing: mode "shortest" needs a number of pixels'),
    ({"resize_to": 223}, "preprocess.resize_to is 223: it must be between the crop, 224, and 8192"),
    ({"resize_to": 8193}, "preprocess.resize_to is 8193: it must be between the crop, 224, and 8192"),
    ({"mode": "squash", "crop": "none"}, 'preprocess.resize_to has no meaning in mode "squash": set it to null'),
    ({"crop": "none"}, 'preprocess.crop is "none": mode "shortest" goes with "center"'),
    ({"mode": "squash", "resize_to": None}, 'preprocess.crop is "center": mode "squash" goes with "none"'),
    ({"mean": [0.5]}, "preprocess.mean has 1 values, RGB has 3"),
    ({"std": [1, 1, 1, 1]}, "preprocess.std has 4 values, RGB has 3"),
    ({"color": "L"}, "preprocess.mean has 3 values, L has 1"),
    ({"mean": [0.5, float("inf"), 0.5]}, "every value must be finite"),
    ({"mean": [0.5, float("nan"), 0.5]}, "every value must be finite"),
    ({"mean": [0.5, 10**400, 0.5]}, "every value must be finite"),
    ({"std": [0.5, 0.0, 0.5]}, "preprocess.std and preprocess.scale must be greater than 0"),
    ({"std": [0.5, -1.0, 0.5]}, "preprocess.std and preprocess.scale must be greater than 0"),
    ({"scale": 0.0}, "preprocess.std and preprocess.scale must be greater than 0"),
    ({"scale": float("nan")}, "preprocess.std and preprocess.scale must be greater than 0"),
    ({"scale": float("inf")}, "preprocess.std and preprocess.scale must be greater than 0"),
    ({"scale": 10**400}, "preprocess.std and preprocess.scale must be greater than 0"),
    ({"antialais": True}, 'preprocess has an unknown field "antialais": known are antialias, color'),
    ([], "preprocess must be a JSON object, not list"),
    (None, "preprocess must be a JSON object, not NoneType"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_PREPROCESS, ids=lambda v: str(v)[:40])
def test_preprocess_refuses(data, message):
    with pytest.raises(SpecError) as caught:
        PreprocessSpec.from_dict(data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", True),
        ("version", 1.0),
        ("size", "224"),
        ("size", [224.0, 224.0]),
        ("size", [True, True]),
        ("resize_to", "256"),
        ("resize_to", True),
        ("crop", None),
        ("mode", 1),
        ("interpolation", []),
        ("antialias", 1),
        ("decode", None),
        ("exif", "yes"),
        ("color", ["R"]),
        ("scale", "1/255"),
        ("scale", True),
        ("mean", 0.5),
        ("mean", [0.5, "0.5", 0.5]),
        ("std", [True, True, True]),
    ],
)
def test_preprocess_refuses_wrong_types(field, value):
    with pytest.raises(SpecError) as caught:
        PreprocessSpec.from_dict({field: value})
    assert str(caught.value) == f"preprocess.{field} is {value!r}: that is not of the right type"


WRONG_MODEL = [
    ({"labels": ["a", "b"]}, "spec needs the fields preprocess and labels"),
    ({"preprocess": {}}, "spec needs the fields preprocess and labels"),
    ({"preprocess": {}, "labels": ["a"]}, "labels has 1 entries: a classifier needs at least 2"),
    ({"preprocess": {}, "labels": ["a", "b", "a"]}, 'labels names "a" twice: labels must be different'),
    ({"preprocess": {}, "labels": ["a", ""]}, "labels has '': a label is one line of text, not empty"),
    ({"preprocess": {}, "labels": ["a", "b\nc"]}, "labels has 'b\\nc': a label is one line of text"),
    ({"preprocess": {}, "labels": ["a", "\udcff"]}, "labels has '\\udcff': a label is one line of text"),
    ({"preprocess": {}, "labels": "ab"}, "spec.labels is 'ab': that is not of the right type"),
    ({"preprocess": {}, "labels": ["a", 1]}, "spec.labels is ['a', 1]: that is not of the right type"),
    ({"preprocess": [], "labels": ["a", "b"]}, "spec.preprocess is []: that is not of the right type"),
    ({"preprocess": {}, "labels": ["a", "b"], "task": "detection"}, 'task is "detection": this edgetl knows'),
    ({"preprocess": {}, "labels": ["a", "b"], "classes": 2}, 'spec has an unknown field "classes"'),
    ({"preprocess": {"size": [0, 0]}, "labels": ["a", "b"]}, "preprocess.size is [0, 0]"),
    ("spec", "spec must be a JSON object, not str"),
]


@pytest.mark.parametrize(("data", "message"), WRONG_MODEL, ids=lambda v: ascii(v)[:40])
def test_model_refuses(data, message):
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_dict(data)
    assert message in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([f.name for f in dataclasses.fields(PreprocessSpec)]), JSON)
def test_any_value_of_a_field_is_taken_or_refused(field, value):
    try:
        spec = PreprocessSpec.from_dict({field: value})
    except SpecError as error:
        refusal = str(error)
    else:
        refusal = None
        assert spec.to_dict()[field] == value
    assert refusal is None or (refusal.startswith("preprocess.") and "\n" not in refusal)


def test_file_is_read(tmp_path: Path):
    spec = ModelSpec("größer", PreprocessSpec(), ("été", "冬"))
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec.to_dict(), ensure_ascii=False), encoding="utf-8")

    assert ModelSpec.from_file(path) == spec


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON ("),
        (b"\xff\xfe{}", "is not JSON ("),
        (b"[" * 100_000, "is not JSON ("),
        (b"[]", "spec must be a JSON object, not list"),
        (b'{"preprocess": {}, "labels": ["a"]}', "labels has 1 entries"),
    ],
    ids=["cut", "not-utf8", "deep", "list", "invalid"],
)
def test_file_errors_name_the_file(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "spec.json"
    path.write_bytes(content)

    with pytest.raises(SpecError) as caught:
        ModelSpec.from_file(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_absent_file_is_named(tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        ModelSpec.from_file(tmp_path / "none.json")
    assert str(caught.value) == f"{tmp_path / 'none.json'}: cannot be read (No such file or directory)"
