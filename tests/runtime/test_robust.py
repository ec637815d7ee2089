"""Whatever a classifier is given, each way of asking: the right error, named, and it keeps serving."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import encoded, hollow_graph, noise, write_tiny_bundle

import edgetl
from edgetl.errors import EngineError, PictureError
from edgetl.runtime import Batching

RED = np.full((16, 16, 3), (255, 0, 0), np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A PNG of a few kilobytes that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


WRONG = {
    "bomb": (bomb(60_000, 60_000), PictureError, r"^picture bytes: more than 89 megapixels; reduce it first$"),
    "large": (bomb(10_000, 9_500), PictureError, r"^picture bytes: 95 megapixels, more than 89; reduce it first$"),
    "cut off": (encoded(Image.fromarray(noise(40, 40)), "JPEG")[:300], PictureError, "cannot be decoded"),
    "no picture": (b"hello", PictureError, "is not a picture that can be read"),
    "empty": (b"", PictureError, "picture bytes: empty"),
    "channels first": (RED.transpose(2, 0, 1), PictureError, r"array has shape \(3, 16, 16\): a picture is \(H, W\), "),
    "floats": (RED / 255, PictureError, "array has dtype float64: a picture is uint8"),
    "NaN": (np.full((16, 16, 3), np.nan), PictureError, "array has dtype float64"),
    "int64": (RED.astype(int), PictureError, "array has dtype int64"),
    "a batch": (RED[None], PictureError, r"array has shape \(1, 16, 16, 3\)"),
    "nothing": (RED[:0], PictureError, r"array has shape \(0, 16, 3\)"),
    "a list": ([1, 2, 3], PictureError, "list is not a picture"),
    "None": (None, PictureError, "NoneType is not a picture"),
    "no file": (Path("none.jpg"), PictureError, r"^none\.jpg: no such file$"),
    "narrow": (np.zeros((1, 5000, 3), np.uint8), PictureError, "too narrow to be classified"),
    "black": (np.zeros((16, 16, 3), np.uint8), EngineError, "numbers that are not finite"),
}
WAYS = {
    "call": lambda classify, picture: classify(picture),
    "batch": lambda classify, picture: classify.batch([RED, picture]),
    "submit": lambda classify, picture: classify.submit(picture).result(20),
}


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """Of a model that has no answer for black."""
    root = write_tiny_bundle(tmp_path_factory.mktemp("robust") / "b.edgetl", graph=hollow_graph())
    with edgetl.load(root, batching=Batching(max_batch=4)) as opened:
        yield opened


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", WRONG)
def test_it_is_named_and_the_next_is_answered(classify, kind, way):
    picture, error, words = WRONG[kind]
    before = classify.metrics()
    with pytest.raises(error, match=words) as caught:
        WAYS[way](classify, picture)
    assert "\n" not in str(caught.value)
    assert [classify(RED).label, classify.submit(RED).result(20).label] == ["red", "red"]
    after, counter = classify.metrics(), "picture_errors" if error is PictureError else "engine_errors"
    assert after[counter] - before[counter] == 1


def test_wrong_and_right_ones_among_each_other(classify):
    asked = [(kind, classify.submit(picture), classify.submit(RED)) for kind, (picture, _, _) in WRONG.items()]
    for kind, wrong, right in asked:
        assert right.result(20).label == "red"
        with pytest.raises(WRONG[kind][1], match=WRONG[kind][2]):
            wrong.result(20)


def test_a_bomb_costs_no_memory(classify):
    """Its pixels would take 3.6 GB; so much is not there for a test, and the limit comes before they are decoded."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind in ("bomb", "large"):
        with pytest.raises(PictureError):
            classify(WRONG[kind][0])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # kilobytes
