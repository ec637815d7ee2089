"""Each choice is kept only where the reserved pictures say that it helps, and the record says what was tried."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest
from onnx import numpy_helper

from edgetl.errors import QuantizationError
from edgetl.quantize import Calibrator, QuantizeConfig, calibrate, load_onnx, write_int8
from edgetl.quantize.graph import Graph
from edgetl.quantize.placement import place
from edgetl.quantize.targets import TARGETS, target_named

TENSORRT = target_named("tensorrt")


def batches(count=48):
    pictures = graphs.pictures(count)
    return [pictures[i : i + 8] for i in range(0, count, 8)]


def scaled(model, name, factors, axis=0):
    """Multiplies channels of a constant."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    shaped = np.asarray(factors, np.float32).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    tensor.CopyFrom(numpy_helper.from_array((values * shaped).astype(np.float32), name))


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    return graphs.saved(graphs.residual_cnn(), tmp_path_factory.mktemp("float") / "model.fp32.onnx")


@pytest.fixture(scope="module")
def calibration(float_model):
    return calibrate(float_model, batches(), QuantizeConfig(), pictures_sha256="abc")


def test_what_was_tried_is_recorded_and_what_was_chosen_is_the_best_of_it(calibration):
    decisions = calibration.decisions
    tried = {t["what"]: t["sqnr_db"] for t in decisions.trials if t["target"] == "tensorrt"}
    assert {"as it is", "no repair", "thresholds: max", "thresholds: entropy", "everything in INT8"} <= tried.keys()
    chosen = decisions.repairs["tensorrt"]
    what = f"{'compensated' if chosen.compensate else 'plain'} rounding, {chosen.correct} bias correction"
    repairs = {w: score for w, score in tried.items() if "rounding" in w}
    if chosen.correct != "none" or chosen.compensate:
        assert tried[what] >= max(repairs.values()) - 0.06
        assert tried[what] > tried["no repair"]
    assert (calibration.pictures, calibration.judged) == (48, 12)


def test_the_default_beats_plain_thresholds_on_other_pictures(float_model, calibration, tmp_path):
    others = graphs.pictures(64, seed=9)
    expected = graphs.run(load_onnx(float_model.path), others)["logits"]

    def sqnr(found):
        write_int8(float_model, found, "x86", tmp_path / "x.onnx")
        got = graphs.run(load_onnx(tmp_path / "x.onnx"), others, disable_quant_qdq="1")["logits"]
        return graphs.sqnr(expected, got)

    plain = [calibrate(float_model, batches(), QuantizeConfig(m, repair=False, mixed=False)) for m in ("max", "mse")]
    assert sqnr(calibration) > max(map(sqnr, plain)) - 0.5


def test_channels_that_no_scale_fits_are_equalized(tmp_path):
    """Channels a hundred times louder than others, which the next layer takes back: the worst case per tensor."""
    model = graphs.cnn(["plain", "plain", "conv"])
    factors = np.geomspace(1, 300, 8)
    scaled(model, "conv1_weight", factors)
    scaled(model, "conv1_bias", factors)
    scaled(model, "conv2_weight", 1 / factors, axis=1)
    float_model = graphs.saved(model, tmp_path / "loud.onnx")
    found = calibrate(float_model, batches(), QuantizeConfig(mixed=False))
    assert found.decisions.equalize == 0.5
    score = {t["what"]: t["sqnr_db"] for t in found.decisions.trials if t["target"] == "tensorrt"}
    assert score["equalized"] > score["as it is"] + 3
    write_int8(float_model, found, "tensorrt", tmp_path / "out.onnx")
    pictures = graphs.pictures(16, seed=5)
    before = graphs.run(model, pictures)["logits"]
    after = graphs.run(load_onnx(tmp_path / "out.onnx"), pictures, disable_quant_qdq="1")["logits"]
    assert graphs.sqnr(before, after) > 25


def hard_model(tmp_path):
    """A small layer whose input spans four orders of magnitude, behind a Sigmoid so that nothing equalizes it."""
    model = graphs.cnn(["conv", "plain", "conv", "conv"])
    relu = graphs.nodes_of(model, "Relu")[1]
    relu.op_type = "Sigmoid"
    bias = next(t for t in model.graph.initializer if t.name == "conv1_bias")
    bias.CopyFrom(numpy_helper.from_array(np.linspace(-9, 2, 8).astype(np.float32), bias.name))
    scaled(model, "conv2_weight", np.exp(np.linspace(9, 0, 8)), axis=1)
    return graphs.saved(model, tmp_path / "hard.onnx")


