"""edgetl.load and what it gives: pictures in, labels out, without the training stack."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY_BIAS, TINY_LABELS, TINY_WEIGHT, encoded, noise, tiny_graph, tiny_spec, write_tiny_bundle

import edgetl
from edgetl import host
from edgetl.bundle import open_bundle
from edgetl.errors import BundleError, EngineError, PictureError
from edgetl.preprocess import preprocess
from edgetl.runtime.classifier import Classifier
from edgetl.runtime.loading import choose_variant, session_for
from edgetl.runtime.prediction import Prediction

NATIVE = f"int8-{host.arch()}"
FOREIGN = "int8-arm" if host.arch() == "x86" else "int8-x86"
RED, GREEN = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (20, 20), (0, 255, 0))


@pytest.fixture
def classify(tiny_bundle: Path):
    with edgetl.load(tiny_bundle) as opened:
        yield opened


def expected_scores(picture: object) -> np.ndarray:
    mean = preprocess(picture, tiny_spec().preprocess).reshape(-1, 3).mean(axis=0)
    powers = np.exp(mean @ TINY_WEIGHT.T.astype(float) + TINY_BIAS)
    return powers / powers.sum()


def test_prediction_by_hand(classify: Classifier):
    answer = classify(RED)

    # Logits: blue 0.5, green 0, red 0.02 x 255 + 0.25 = 5.35.
    powers = [math.exp(0.5), 1.0, math.exp(5.35)]
    assert isinstance(answer, Prediction)
    assert (answer.label, answer.labels) == ("red", TINY_LABELS)
    assert answer.confidence == pytest.approx(powers[2] / sum(powers), rel=1e-5)
    assert answer.scores.dtype == np.float32
    np.testing.assert_allclose(answer.scores, np.array(powers) / sum(powers), rtol=1e-5)
    assert repr(answer) == f"Prediction(label='red', confidence={answer.confidence})"


def test_top_is_sorted(classify: Classifier):
    answer = classify(RED)

    assert [label for label, _ in answer.top()] == ["red", "blue", "green"]
    assert answer.top(1) == [("red", answer.confidence)]
    assert answer.top(0) == []
    assert sum(score for _, score in answer.top(99)) == pytest.approx(1.0)


def test_top_of_equal_scores_keeps_the_labels_order():
    even = Prediction("a", 1 / 3, np.full(3, 1 / 3, np.float32), ("a", "b", "c"))
    assert [label for label, _ in even.top(2)] == ["a", "b"]


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "image", "array"])
def test_every_kind_of_picture(classify: Classifier, tmp_path: Path, kind):
    image = Image.fromarray(noise(40, 30, seed=3))
    path = tmp_path / "p.png"
    image.save(path)
    pictures = {"path": path, "str": str(path), "bytes": encoded(image), "image": image, "array": np.asarray(image)}

    np.testing.assert_allclose(classify(pictures[kind]).scores, expected_scores(image), rtol=1e-4)


def test_batch_is_one_answer_for_each_picture(classify: Classifier):
    pictures = [RED, GREEN, noise(16, 16), Image.new("RGB", (99, 20), (0, 0, 255))]

    answers = classify.batch(iter(pictures))

    assert [a.label for a in answers] == ["red", "green", classify(pictures[2]).label, "blue"]
    for answer, picture in zip(answers, pictures, strict=True):
        np.testing.assert_allclose(answer.scores, expected_scores(picture), rtol=1e-4)


def test_empty_batch(classify: Classifier):
    assert classify.batch([]) == []


def test_batch_above_the_largest(classify: Classifier):
    colors = [(255, 0, 0) if i % 3 else (0, 255, 0) for i in range(300)]
    pictures = (np.full((16, 16, 3), color, np.uint8) for color in colors)

    assert [a.label for a in classify.batch(pictures)] == ["red" if i % 3 else "green" for i in range(300)]


def test_a_batch_is_read_as_it_is_answered(classify: Classifier, monkeypatch):
    """More pictures than fit into memory may come: no more of them are read than one call of the engine takes."""
    drawn, seen = 0, []

    def frames(count):
        nonlocal drawn
        for drawn in range(1, count + 1):  # noqa: B007
            yield np.full((16, 16, 3), (255, 0, 0), np.uint8)

    infer = classify.session.infer
    monkeypatch.setattr(classify.session, "infer", lambda batch: seen.append((drawn, len(batch))) or infer(batch))
    assert len(classify.batch(frames(500))) == 500
    answered = 0
    for read, size in seen:
        answered += size
        assert read == answered
        assert size <= 64


def test_unreadable_picture(classify: Classifier):
    with pytest.raises(PictureError, match=r"^none\.jpg: no such file$"):
        classify("none.jpg")
    with pytest.raises(PictureError, match=r"^picture bytes: empty$"):
        classify.batch([RED, b""])
    assert classify(RED).label == "red"


def test_closed_classifier(tiny_bundle):
    classify = edgetl.load(tiny_bundle)
    assert repr(classify) == f"<edgetl.Classifier tiny, 3 classes, cpu: {NATIVE}>"
    with classify as same:
        assert same is classify
    classify.close()

    assert repr(classify) == "<edgetl.Classifier tiny, 3 classes, cpu: closed>"
    for call in (lambda: classify(RED), lambda: classify.batch([RED]), lambda: classify.batch([])):
        with pytest.raises(EngineError, match=r"^this classifier is closed; call edgetl\.load again$"):
            call()


def test_what_was_chosen_is_told(tiny_bundle):
    with edgetl.load(str(tiny_bundle)) as chosen, edgetl.load(open_bundle(tiny_bundle), variant="fp32") as named:
        assert (chosen.engine, chosen.variant, chosen.reason) == ("cpu", NATIVE, "0.5 x FP32's latency")
        assert (named.engine, named.variant, named.reason) == ("cpu", "fp32", "asked for by name")
        assert chosen.spec == named.spec == tiny_spec()
        np.testing.assert_array_equal(chosen(GREEN).scores, named(GREEN).scores)


def test_variant_that_is_not_recommended_is_not_chosen(tmp_path):
    root = write_tiny_bundle(tmp_path / "b", ("fp32", NATIVE), recommended=False, reason="1.3 x FP32's latency")

    with edgetl.load(root) as classify:
        assert (classify.variant, classify.reason) == ("fp32", f"{NATIVE} is not recommended: 1.3 x FP32's latency")
    with edgetl.load(root, variant=NATIVE) as classify:
        assert (classify.variant, classify.reason) == (NATIVE, "asked for by name")


@pytest.mark.parametrize("recommended", [True, None])
def test_variant_without_a_verdict_against_it_is_chosen(tmp_path, recommended):
    root = write_tiny_bundle(tmp_path / "b", ("fp32", NATIVE), recommended=recommended)
    variant, reason = choose_variant(open_bundle(root))
    assert (variant.name, reason) == (NATIVE, "INT8 for this processor")


@pytest.mark.skipif(host.arch() != "x86", reason="VNNI is x86's")
def test_a_processor_without_vnni_gets_fp32_whatever_another_measured(tiny_bundle, monkeypatch):
    monkeypatch.setattr(host, "cpu_flags", lambda: frozenset({"avx2"}))
    with edgetl.load(tiny_bundle) as classify:
        assert classify.variant == "fp32"
        assert classify.reason == f"this processor has no VNNI: {NATIVE} could saturate and would be slow"


def test_bundle_without_int8_for_this_machine(tmp_path):
    root = write_tiny_bundle(tmp_path / "b", ("fp32", FOREIGN, "int8-tensorrt"), recommended=True)
    variant, reason = choose_variant(open_bundle(root))
    assert (variant.name, reason) == ("fp32", f"the bundle has no {NATIVE}")


@pytest.mark.parametrize("name", ["int8-tensorrt", FOREIGN])
def test_variant_made_for_another_target(tmp_path, name):
    root = write_tiny_bundle(tmp_path / "b", ("fp32", name))
    with pytest.raises(EngineError) as caught:
        edgetl.load(root, variant=name)
    assert str(caught.value) == (
        f'variant "{name}" is made for {name.split("-")[1]}, this machine\'s CPU takes fp32 or {NATIVE}'
    )

    bundle = open_bundle(root)
    with session_for(bundle, bundle.variant(name)) as session:
        assert session.infer(np.zeros((1, 16, 16, 3), np.uint8))["logits"].tolist() == [TINY_BIAS.tolist()]


def test_unknown_names(tiny_bundle):
    with pytest.raises(
        EngineError, match=r'^engine "tpu" is unknown: it must be one of auto, tensorrt, tensorrt-rtx, cuda, cpu$'
    ):
        edgetl.load(tiny_bundle, engine="tpu")
    with pytest.raises(BundleError, match=f'has no variant "fp64"; it has fp32, {NATIVE}$'):
        edgetl.load(tiny_bundle, variant="fp64")


def test_damaged_graph_is_refused(tmp_path):
    root = write_tiny_bundle(tmp_path / "b")
    data = bytearray(tiny_graph())
    data[40] ^= 1
    (root / "model.fp32.onnx").write_bytes(data)

    with pytest.raises(BundleError, match=r"model\.fp32\.onnx: is damaged or was replaced \(sha256 differs\)"):
        edgetl.load(root)


def test_threads_answer_as_one_does(tiny_bundle):
    pictures = [encoded(Image.fromarray(noise(24, 31, seed=i)), "JPEG" if i % 2 else "PNG") for i in range(50)]
    with edgetl.load(tiny_bundle, threads=1) as classify:
        alone = np.stack([classify(p).scores for p in pictures])

        def run(shift: int) -> np.ndarray:
            order = [(i + 7 * shift) % 50 for i in range(50)]
            answers = {i: classify(pictures[i]).scores for i in order}
            return np.stack([answers[i] for i in range(50)])

        with ThreadPoolExecutor(8) as pool:
            for scores in pool.map(run, range(8)):
                np.testing.assert_array_equal(scores, alone)
    assert len(np.unique(alone, axis=0)) == 50


HEAVY = ("torch", "torchvision", "lightning", "onnx", "onnxscript", "timm", "safetensors", "sklearn")


@pytest.mark.parametrize(
    "work",
    [
        "import edgetl\nwith edgetl.load(ROOT) as classify: print(classify(PICTURE).label)",
        "import edgetl.bench, edgetl.dataset, edgetl.host, edgetl.artifacts\nedgetl.bench.BenchConfig(); print('red')",
    ],
    ids=["predict", "bench-and-dataset"],
)
def test_device_code_never_imports_the_training_stack(tiny_bundle, tmp_path, work):
    RED.save(tmp_path / "red.png")
    code = (
        f"import json, sys\nROOT, PICTURE = {str(tiny_bundle)!r}, {str(tmp_path / 'red.png')!r}\n{work}\n"
        f"print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    label, loaded = done.stdout.splitlines()
    assert (label, json.loads(loaded)) == ("red", [])


def test_import_alone_is_light():
    code = "import sys, edgetl; print([m for m in ('numpy', 'PIL', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
