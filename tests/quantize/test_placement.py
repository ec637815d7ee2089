"""Where quantizers go: each rule of each target on graphs that show it."""

import numpy as np
import onnx_graphs as graphs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgetl.errors import InternalError
from edgetl.quantize.graph import Graph
from edgetl.quantize.placement import names_of, place, weight_axis
from edgetl.quantize.targets import TARGETS, target_named

NAMES = ("tensorrt", "x86", "arm")
TENSORRT, X86, ARM = (target_named(name) for name in NAMES)
plans = st.lists(st.sampled_from(graphs.BLOCKS), max_size=5)


def inputs_of(graph, placement):
    """(op, tensor) of every quantized activation input."""
    nodes = {n.name: n for n in graph.nodes}
    return {(name, nodes[name].input[index]) for name, index in placement.edges}


def test_targets_and_their_types():
    assert tuple(t.name for t in TARGETS) == NAMES
    assert [(t.levels, t.dtype.__name__) for t in TARGETS] == [
        ((-128, 127), "int8"),
        ((0, 255), "uint8"),
        ((-128, 127), "int8"),
    ]
    with pytest.raises(InternalError, match="no target openvino"):
        target_named("openvino")


@pytest.mark.parametrize(
    ("op", "attributes", "axis"),
    [
        ("Conv", {"group": 4}, 0),
        ("ConvTranspose", {}, 1),
        ("Gemm", {}, 1),
        ("Gemm", {"transB": 0}, 1),
        ("Gemm", {"transB": 1, "alpha": 1.0}, 0),
        ("MatMul", {}, 1),
    ],
)
def test_the_axis_of_output_channels(op, attributes, axis):
    assert weight_axis(helper.make_node(op, ["x", "w"], ["y"], **attributes)) == axis


def test_tensorrt_takes_inputs_of_weighted_layers_and_the_skip_of_additions():
    graph = Graph(graphs.residual_cnn())
    placement = place(graph, TENSORRT)
    assert inputs_of(graph, placement) == {
        ("stem1", "div1_out"),
        ("conv1", "maxpool1_out"),
        ("conv2", "relu2_out"),
        ("add1", "maxpool1_out"),
        ("depthwise1", "relu3_out"),
        ("conv3", "mul1_out"),
        ("conv4", "relu5_out"),
        ("shortcut1", "mul1_out"),
        ("add2", "shortcut1_out"),
        ("up1", "relu6_out"),
        ("conv5", "relu7_out"),
        ("dense1", "embedding"),
    }
    layers = {"stem1", "conv1", "conv2", "conv3", "conv4", "conv5", "depthwise1", "shortcut1", "up1", "dense1"}
    assert placement.weights == tuple(n.name for n in graph.nodes if n.name in layers)
    assert placement.results == ()
    assert dict(placement.spared) == {"se_conv1": "1 x 1 map", "se_conv2": "1 x 1 map", "dense2": "last layer"}


def test_the_skip_of_an_addition_is_found_whichever_input_it_is():
    for swap in (False, True):
        model = graphs.cnn(["residual"])
        add = graphs.nodes_of(model, "Add")[0]
        if swap:
            add.input[:] = reversed(add.input)
        graph = Graph(model)
        assert [t for n, t in inputs_of(graph, place(graph, TENSORRT)) if n == "add1"] == ["relu1_out"]


def test_of_two_convolutions_the_shortcut_is_quantized_at_the_addition():
    graph = Graph(graphs.cnn(["shortcut"]))
    assert [t for n, t in inputs_of(graph, place(graph, TENSORRT)) if n == "add1"] == ["shortcut1_out"]