def test_a_layer_that_costs_too_much_stays_in_float_and_the_table_says_so(tmp_path):
    float_model = hard_model(tmp_path)
    whole = calibrate(float_model, batches(), QuantizeConfig(mixed=False))
    mixed = calibrate(float_model, batches(), QuantizeConfig())
    assert not whole.decisions.spared
    spared = mixed.decisions.spared["tensorrt"]
    ranking = [cost.layer for cost in mixed.decisions.ranking]
    assert spared
    assert list(spared) == ranking[: len(spared)]
    assert sorted(ranking) == ["conv1", "conv2", "conv3", "conv4", "stem1"]
    scores = {}
    for name, found in (("whole", whole), ("mixed", mixed)):
        write_int8(float_model, found, "tensorrt", tmp_path / f"{name}.onnx")
        pictures = graphs.pictures(32, seed=7)
        got = graphs.run(load_onnx(tmp_path / f"{name}.onnx"), pictures, disable_quant_qdq="1")["logits"]
        scores[name] = graphs.sqnr(graphs.run(load_onnx(float_model.path), pictures)["logits"], got)
    assert scores["mixed"] > scores["whole"]
    kept = dict(place(Graph(load_onnx(float_model.path)), TENSORRT, spared=spared).spared)
    assert all(kept[name] == "too sensitive" for name in spared)


def test_more_layers_are_spared_on_request_until_half_of_the_work_is_float(tmp_path):
    float_model = graphs.saved(graphs.cnn(["plain"] * 9), tmp_path / "m.onnx")
    with Calibrator(float_model, batches(), QuantizeConfig()) as calibrator:
        found = calibrator.calibrate()
        sizes = []
        while found is not None:
            sizes.append(len(found.decisions.spared["tensorrt"]))
            assert found.decisions.spared["x86"] == ()
            found = calibrator.spare_more(found, "tensorrt")
    assert sizes[:3] == [0, 1, 2]
    assert len(sizes) <= 5


@pytest.mark.parametrize("latency", [{0: 1.0, 1: 2.0}, {0: 2.0, 1: 1.0}])
def test_of_two_that_keep_the_accuracy_the_one_measured_faster_is_taken(tmp_path, latency):
    float_model = hard_model(tmp_path)
    measured = []

    def measure(target, model):
        if target != "x86":
            return None
        floats = sum(n.op_type == "Conv" and "_dq" not in n.input[1] for n in model.graph.node)
        measured.append(floats)
        return latency[min(floats, 1)]

    found = calibrate(float_model, batches(), QuantizeConfig(max_drop=1.0), measure=measure)
    plain = calibrate(float_model, batches(), QuantizeConfig(max_drop=1.0))
    assert plain.decisions.spared["x86"]
    assert {0, len(plain.decisions.spared["x86"])} <= set(measured)
    assert bool(found.decisions.spared["x86"]) == (latency[1] < latency[0])
    assert found.decisions.spared["tensorrt"] == plain.decisions.spared["tensorrt"]


def test_layers_that_cost_time_are_spared_only_when_asked_for(tmp_path):
    float_model = hard_model(tmp_path)

    def measure(target, model):
        return 1.0 + sum(n.op_type == "Conv" and "_dq" not in n.input[1] for n in model.graph.node)

    config = QuantizeConfig("max", repair=False, max_drop=0.0)
    plain = calibrate(float_model, batches(), config)
    lost = [trial["lost"] for trial in plain.decisions.trials if trial["target"] == "x86"]
    assert (lost[0], lost[-1]) == (12, 0)
    with Calibrator(float_model, batches(), config, measure=measure) as calibrator:
        timed = calibrator.calibrate()
        asked_for = calibrator.spare_more(timed, "x86")
    assert timed.decisions.spared["x86"] == ()
    assert asked_for is not None
    assert asked_for.decisions.spared["x86"] == plain.decisions.spared["x86"] != ()


def test_labels_tell_a_loss_from_a_change(float_model):
    pictures = graphs.pictures(48)
    wrong = (graphs.run(load_onnx(float_model.path), pictures)["logits"].argmax(axis=1) + 1) % graphs.CLASSES
    found = calibrate(float_model, batches(), QuantizeConfig(), labels=wrong)
    assert all(trial["lost"] == 0 for trial in found.decisions.trials)  # what was wrong cannot be lost


@pytest.mark.parametrize("count", [1, 15])
def test_too_few_pictures_to_judge_by_change_nothing_but_ranges(float_model, tmp_path, count):
    found = calibrate(float_model, [graphs.pictures(count)], QuantizeConfig())
    assert (found.pictures, found.judged) == (count, 0)
    assert found.decisions.trials == ()
    assert set(found.decisions.methods.values()) <= {"mse", "max"}  # gates are never cut
    for target in TARGETS:
        write_int8(float_model, found, target.name, tmp_path / "out.onnx")


def test_no_pictures_are_refused_with_and_without_trials(float_model):
    for config in (QuantizeConfig(), QuantizeConfig("max", repair=False, mixed=False)):
        with pytest.raises(QuantizationError, match=r"^no calibration pictures"):
            calibrate(float_model, [], config)


