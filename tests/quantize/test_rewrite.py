"""Q/DQ pairs: their numbers, their places, and what the rewritten graph answers."""

from collections import Counter

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, numpy_helper

from edgetl.errors import QuantizationError
from edgetl.quantize.graph import Graph
from edgetl.quantize.observe import observe
from edgetl.quantize.placement import place, weight_axis
from edgetl.quantize.rewrite import activation_parameters, hard_swish_parameters, quantize_graph, weight_parameters
from edgetl.quantize.targets import TARGETS, target_named
from edgetl.quantize.thresholds import range_of

each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
ends = st.floats(-(2.0**100), 2.0**100, width=32)


def quantized(model, target, pictures, keep_float=()):
    """The INT8 graph with everything that was seen covered."""
    graph = Graph(model)
    placement = place(graph, target, keep_float)
    seen = observe(model, placement.tensors(graph), [pictures], threads=1)
    ranges = {name: range_of(observation, "max") for name, observation in seen.items()}
    for node in graphs.nodes_of(model, "MaxPool"):
        if {node.input[0], node.output[0]} <= ranges.keys():
            ranges[node.output[0]] = ranges[node.input[0]]
    return quantize_graph(graph, placement, ranges, target)


@each_target
@settings(deadline=None)
@given(st.tuples(ends, ends).map(sorted))
def test_activation_parameters_cover_the_range_and_hold_zero(target, limits):
    low, high = limits
    scale, zero_point = activation_parameters((low, high), target)
    smallest, largest = target.levels
    assert scale.dtype == np.float32
    assert np.isfinite(scale)
    assert scale > 0
    assert zero_point.dtype == target.dtype
    assert smallest <= int(zero_point) <= largest
    if target.symmetric:
        assert int(zero_point) == 0
    step = float(scale)
    assert (smallest - int(zero_point)) * step <= low + step * (1 + 1e-5)
    assert (largest - int(zero_point)) * step >= high - step * (1 + 1e-5)


@each_target
@settings(deadline=None)
@given(st.tuples(ends, ends).map(sorted).filter(lambda r: max(map(abs, r)) > 1e-6))
def test_activation_parameters_waste_no_levels(target, limits):
    scale, _ = activation_parameters(tuple(limits), target)
    low, high = min(limits[0], 0), max(limits[1], 0)
    width = 2 * max(-low, high) if target.symmetric else high - low
    assert float(scale) * 255 <= width * (255 / 254 + 1e-5)


@each_target
@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.0, 1e-9), (-1e-40, 0.0)])
def test_a_dead_tensor_gets_a_usable_scale(target, limits):
    scale, zero_point = activation_parameters(limits, target)
    smallest, largest = target.levels
    assert int(zero_point) == (0 if target.symmetric else smallest)
    assert scale == np.float32(1 / (largest - int(zero_point)))


@pytest.mark.parametrize(
    ("name", "limits", "scale", "zero_point"),
    [
        ("tensorrt", (-1.0, 2.54), 0.02, 0),
        ("tensorrt", (-12.7, 1.0), 0.1, 0),
        ("x86", (-1.0, 1.55), 0.01, 100),
        ("x86", (0.5, 2.55), 0.01, 0),  # the range is widened to hold zero
        ("x86", (-2.55, -1.0), 0.01, 255),
        ("arm", (-1.0, 1.55), 0.01, -28),
        ("arm", (0.0, 2.55), 0.01, -128),  # behind a ReLU, which is then no more than the cut at the smallest level
    ],
)
def test_activation_parameters_by_hand(name, limits, scale, zero_point):
    got = activation_parameters(limits, target_named(name))
    assert got[0] == pytest.approx(scale, rel=1e-6)
    assert int(got[1]) == zero_point


shapes = st.sampled_from([(4, 3), (3, 4), (4, 2, 3, 3), (2, 4, 1, 1)])
weights = shapes.flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=st.floats(-(2.0**60), 2.0**60, width=32))
)


@settings(deadline=None)
@given(weights, st.integers(0, 1))
def test_weight_parameters_round_each_channel_to_its_own_scale(weight, axis):
    values, scale = weight_parameters(weight, axis)
    assert values.dtype == np.int8
    assert values.shape == weight.shape
    assert scale.shape == (weight.shape[axis],)
    assert scale.dtype == np.float32
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert values.min() >= -127  # symmetric: -128 has no counterpart
    for channel in range(weight.shape[axis]):
        original = np.take(weight, channel, axis).astype(np.float64)
        back = np.take(values, channel, axis) * float(scale[channel])
        assert np.abs(back - original).max() <= float(scale[channel]) * 0.5001
        peak = np.abs(original).max()
        assert np.abs(np.take(values, channel, axis)).max() == (127 if peak >= 1e-7 else 0)