def test_an_addition_without_a_convolution_is_left_alone():
    b = graphs.Builder()
    x = b.normalize("pictures", (16, 16))
    y = b.node("Add", b.relu(x), b.node("Sigmoid", x))
    y = b.node("Add", y, b.constant("offset", np.ones((1, 3, 1, 1), np.float32)))
    b.dense(b.node("Flatten", b.node("GlobalAveragePool", b.conv(y, 3, 4))), 4, 5, "gemm", output="logits")
    graph = Graph(
        b.model(
            [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", 16, 16, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        )
    )
    assert inputs_of(graph, place(graph, TENSORRT)) == {("conv1", "add2_out")}


@pytest.mark.parametrize("target", [X86, ARM])
def test_cpus_quantize_behind_the_activation(target):
    placement = place(Graph(graphs.cnn(["conv", "clip", "plain"])), target)
    assert placement.results[:4] == ("relu1_out", "relu2_out", "clip1_out", "conv3_out")
    assert not set(placement.results) & {"stem1_out", "conv1_out", "conv2_out"}


@pytest.mark.parametrize("target", [X86, ARM])
def test_cpus_carry_integers_through_pools_and_additions(target):
    graph = Graph(graphs.cnn(["pool", "residual"], head="mlp"))
    placement = place(graph, target)
    taken = inputs_of(graph, placement)
    assert {("maxpool1", "relu1_out"), ("add1", "conv2_out"), ("add1", "maxpool1_out")} <= taken
    assert ("globalaveragepool1", "relu3_out") in taken
    assert set(placement.results) == {
        "relu1_out", "maxpool1_out", "relu2_out", "conv2_out", "relu3_out", "globalaveragepool1_out", "relu4_out",
    }  # fmt: skip


def test_an_addition_with_a_float_input_is_not_carried():
    graph = Graph(graphs.cnn(["conv", "residual"]))
    assert not [n for n, _ in place(graph, X86, ["conv1"]).edges if n == "add1"]  # the skip


@pytest.mark.parametrize("target", [X86, ARM])
def test_the_gate_of_squeeze_excite_is_quantized_for_its_product(target):
    graph = Graph(graphs.cnn(["se", "residual"]))
    placement = place(graph, target)
    taken = inputs_of(graph, placement)
    assert {("mul1", "relu1_out"), ("mul1", "sigmoid1_out"), ("add1", "mul1_out")} <= taken
    assert "sigmoid1_out" not in placement.results  # its own input is float


def swish_cnn(op):
    """A stem and a convolution with SiLU or HardSwish behind them."""
    model = graphs.cnn(["conv", "conv"])
    for node in graphs.nodes_of(model, "Relu")[:2]:
        source, result = node.input[0], node.output[0]
        swish = [helper.make_node("HardSwish", [source], [result], name=f"swish_{result}")]
        if op == "SiLU":
            swish = [
                helper.make_node("Sigmoid", [source], [f"gate_{result}"], name=f"sigmoid_{result}"),
                helper.make_node("Mul", [source, f"gate_{result}"], [result], name=f"swish_{result}"),
            ]
        place_of = list(model.graph.node).index(node)
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend(nodes[:place_of] + swish + nodes[place_of + 1 :])
    return model


@pytest.mark.parametrize("op", ["SiLU", "HardSwish"])
def test_on_x86_a_thin_first_convolution_stays_float_unless_its_activation_is_absorbed(op):
    graph = Graph(swish_cnn(op))
    assert dict(place(graph, X86).spared)["stem1"] == "too thin to begin with"
    assert "stem1" in place(graph, ARM).weights
    assert "stem1" in place(Graph(graphs.cnn(["conv"])), X86).weights
    assert {"relu1_out", "conv1_out", "relu2_out"} & set(place(graph, X86).results) == {"conv1_out", "relu2_out"}


def test_a_hard_swish_is_integer_only_as_its_inputs_one_taker():
    model = swish_cnn("HardSwish")
    graphs.nodes_of(model, "Conv")[2].input[0] = "conv1_out"
    assert not [n for n, _ in place(Graph(model), X86).edges if n == "swish_relu2_out"]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("head", graphs.HEADS)
def test_the_last_layer_stays_float_and_a_hidden_one_does_not(head, target):
    placement = place(Graph(graphs.cnn(["conv"], head=head)), target)
    last = "dense2" if head.startswith("mlp") else "dense1"
    assert (last, "last layer") in placement.spared
    assert last not in placement.weights
    assert ("dense1" in placement.weights) == head.startswith("mlp")


@pytest.mark.parametrize("tail", ["Softmax", "Identity", "Flatten", "LogSoftmax"])
def test_the_last_layer_is_found_behind_its_tail(tail):
    model = graphs.cnn(["conv"])
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node(tail, ["scores"], ["logits"], name="tail"))
    assert dict(place(Graph(model), X86).spared) == {"dense1": "last layer"}


def test_a_grouped_transposed_convolution_stays_float():
    model = graphs.cnn(["transpose"])
    up = graphs.nodes_of(model, "ConvTranspose")[0]
    up.attribute.append(helper.make_attribute("group", 2))
    assert ("up1", "grouped transposed convolution") in place(Graph(model), TENSORRT).spared


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("pattern", ["conv2", "conv2_weight", "conv2_out", "relu2_out", "conv?", "*v2_w*"])
def test_patterns_match_nodes_weights_and_tensors(pattern, target):
    placement = place(Graph(graphs.cnn(["conv", "conv"])), target, [pattern])
    assert ("conv2", "kept by request") in placement.spared
    assert "conv2" not in {*placement.weights, *dict(placement.edges)}
    assert ("conv1" in placement.weights) == (pattern != "conv?")
    assert "stem1" in placement.weights


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(deadline=None, max_examples=25)
@given(plan=plans, data=st.data())
def test_a_tensor_kept_in_float_is_quantized_for_nobody(target, plan, data):
    graph = Graph(graphs.cnn(plan))
    name = data.draw(st.sampled_from(sorted(place(graph, target).tensors(graph))))
    assert name not in place(graph, target, [name]).tensors(graph)


def test_an_addition_can_be_kept_in_float():
    graph = Graph(graphs.cnn(["residual"]))
    for target in TARGETS:
        assert "add1" in dict(place(graph, target).edges)
        assert "add1" not in dict(place(graph, target, ["add1"]).edges)


def test_patterns_are_case_sensitive_and_whole():
    graph = Graph(graphs.cnn(["conv"]))
    for pattern in ("CONV1", "conv", "onv1"):
        assert place(graph, TENSORRT, [pattern]) == place(graph, TENSORRT)


def test_names_of_a_node():
    assert names_of(helper.make_node("Conv", ["x", "w"], ["y"], name="c")) == {"c", "x", "w", "y"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@settings(deadline=None, max_examples=25)
@given(plan=plans, head=st.sampled_from(graphs.HEADS))
def test_rules_that_hold_everywhere(target, plan, head):
    graph = Graph(graphs.cnn(plan, head=head))
    placement = place(graph, target)
    nodes = {n.name: n for n in graph.nodes}
    weighted = {n.name for n in graph.nodes if n.op_type in target.weighted}
    assert weighted == set(placement.weights) | set(dict(placement.spared))
    assert not set(placement.weights) & set(dict(placement.spared))
    assert len(set(placement.edges)) == len(placement.edges)
    assert len(set(placement.results)) == len(placement.results)
    for name in placement.weights:
        assert graph.is_constant(nodes[name].input[1])
        assert (name, 0) in placement.edges
    for name in placement.tensors(graph):
        assert graph.is_float(name)
        assert not graph.is_constant(name)
    for node in graph.nodes:
        if node.op_type == "Conv" and graph.shape(node.input[0])[2:] == (1, 1):
            assert node.name in dict(placement.spared)
        if node.op_type == "Add" and target.residual_only and "matmul" not in head:
            assert len([n for n, _ in placement.edges if n == node.name]) == 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_sparing_a_layer_spares_no_neighbour_where_nodes_are_named_like_their_outputs(target):
    """MXNet and Keras exporters name a node and what it makes alike."""
    model = graphs.cnn(["conv", "conv", "residual"])
    for node in model.graph.node:
        node.name = node.output[0]
    graph = Graph(model)
    plain, spared = place(graph, target), place(graph, target, spared=["conv1_out"])
    assert dict(spared.spared)["conv1_out"] == "too sensitive"
    assert set(plain.weights) - set(spared.weights) == {"conv1_out"}


def test_a_scalar_is_no_map_that_integers_meet_in():
    """It has no batch to take a sample from."""
    model = graphs.cnn(["conv", "conv"])
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == "relu1") + 1
    mean = helper.make_node("ReduceMean", ["relu1_out"], ["mean_out"], name="mean1", keepdims=0)
    scaled = helper.make_node("Mul", ["relu1_out", "mean_out"], ["scaled_out"], name="mul1")
    next(node for node in nodes if node.name == "conv2").input[0] = "scaled_out"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], mean, scaled, *nodes[at:]])
    assert ("mul1", 1) not in place(Graph(model), X86).edges