def test_the_record_is_json_and_gives_the_same_graphs_again(float_model, calibration, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(calibration.to_dict(), allow_nan=False))
    again = calibrate(float_model, batches(), QuantizeConfig(), pictures_sha256="abc", reuse=path)
    assert json.dumps(again.to_dict()) == json.dumps(calibration.to_dict())
    for target in TARGETS:
        first = write_int8(float_model, calibration, target.name, tmp_path / "a.onnx")
        second = write_int8(float_model, again, target.name, tmp_path / "b.onnx")
        assert first.sha256 == second.sha256, target.name


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"pictures_sha256": "other"}, "pictures_sha256"),
        ({"config": QuantizeConfig("mse")}, "method"),
        ({"config": QuantizeConfig(repair=False)}, "repair"),
        ({"config": QuantizeConfig(max_drop=0.5)}, "max_drop"),
        ({"config": QuantizeConfig(keep_fp16=("stem1",))}, "keep_fp16"),
        ({"labels": [0] * 48}, "labels_sha256"),
        ({"seed": 1}, "graph_sha256"),
    ],
)
def test_a_record_of_something_else_is_refused_by_what_differs(float_model, calibration, tmp_path, change, names):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(calibration.to_dict()))
    model = float_model
    if "seed" in change:
        model = graphs.saved(graphs.residual_cnn(seed=1), tmp_path / "other.onnx")
    options = {"pictures_sha256": change.get("pictures_sha256", "abc"), "labels": change.get("labels"), "reuse": path}
    with pytest.raises(QuantizationError, match=rf"belongs to something else \({names} differs\); calibrate again"):
        calibrate(model, batches(), change.get("config", QuantizeConfig()), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no calibration.json"),
        ("[]", "is no calibration.json"),
        ("{}", "has format None, this edgetl reads 3"),
        ('{"format_version": 3}', r"is no calibration.json \(KeyError"),
    ],
)
def test_a_file_that_is_no_record_is_refused_in_a_line(float_model, tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(QuantizationError, match=message) as caught:
        calibrate(float_model, batches(), QuantizeConfig(), reuse=path)
    assert "\n" not in str(caught.value)
    with pytest.raises(QuantizationError, match="cannot be read"):
        calibrate(float_model, batches(), QuantizeConfig(), reuse=tmp_path / "absent.json")


def test_a_record_that_was_changed_is_refused(float_model, calibration, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**calibration.to_dict(), "key": "0" * 64}))
    with pytest.raises(QuantizationError, match=r"\(its own key differs\)"):
        calibrate(float_model, batches(), QuantizeConfig(), pictures_sha256="abc", reuse=path)
    record = calibration.to_dict()
    record["decisions"]["tensors"]["relu1_out"]["high"] = 1e-3
    path.write_text(json.dumps(record))
    with pytest.raises(QuantizationError, match="was changed by hand; calibrate again without it"):
        calibrate(float_model, batches(), QuantizeConfig(), pictures_sha256="abc", reuse=path)


def test_several_outputs_shared_weights_and_unknown_ops_are_right_graphs(tmp_path):
    model = graphs.cnn(["conv", "conv", "se"])
    graphs.nodes_of(model, "Conv")[2].input[1] = "conv1_weight"
    tanh = onnx.helper.make_node("Tanh", ["relu2_out"], ["tanh_out"], name="tanh1")
    at = next(i for i, n in enumerate(model.graph.node) if n.name == "relu2") + 1
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], tanh, *nodes[at:]])
    next(n for n in model.graph.node if n.name == "conv2").input[0] = "tanh_out"
    model.graph.output.append(onnx.helper.make_tensor_value_info("relu2_out", 1, ["batch", 8, 16, 16]))
    float_model = graphs.saved(model, tmp_path / "odd.onnx")
    found = calibrate(float_model, batches(), QuantizeConfig())
    pictures = graphs.pictures(8, seed=3)
    before = graphs.run(model, pictures)
    for target in TARGETS:
        write_int8(float_model, found, target.name, tmp_path / "out.onnx")
        after = graphs.run(load_onnx(tmp_path / "out.onnx"), pictures, disable_quant_qdq="1")
        assert before.keys() == after.keys()
        assert all(graphs.sqnr(before[name], after[name]) > 20 for name in before)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_weights_are_one_clear_error(tmp_path, value):
    model = graphs.cnn(["conv"])
    scaled(model, "conv1_weight", [1, 1, value, 1, 1, 1, 1, 1])
    float_model = graphs.saved(model, tmp_path / "damaged.onnx")
    with pytest.raises(QuantizationError, match=r"holds NaN or infinity") as caught:
        calibrate(float_model, batches(), QuantizeConfig())
    assert "\n" not in str(caught.value)


def test_dead_and_constant_channels_survive_every_repair(tmp_path):
    model = graphs.cnn(["conv", "conv", "residual"])
    scaled(model, "conv1_weight", [0, 0, 1, 1, 1, 1, 1, 1])  # constant activations, of the bias alone
    scaled(model, "conv1_bias", [-1, 5, 1, 1, 1, 1, 1, 1])
    float_model = graphs.saved(model, tmp_path / "dead.onnx")
    found = calibrate(float_model, batches(), QuantizeConfig())
    forced = replace(found, decisions=replace(found.decisions, spared={}))
    pictures = graphs.pictures(8, seed=3)
    for target in TARGETS:
        write_int8(float_model, forced, target.name, tmp_path / "out.onnx")
        got = graphs.run(load_onnx(tmp_path / "out.onnx"), pictures, disable_quant_qdq="1")["logits"]
        assert graphs.sqnr(graphs.run(model, pictures)["logits"], got) > 20
