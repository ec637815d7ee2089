"""A run becomes a bundle whose manifest proves what it is worth, or nothing at all."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fixtures_trained import Recorder

import edgetl
from edgetl import host
from edgetl.backbones import load_network, save_network
from edgetl.bench import answers, label_indices, paired_ratio
from edgetl.bundle import open_bundle
from edgetl.confidence import confidence_report, passes
from edgetl.errors import ExportError, GateError, InputError, QuantizationError
from edgetl.export import (
    ExportConfig,
    export_onnx_file,
    export_original,
    export_run,
    onnx_from_module,
    original_name,
)
from edgetl.finetune import open_run
from edgetl.metrics import flip_rate, softmax, top1
from edgetl.quantize import QuantizeConfig

pytestmark = pytest.mark.slow

ALL = ["fp32", "fp16", "int8-tensorrt", "int8-x86", "int8-arm"]


def test_the_bundle_holds_every_variant_and_verifies(bundle_path):
    bundle = open_bundle(bundle_path)
    bundle.verify()
    assert [v.name for v in bundle.variants] == ALL
    assert {p.name for p in bundle_path.iterdir()} == {
        "manifest.json", "labels.txt", "calibration.json", "latency.json", "exemplars.npy",
        *(f"model.{name}.onnx" for name in ALL),
    }  # fmt: skip
    sizes = {v.name: v.bytes for v in bundle.variants}
    assert sizes["int8-tensorrt"] < 0.35 * sizes["fp32"]
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert (bundle_path / "labels.txt").read_text().split() == ["5", "6", "7", "8", "9"]


def test_no_file_of_a_bundle_names_a_picture(bundle_path, new_digits):
    names = [item.path.name.encode() for item in new_digits.items]
    for file in bundle_path.iterdir():
        data = file.read_bytes()
        assert not [name for name in names if name in data], file.name
        assert str(new_digits.root).encode() not in data


def test_the_proof_is_what_the_graphs_answer(bundle_path, new_digits):
    bundle = open_bundle(bundle_path)
    items = new_digits.split("val")
    found = dict(zip(ALL, answers(bundle, [(variant, "cpu") for variant in bundle.variants], items), strict=True))
    labels = label_indices(bundle.spec, new_digits, items)
    for variant in bundle.variants:
        assert variant.metrics["top1"] == pytest.approx(top1(found[variant.name], labels))
        assert variant.metrics["flip_rate"] == pytest.approx(flip_rate(found[variant.name], found["fp32"]))
        assert variant.metrics["top1_drop"] == pytest.approx(
            bundle.variant("fp32").metrics["top1"] - variant.metrics["top1"]
        )
    assert bundle.manifest["proof"]["fp32"]["top1"] == pytest.approx(bundle.variant("fp32").metrics["top1"])
    assert bundle.variant("fp16").metrics["sqnr_db"] > 45
    assert bundle.variant("int8-tensorrt").metrics["sqnr_db"] > 15


def test_the_graph_reaches_what_torch_reached(bundle_path, transfer_run):
    trained = json.loads((transfer_run / "metrics.json").read_text())["val"]["top1"]
    assert open_bundle(bundle_path).variant("fp32").metrics["top1"] == pytest.approx(trained, abs=0.006)


def test_the_manifest_names_no_path_of_this_machine(bundle_path, new_digits_folder):
    text = (bundle_path / "manifest.json").read_text() + (bundle_path / "calibration.json").read_text()
    assert str(new_digits_folder.parent) not in text
    assert "/" not in json.dumps(json.loads(text.split("\n}\n")[0] + "\n}")["provenance"]["source"])


def test_calibration_pictures_come_from_train_alone(bundle_path, new_digits):
    provenance = open_bundle(bundle_path).manifest["provenance"]
    assert provenance["calibration_pictures"] == len(new_digits.split("train")) == 60
    assert json.loads((bundle_path / "calibration.json").read_text())["pictures"] == 60


def test_the_device_api_answers_from_the_bundle(bundle_path, new_digits):
    items = new_digits.split("val")[::5]
    with edgetl.load(bundle_path) as classify:
        found = [classify(item.path).label for item in items]
        assert [p.label for p in classify.batch([i.path for i in items])] == found
    right = np.mean([f == new_digits.classes[i.label] for f, i in zip(found, items, strict=True)])
    assert right > 0.5


def test_int8_that_loses_too_much_is_shown_and_leaves_nothing(
    transfer_run, new_digits, tmp_path, recorder, monkeypatch
):
    import edgetl.quantize.decide as decide

    # ranges a hundred times too small: a calibration that went wrong
    monkeypatch.setattr(decide, "range_of", lambda seen, _: (seen.low / 100, seen.high / 100))
    with pytest.raises(GateError, match=r"int8-tensorrt loses .* points of top-1 .* nothing was written") as caught:
        export_run(transfer_run, new_digits, ExportConfig(int8=True), tmp_path / "b.edgetl", reporter=recorder)
    assert caught.value.exit_code == 1
    assert [v.name for v in recorder.tables[0]] == ALL
    assert list(tmp_path.iterdir()) == []


def test_a_variant_that_overflows_is_refused_whatever_it_may_lose(transfer_run, new_digits, tmp_path, recorder):
    checkpoint, _ = open_run(transfer_run)
    network, spec = load_network(checkpoint.path)
    with torch.no_grad():
        network.backbone[-1][1].weight *= 1e6
        network.backbone[-1][1].bias *= 1e6
    onnx_from_module(network, spec, tmp_path / "big.onnx")
    config = ExportConfig(max_drop=1.0)
    with pytest.raises(GateError, match="fp16 answers with NaN or infinity, its values leave the range of FP16"):
        export_onnx_file(tmp_path / "big.onnx", spec, new_digits, config, tmp_path / "b.edgetl", reporter=recorder)
    assert [p.name for p in tmp_path.iterdir()] == ["big.onnx"]


def test_force_replaces_bundles_and_nothing_else(transfer_run, new_digits, tmp_path, recorder):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt: is no part of a bundle, --force would delete"):
        export_run(transfer_run, new_digits, ExportConfig(), photos, reporter=recorder, force=True)
    assert (photos / "thesis.txt").read_text() == "mine"


def test_raw_samples_and_settings_are_kept(bundle_path, new_digits):
    native = f"int8-{host.arch()}"
    samples = json.loads((bundle_path / "latency.json").read_text())["samples_ns"]
    manifest = open_bundle(bundle_path).manifest
    assert set(samples) == {"fp32", native}
    ratio = paired_ratio(samples[native], samples["fp32"])
    assert open_bundle(bundle_path).variant(native).metrics["latency_ratio"] == pytest.approx(ratio)
    provenance = manifest["provenance"]
    int8 = provenance["int8"]
    assert (int8["method"], int8["keep_fp16"], int8["repair"], int8["mixed"]) == ("auto", [], True, True)
    assert (provenance["val_fraction"], provenance["allow_leakage"], provenance["max_drop"]) == (0.2, False, 0.05)
    calibration = json.loads((bundle_path / "calibration.json").read_text())
    assert calibration["keyed_by"]["preprocess"] == open_bundle(bundle_path).spec.preprocess.to_dict()


def test_keep_fp16_leaves_a_layer_in_float(transfer_run, new_digits, tmp_path, recorder):
    config = ExportConfig(int8=True, max_drop=1.0, seconds=0.05)
    seen = []
    with pytest.raises(QuantizationError, match="names no layer"):
        export_run(
            transfer_run, new_digits, dataclasses.replace(config, quantize=QuantizeConfig(keep_fp16=("nothing",))),
            tmp_path / "a.edgetl", reporter=recorder,
        )  # fmt: skip
    bundle = export_run(
        transfer_run,
        new_digits,
        dataclasses.replace(config, quantize=QuantizeConfig(keep_fp16=("backbone.1.*",))),
        tmp_path / "b.edgetl",
        reporter=recorder,
        on_fidelity=seen.append,
    )
    names = {str(item.path) for item in new_digits.split("val")}
    for name, report in bundle.manifest["proof"]["fidelity"].items():
        flips = seen[0][name]["worst_flips"]
        assert {flip.pop("picture") for flip in flips} <= names
        assert report == seen[0][name], "a bundle holds the same, but for the pictures' names"
    convs = [n for n in onnx.load(bundle.root / "model.int8-x86.onnx").graph.node if n.op_type == "Conv"]
    plain = [n.name for n in convs if not n.input[1].endswith("_dq")]
    assert len(plain) == 1
    assert len(convs) == 6


def test_other_data_than_the_run_s_is_refused(transfer_run, digits, tmp_path, recorder):
    with pytest.raises(ExportError, match=r"is not the data that .* was trained on"):
        export_run(transfer_run, digits, ExportConfig(), tmp_path / "b.edgetl", reporter=recorder)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_forced(transfer_run, new_digits, bundle_path, recorder):
    before = (bundle_path / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        export_run(transfer_run, new_digits, ExportConfig(), bundle_path, reporter=recorder)
    assert (bundle_path / "manifest.json").read_bytes() == before


def test_the_original_is_judged_by_its_own_labels(transfer_run, new_digits, tmp_path, recorder):
    out = original_name(tmp_path / "digits.edgetl")
    assert out.name == "digits.original.edgetl"
    theirs = QuantizeConfig("mse", keep_fp16=("head.1*",), repair=False, mixed=False)  # names nothing in the original
    config = ExportConfig(int8=True, quantize=theirs, calibration=tmp_path / "of-the-other.json")
    bundle = export_original(transfer_run, new_digits, config, out, reporter=recorder)
    assert bundle.spec.labels == ("0", "1", "2", "3", "4")
    assert bundle.variant("fp32").metrics["top1"] is None  # its classes are others
    assert bundle.manifest["proof"]["reason"] == "the data's classes are not among this model's labels"
    assert bundle.manifest["proof"]["probe_top1"] > 0.5
    assert bundle.variant("int8-x86").metrics["flip_rate"] is not None
    assert bundle.variant("int8-x86").recommended is False
    with edgetl.load(bundle) as classify:
        assert classify.variant == "fp32"
        assert "its accuracy could not be measured on this data" in classify.reason


def test_an_original_that_overflows_is_stated(transfer_run, new_digits, tmp_path, recorder):
    """Nothing is gated, so FP16's infinities stand in the bundle as what they are."""
    run = tmp_path / "run"
    shutil.copytree(transfer_run, run)
    network, spec = load_network(run / "source.safetensors")
    with torch.no_grad():
        network.backbone[-1][1].weight *= 1e6
        network.backbone[-1][1].bias *= 1e6
    save_network(network, spec, run / "source.safetensors")
    bundle = export_original(run, new_digits, ExportConfig(), tmp_path / "o.edgetl", reporter=recorder)
    assert (bundle.variant("fp16").recommended, bundle.variant("fp16").reason) == (
        False,
        "answers with NaN or infinity",
    )
    assert "fp16" not in bundle.manifest["proof"]["fidelity"]


