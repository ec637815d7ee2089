"""From an FP32 file and pictures to INT8 files."""

import dataclasses
import json

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest

from edgetl.artifacts import sha256_of
from edgetl.errors import InputError, QuantizationError
from edgetl.quantize import QuantizeConfig, calibrate, load_onnx, write_fp16, write_int8
from edgetl.quantize.targets import TARGETS
from edgetl.quantize.thresholds import METHODS
from edgetl.runtime.ort import OrtSession

TARGET_NAMES = tuple(t.name for t in TARGETS)


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    return graphs.saved(graphs.residual_cnn(), tmp_path_factory.mktemp("float") / "model.fp32.onnx")


def plain(method, **options):
    """One pass, thresholds and nothing else."""
    return QuantizeConfig(method=method, repair=False, mixed=False, **options)


def batches():
    pictures = graphs.pictures(24)
    return iter([pictures[:10], pictures[10:20], pictures[20:]])


@pytest.fixture(scope="module")
def calibration(float_model):
    return calibrate(float_model, batches(), plain("max"))


def answers(model, pictures):
    with OrtSession(model.path, model.spec, threads=1) as session:
        return session.infer(pictures)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_and_target_gives_a_file_that_answers_alike(float_model, tmp_path, method):
    calibration = calibrate(float_model, batches(), plain(method))
    pictures = graphs.pictures(24)
    expected = answers(float_model, pictures)["logits"]
    for target in TARGET_NAMES:
        path = tmp_path / f"model.int8-{target}.onnx"
        result = write_int8(float_model, calibration, target, path)
        assert (result.path, result.precision, result.target) == (path, "int8", target)
        assert result.sha256 == sha256_of(path)
        assert result.parent == float_model.sha256
        assert result.spec == float_model.spec
        onnx.checker.check_model(load_onnx(path), full_check=True)
        assert graphs.sqnr(expected, answers(result, pictures)["logits"]) > 20
        stored = {t.data_type for t in load_onnx(path).graph.initializer}
        assert (onnx.TensorProto.FLOAT16 in stored) == (target == "tensorrt")
        assert (onnx.TensorProto.UINT8 in stored) == (target == "x86")


def test_fp16_is_written_from_the_float_graph(float_model, tmp_path):
    result = write_fp16(float_model, tmp_path / "model.fp16.onnx")
    assert (result.precision, result.target, result.parent) == ("fp16", "any", float_model.sha256)
    pictures = graphs.pictures(6)
    assert graphs.sqnr(answers(float_model, pictures)["logits"], answers(result, pictures)["logits"]) > 40


def test_calibration_knows_its_graph_and_its_pictures(float_model, calibration):
    assert calibration.pictures == 24
    assert calibration.keyed_by["graph_sha256"] == float_model.sha256
    assert set(calibration.decisions.methods.values()) == {"max"}
    truth = graphs.run(
        graphs.with_outputs(load_onnx(float_model.path), ["relu1_out", "conv2_out"]), graphs.pictures(24)
    )
    for name, values in truth.items():
        assert calibration.decisions.observed[name] == pytest.approx((values.min(), values.max()), rel=1e-5)
        assert calibration.decisions.ranges[name] == calibration.decisions.observed[name]


def test_a_pool_has_the_range_of_its_input(float_model):
    calibration = calibrate(float_model, batches(), plain("entropy"))
    assert calibration.decisions.ranges["maxpool1_out"] == calibration.decisions.ranges["relu1_out"]


def test_progress_is_told(float_model):
    told = []
    calibrate(float_model, batches(), plain("mse"), on_progress=lambda *step: told.append(step))
    assert told == [("ranges", 10, 0), ("ranges", 20, 0), ("ranges", 24, 0)]
    told.clear()
    calibrate(float_model, batches(), QuantizeConfig(), on_progress=lambda *step: told.append(step))
    assert told[0] == ("reading pictures", 10, 0)
    assert ("ranges", 18, 18) in told  # six are reserved
    assert {"second moments", "trials"} < {stage for stage, _, _ in told}


def test_calibration_is_json_and_the_same_every_time(float_model, calibration):
    data = calibration.to_dict()
    text = json.dumps(data, allow_nan=False)
    assert json.loads(text) == data
    again = calibrate(float_model, batches(), plain("max"))
    assert json.dumps(again.to_dict()) == text
    assert list(data)[:5] == ["format_version", "key", "keyed_by", "pictures", "judged"]
    assert list(data["decisions"]["tensors"]) == sorted(calibration.decisions.ranges)
    entry = data["decisions"]["tensors"]["relu1_out"]
    assert list(entry) == ["low", "high", "observed", "method"]
    assert [entry["low"], entry["high"]] == entry["observed"]
    assert entry["low"] == 0.0