def test_weight_parameters_by_hand():
    weight = np.array([[1.27, -0.635, 0.0], [0.0, 0.0, 0.0], [-254.0, 2.0, 3.1]], np.float32)
    values, scale = weight_parameters(weight, 0)
    np.testing.assert_allclose(scale, [0.01, 1.0, 2.0], rtol=1e-6)
    assert values[1:].tolist() == [[0, 0, 0], [-127, 1, 2]]
    assert values[0].tolist() in ([127, -64, 0], [127, -63, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_weight_is_refused_by_name(value):
    model = graphs.cnn(["conv"])
    good = dict.fromkeys(place(Graph(model), TARGETS[0]).tensors(Graph(model)), (0.0, 1.0))
    tensor = next(t for t in model.graph.initializer if t.name == "conv1_weight")
    values = numpy_helper.to_array(tensor).copy()
    values[1, 2, 0, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    graph = Graph(model)
    with pytest.raises(QuantizationError, match=r'^weight "conv1_weight": a weight holds NaN or infinity; train again'):
        quantize_graph(graph, place(graph, TARGETS[0]), good, TARGETS[0])


def check_pairs(model, target):
    """What must hold of every INT8 graph, whatever was quantized."""
    constants = graphs.constants_of(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    quantizers = graphs.nodes_of(model, "QuantizeLinear")
    takers = Counter(name for node in model.graph.node for name in node.input)
    assert max(Counter(q.input[0] for q in quantizers).values()) == 1, "a tensor is quantized twice"
    for q in quantizers:
        assert q.input[0] not in constants
        assert makers.get(q.input[0]) is None or makers[q.input[0]].op_type != "DequantizeLinear"
        dq = [n for n in graphs.nodes_of(model, "DequantizeLinear") if n.input[0] == q.output[0]]
        assert [list(n.input[1:]) for n in dq] == [list(q.input[1:])]
        assert takers[q.output[0]] == 1
        assert takers[dq[0].output[0]] >= 1
        scale, zero = (constants[name] for name in q.input[1:])
        assert scale.dtype == np.float32
        assert scale.shape == zero.shape == ()
        assert np.isfinite(scale)
        assert scale > 0
        assert zero.dtype == target.dtype
        assert zero == 0 or not target.symmetric
    return constants, makers


def check_weights(model, original, target):
    constants, makers = check_pairs(model, target)
    weights_before = graphs.constants_of(original)
    for node in model.graph.node:
        if node.op_type not in target.weighted:
            continue
        if len(node.input) > 2:
            assert constants[node.input[2]].dtype == np.float32, "a bias stays float"
        dq = makers.get(node.input[1])
        if dq is None:
            assert node.input[1] in constants
            continue
        axis = weight_axis(node)
        assert [a.i for a in dq.attribute if a.name == "axis"] == [axis]
        values, scale, zero = (constants[name] for name in dq.input)
        assert (values.dtype, scale.dtype, zero.dtype) == (np.int8, np.float32, np.int8)
        before = weights_before[next(n for n in original.graph.node if n.name == node.name).input[1]]
        channels = len(constants[node.input[2]]) if len(node.input) > 2 else graphs.CLASSES
        assert before.shape[axis] == scale.shape[0] == zero.shape[0]
        assert scale.shape[0] in (channels, 12)
        assert not zero.any()
        shaped = scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        assert np.abs(values * shaped - before).max() <= scale.max() / 2 * 1.001


@each_target
@settings(deadline=None, max_examples=10)
@given(
    plan=st.lists(st.sampled_from(graphs.BLOCKS), max_size=4),
    head=st.sampled_from(graphs.HEADS),
    seed=st.integers(0, 2**16),
)
def test_any_graph_is_valid_runs_and_answers_closely(target, plan, head, seed):
    model = graphs.cnn(plan, head=head, channels=6, size=(12, 12), seed=seed)
    pictures = graphs.pictures(6, (12, 12), seed)
    result = quantized(model, target, pictures)
    onnx.checker.check_model(result, full_check=True)
    check_weights(result, model, target)
    assert [o.name for o in result.graph.output] == ["logits", "embedding"]
    expected, got = graphs.run(model, pictures), graphs.run(result, pictures, disable_quant_qdq="1")
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert graphs.sqnr(value, got[name]) > 25, name


@each_target
def test_everything_at_once_answers_closely_with_and_without_integer_kernels(target):
    model = graphs.residual_cnn()
    pictures = graphs.pictures(16)
    result = quantized(model, target, pictures)
    expected = graphs.run(model, pictures)
    for config in ({}, {"disable_quant_qdq": "1"}):
        got = graphs.run(result, pictures, **config)
        assert all(graphs.sqnr(expected[name], got[name]) > 25 for name in expected)


@pytest.mark.parametrize("target", ["x86", "arm"])
def test_every_quantized_convolution_becomes_an_integer_kernel_on_cpus(target):
    model = graphs.residual_cnn()
    result = quantized(model, target_named(target), graphs.pictures(16))
    executed = Counter(graphs.fused_ops(result, qdqisint8allowed="1"))  # as it is by default on Arm
    makers = {name: node.op_type for node in result.graph.node for name in node.output}
    wanted = [n.name for n in graphs.nodes_of(result, "Conv") if makers.get(n.input[1]) == "DequantizeLinear"]
    assert len(wanted) == 8
    assert executed["QLinearConv"] == 8
    assert executed["FusedConv"] + executed["Conv"] == 2  # squeeze-excite
    assert executed["QLinearAdd"] == 2
    assert executed["QLinearMul"] == 1
    assert executed["QGemm"] == 1


@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("target", ["x86", "arm"])
def test_a_hard_swish_becomes_a_minimum_and_a_product_of_integers(target, shift):
    model = graphs.cnn(["conv", "conv"])
    swish = graphs.nodes_of(model, "Relu")[1]
    swish.op_type = "HardSwish"
    bias = next(t for t in model.graph.initializer if t.name == "conv1_bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(shift), bias.name))
    pictures = graphs.pictures(16)
    result = quantized(model, target_named(target), pictures)
    onnx.checker.check_model(result, full_check=True)
    expected, got = graphs.run(model, pictures)["logits"], graphs.run(result, pictures)["logits"]
    assert graphs.sqnr(expected, got) > 30
    executed = Counter(graphs.fused_ops(result, qdqisint8allowed="1"))
    assert (executed["QLinearConv"], executed["Clip"], executed["QLinearMul"]) == (3, 1, 1)
    assert executed["HardSigmoid"] + executed["Mul"] == 0


@pytest.mark.parametrize(("high", "zero_point"), [(0.0, 255), (3.0, 127), (12.0, 51), (1e6, 1)])
def test_the_smallest_level_before_a_hard_swish_is_minus_three(high, zero_point):
    scale, got = hard_swish_parameters(high, target_named("x86"))
    assert int(got) == zero_point
    assert float(scale) * zero_point == pytest.approx(3)
    assert float(scale) * (255 - zero_point) >= min(high, 762) * (1 - 1e-6)


def test_a_saturated_clip_still_fuses_on_x86():
    """A range that ends exactly at 6 makes the Clip redundant."""
    model = graphs.cnn(["depthwise", "clip"])
    for tensor in model.graph.initializer:
        if tensor.name in ("depthwise1_bias", "conv1_bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 5, tensor.name))
    pictures = graphs.pictures(8)
    assert observe(model, ["clip1_out"], [pictures], threads=1)["clip1_out"].high == 6
    executed = Counter(graphs.fused_ops(quantized(model, target_named("x86"), pictures)))
    assert (executed["QLinearConv"], executed["Clip"]) == (3, 0)


def test_a_weight_that_two_layers_share_is_stored_once():
    model = graphs.cnn(["conv", "conv"])
    second = next(n for n in model.graph.node if n.name == "conv2")
    second.input[1] = "conv1_weight"
    result = quantized(model, target_named("tensorrt"), graphs.pictures(4))
    onnx.checker.check_model(result, full_check=True)
    stored = [t.name for t in result.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert stored == ["stem1_weight_axis0_int8", "conv1_weight_axis0_int8"]


def test_float_weights_that_nobody_takes_any_more_are_dropped():
    model = graphs.cnn(["conv"])
    result = quantized(model, target_named("tensorrt"), graphs.pictures(4))
    names = {t.name for t in result.graph.initializer}
    assert "conv1_weight" not in names
    assert {"conv1_bias", "dense1_weight"} <= names


def test_what_is_kept_in_float_has_no_quantizer():
    model = graphs.cnn(["conv", "conv"])
    result = quantized(model, target_named("x86"), graphs.pictures(4), ["relu2_out"])
    assert "relu2_out" not in {q.input[0] for q in graphs.nodes_of(result, "QuantizeLinear")}
    assert next(n for n in result.graph.node if n.name == "conv2").input[:2] == ["relu2_out", "conv2_weight"]


def test_a_bias_far_above_its_weights_does_not_overflow_its_int32():
    model = graphs.cnn(["conv"])
    constants = {t.name: t for t in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(constants[f"conv1_{kind}"]).copy() for kind in ("weight", "bias"))
    weight[0] *= 1e-6
    bias[0] = 2.0
    for name, values in (("conv1_weight", weight), ("conv1_bias", bias)):
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
    pictures = graphs.pictures(8)
    expected = graphs.run(model, pictures)["logits"]
    got = graphs.run(quantized(model, target_named("x86"), pictures), pictures)["logits"]
    assert graphs.sqnr(expected, got) > 25


def test_new_names_give_way_to_the_users_own():
    model = graphs.cnn(["conv", "conv"])
    for tensor in model.graph.initializer:
        if tensor.name == "conv2_bias":
            tensor.name = "relu2_out_scale"
    second = next(n for n in model.graph.node if n.name == "conv2")
    second.input[2] = "relu2_out_scale"
    pictures = graphs.pictures(8)
    result = quantized(model, target_named("x86"), pictures)
    onnx.checker.check_model(result, full_check=True)
    names = [t.name for t in result.graph.initializer]
    assert len(set(names)) == len(names)
    assert graphs.sqnr(graphs.run(model, pictures)["logits"], graphs.run(result, pictures)["logits"]) > 25