def test_a_run_without_pretrained_weights_has_no_original(source_run, digits, tmp_path, recorder):
    with pytest.raises(ExportError, match="no original to export"):
        export_original(source_run, digits, ExportConfig(), tmp_path / "o.edgetl", reporter=recorder)


def test_a_users_own_onnx_file_becomes_a_bundle(bundle_path, new_digits, digits, tmp_path, recorder):
    spec = open_bundle(bundle_path).spec
    source = bundle_path / "model.fp32.onnx"
    bundle = export_onnx_file(
        source, spec, new_digits, ExportConfig(int8=True, max_drop=0.05, seconds=0.05), tmp_path / "own.edgetl",
        reporter=recorder,
    )  # fmt: skip
    assert bundle.variant("fp32").metrics["top1"] == pytest.approx(
        open_bundle(bundle_path).variant("fp32").metrics["top1"]
    )
    with pytest.raises(ExportError, match='class "0" is not among the spec\'s labels'):
        export_onnx_file(source, spec, digits, ExportConfig(), tmp_path / "no.edgetl", reporter=recorder)
    assert not (tmp_path / "no.edgetl").exists()


def test_confidence_is_fitted_proven_and_applied(bundle_path, new_digits):
    bundle = open_bundle(bundle_path)
    proof = bundle.manifest["proof"]["confidence"]
    assert list(proof) == ALL
    items = new_digits.split("val")
    labels = label_indices(bundle.spec, new_digits, items)
    [logits] = answers(bundle, [(bundle.variant("fp32"), "cpu")], items)
    report = confidence_report(logits, labels)
    assert proof["fp32"] == pytest.approx(report, rel=1e-4)
    with edgetl.load(bundle_path, variant="fp32") as classify:
        answer = classify(items[0].path)
    np.testing.assert_allclose(answer.scores, softmax(logits[:1] / report["temperature"])[0], atol=1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_pictures_of_none_of_the_classes_get_no_label(given, transfer_run, new_digits, digits, tmp_path):
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    for item in digits.split("val")[::4]:  # digits 0 to 4, which the model has not learned
        shutil.copy(item.path, unknown / f"{item.sha256[:8]}.png")
    config = ExportConfig(fp16=False, false_accept=0.5, unknown=unknown if given else None, exemplars=0)
    bundle = export_run(transfer_run, new_digits, config, tmp_path / "b.edgetl", reporter=Recorder())
    assert not (bundle.root / "exemplars.npy").exists()
    found = bundle.manifest["proof"]["confidence"]["fp32"]["unknown"]
    assert found["source"] == ("pictures" if given else "classes left out")
    with edgetl.load(bundle) as classify:
        foreign = [classify(path).label for path in sorted(unknown.iterdir())]
        known = [classify(item.path).label for item in new_digits.split("val")]
    if given:
        assert sum(label is not None for label in foreign) <= 0.5 * len(foreign)
    rejected = sum(label is None for label in known) / len(known)
    items = new_digits.split("val")
    [logits] = answers(bundle, [(bundle.variant("fp32"), "cpu")], items)
    decision = bundle.decisions["fp32"]
    assert decision.min_log_odds == found["min_log_odds"]
    assert rejected == pytest.approx(1 - passes(logits, decision.temperature, decision.min_log_odds).mean(), abs=0.01)
    # What the proof says was measured on pictures that the threshold was not found with.
    assert rejected == pytest.approx(found["right_and_rejected"] + found["wrong_and_rejected"], abs=0.2)
    assert rejected < 0.9
    assert found["false_accept"] == 0.5
    assert found["false_accept_measured"] == pytest.approx(0.5, abs=0.25)


def test_a_threshold_needs_something_to_be_found_with():
    with pytest.raises(InputError, match="--unknown needs --false-accept"):
        ExportConfig(unknown=Path("x"))
    with pytest.raises(InputError, match=r"--false-accept is 1\.0: it must be from 0% to below 100%"):
        ExportConfig(false_accept=1.0)