def test_the_same_calibration_writes_the_same_file(float_model, calibration, tmp_path):
    first = write_int8(float_model, calibration, "tensorrt", tmp_path / "a.onnx")
    second = write_int8(float_model, calibration, "tensorrt", tmp_path / "b.onnx")
    assert first.sha256 == second.sha256


def test_ranges_of_another_graph_are_refused(calibration, tmp_path):
    other = graphs.saved(graphs.residual_cnn(seed=1), tmp_path / "other.onnx")
    with pytest.raises(
        QuantizationError, match=r"^other\.onnx: these ranges belong to another graph; calibrate again$"
    ):
        write_int8(other, calibration, "x86", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_layers_are_kept_in_float_by_pattern(float_model, tmp_path):
    calibration = calibrate(float_model, batches(), plain("max", keep_fp16=("conv?", "up1_weight")))
    result = write_int8(float_model, calibration, "tensorrt", tmp_path / "out.onnx")
    stored = {t.name: t.data_type for t in load_onnx(result.path).graph.initializer}
    assert stored["conv1_weight_fp16"] == stored["up1_weight_fp16"] == onnx.TensorProto.FLOAT16
    assert "depthwise1_weight_axis0_int8" in stored


@pytest.mark.parametrize("patterns", [("layer4.*",), ("conv1", "layer4.*")])
def test_a_pattern_that_names_nothing_is_refused(float_model, patterns):
    message = r"^--keep-fp16 layer4\.\*: names no layer; see edgetl inspect --layers$"
    with pytest.raises(QuantizationError, match=message):
        calibrate(float_model, batches(), plain("max", keep_fp16=patterns))


def test_a_graph_without_a_layer_to_quantize_is_refused(tmp_path):
    b = graphs.Builder()
    flat = b.node("Flatten", b.node("GlobalAveragePool", b.normalize("pictures", (16, 16))), output="embedding")
    b.dense(flat, 3, graphs.CLASSES, "gemm", output="logits")
    value = graphs.helper.make_tensor_value_info
    model = b.model(
        [value("pictures", onnx.TensorProto.UINT8, ["batch", 16, 16, 3])],
        [value("logits", 1, ["batch", graphs.CLASSES]), value("embedding", 1, ["batch", 3])],
    )
    with pytest.raises(
        QuantizationError, match=r"^plain\.onnx: has no layer that INT8 would help; export it without --int8$"
    ):
        calibrate(graphs.saved(model, tmp_path / "plain.onnx"), batches(), QuantizeConfig())


def test_no_pictures_are_refused(float_model):
    with pytest.raises(QuantizationError, match=r"^no calibration pictures"):
        calibrate(float_model, [], QuantizeConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "kl"}, r'^--method is "kl": it must be one of auto, max, percentile, mse, entropy$'),
        ({"calib_images": 0}, r"^--calib-images is 0: it must be 1 to 1000000$"),
        ({"calib_images": 1_000_001}, r"^--calib-images is 1000001: it must be 1 to 1000000$"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        QuantizeConfig(**options)


def test_settings_and_results_are_frozen(calibration):
    for thing, name in ((QuantizeConfig(), "method"), (calibration, "decisions")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, "max")


def test_dead_channels_and_dead_tensors_give_a_working_graph(tmp_path):
    """A ReLU that is always zero, as in over-regularized networks."""
    model = graphs.cnn(["conv", "conv"])
    for tensor in model.graph.initializer:
        if tensor.name in ("conv1_weight", "conv1_bias"):
            values = np.zeros_like(onnx.numpy_helper.to_array(tensor)) - (tensor.name == "conv1_bias")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    float_model = graphs.saved(model, tmp_path / "dead.onnx")
    for method in METHODS:
        calibration = calibrate(float_model, batches(), plain(method))
        assert calibration.decisions.ranges["relu2_out"] == (0.0, 0.0)
        for target in TARGET_NAMES:
            result = write_int8(float_model, calibration, target, tmp_path / "out.onnx")
            got = answers(result, graphs.pictures(4))["logits"]
            assert graphs.sqnr(answers(float_model, graphs.pictures(4))["logits"], got) > 25


def test_a_pattern_that_leaves_nothing_to_quantize_is_named(float_model):
    with pytest.raises(QuantizationError, match="has no layer beside --keep-fp16 that INT8 would help"):
        calibrate(float_model, batches(), plain("max", keep_fp16=("*",)))
