"""FP16 by explicit casts."""

from collections import Counter

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgetl.quantize.graph import Graph
from edgetl.quantize.observe import observe
from edgetl.quantize.placement import place
from edgetl.quantize.precision import fp16_from_fp32
from edgetl.quantize.rewrite import quantize_graph
from edgetl.quantize.targets import target_named


def int8_graph(model, pictures):
    target = target_named("tensorrt")
    graph = Graph(model)
    placement = place(graph, target)
    seen = observe(model, placement.tensors(graph), [pictures], threads=1)
    return quantize_graph(graph, placement, {n: (o.low, o.high) for n, o in seen.items()}, target)


def types_of(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    return types | {t.name: t.data_type for t in model.graph.initializer}


def check(model):
    """What must hold of every FP16 graph."""
    onnx.checker.check_model(model, full_check=True)
    types = types_of(model)
    assert types["pictures"] == TensorProto.UINT8
    assert types["logits"] == types["embedding"] == TensorProto.FLOAT
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    casts = Counter((n.input[0], n.attribute[0].i) for n in graphs.nodes_of(model, "Cast"))
    assert max(casts.values()) == 1, "a tensor is cast twice to the same type"
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "Relu", "Add", "MaxPool", "Sigmoid", "Mul", "Clip"):
            assert {types[name] for name in [*node.input, *node.output]} == {TensorProto.FLOAT16}, node.name
        if node.op_type in ("Sub", "Div", "Transpose"):
            assert {types[name] for name in [*node.input, *node.output]} == {TensorProto.FLOAT}, node.name
        if node.op_type == "QuantizeLinear":
            assert [types[name] for name in node.input[:2]] == [TensorProto.FLOAT] * 2
        if node.op_type == "DequantizeLinear":
            assert types[node.input[1]] == types[node.output[0]] == TensorProto.FLOAT
    return types


def test_only_what_stands_before_the_first_layer_stays_float32():
    model = graphs.residual_cnn()
    result = fp16_from_fp32(model)
    check(result)
    kept = {t.name for t in result.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert kept == {"mean", "std"}
    halves = {t.name for t in result.graph.initializer if t.data_type == TensorProto.FLOAT16}
    assert halves == {f"{t.name}_fp16" for t in model.graph.initializer} - {"mean_fp16", "std_fp16"}
    casts = [n.input[0] for n in graphs.nodes_of(result, "Cast")]
    assert casts == ["pictures", "div1_out", "logits_inner", "embedding_inner"]


def test_initializers_are_rounded_to_half():
    model = graphs.residual_cnn()
    before, after = graphs.constants_of(model), graphs.constants_of(fp16_from_fp32(model))
    np.testing.assert_array_equal(after["conv1_weight_fp16"], before["conv1_weight"].astype(np.float16))


def test_the_file_is_about_half_as_large():
    model = graphs.residual_cnn(channels=32)
    assert fp16_from_fp32(model).ByteSize() < 0.6 * model.ByteSize()


def test_answers_are_close_to_float32():
    model = graphs.residual_cnn()
    pictures = graphs.pictures(16)
    expected, got = graphs.run(model, pictures), graphs.run(fp16_from_fp32(model), pictures)
    for name in ("logits", "embedding"):
        assert got[name].dtype == np.float32
        assert graphs.sqnr(expected[name], got[name]) > 40


@settings(deadline=None, max_examples=15)
@given(plan=st.lists(st.sampled_from(graphs.BLOCKS), max_size=4), head=st.sampled_from(graphs.HEADS))
def test_any_graph_becomes_half(plan, head):
    model = graphs.cnn(plan, head=head, size=(12, 12))
    result = fp16_from_fp32(model)
    check(result)
    pictures = graphs.pictures(4, (12, 12))
    expected, got = graphs.run(model, pictures), graphs.run(result, pictures)
    assert all(graphs.sqnr(expected[name], got[name]) > 40 for name in expected)


@settings(deadline=None, max_examples=15)
@given(plan=st.lists(st.sampled_from(graphs.BLOCKS), max_size=3), head=st.sampled_from(graphs.HEADS))
def test_any_int8_graph_becomes_half_around_its_quantizers(plan, head):
    """With float16 scales onnxruntime's default answers were wrong; both ways of running must agree."""
    pictures = graphs.pictures(4, (12, 12))
    model = int8_graph(graphs.cnn(plan, head=head, size=(12, 12)), pictures)
    result = fp16_from_fp32(model)
    check(result)
    single = graphs.run(model, pictures, disable_quant_qdq="1")
    plain, fake = graphs.run(result, pictures), graphs.run(result, pictures, disable_quant_qdq="1")
    for name in single:
        assert graphs.sqnr(fake[name], plain[name]) > 20, name
        assert graphs.sqnr(single[name], fake[name]) > 20, name


def test_scales_stay_float32_and_an_output_that_is_quantized_is_cast_once():
    """The embedding is an output and the input of a quantized layer."""
    pictures = graphs.pictures(8)
    model = graphs.residual_cnn()
    single = int8_graph(model, pictures)
    result = fp16_from_fp32(single)
    check(result)
    before, after = graphs.constants_of(single), graphs.constants_of(result)
    scales = [name for name in before if name.endswith("_scale")]
    assert len(scales) == 20  # 12 inputs, of which two tensors are taken twice, and 10 weights
    for name in scales:
        np.testing.assert_array_equal(after[name], before[name])
    assert [n.name for n in graphs.nodes_of(result, "Cast") if "embedding" in n.output] == ["cast_embedding_fp32"]
    expected, got = graphs.run(model, pictures), graphs.run(result, pictures)
    assert all(graphs.sqnr(expected[name], got[name]) > 25 for name in expected)


def test_values_beyond_half_are_clipped_not_infinite():
    model = graphs.cnn(["clip"])
    limit = next(t for t in model.graph.initializer if t.name == "clip1_max")
    limit.CopyFrom(helper.make_tensor("clip1_max", TensorProto.FLOAT, [], [3.4e38]))
    assert graphs.constants_of(fp16_from_fp32(model))["clip1_max_fp16"] == 65504


def resized(extra):
    b = graphs.Builder()
    x = b.relu(b.conv(b.normalize("pictures", (8, 8)), 3, 4))
    x = extra(b, x)
    b.node("Flatten", b.node("GlobalAveragePool", x), output="logits")
    b.node("Identity", "logits", output="embedding")
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("logits", "embedding")]
    return b.model([helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", 8, 8, 3])], outputs)


def resize(b, x):
    return b.node("Resize", x, "", b.constant("factors", np.array([1, 1, 2, 2], np.float32)), mode="linear")


def constant_tensor(b, x):
    b.nodes.append(helper.make_node("Constant", [], ["two"], name="two", value=helper.make_tensor("t", 1, [], [2.0])))
    return b.node("Mul", x, "two")


def constant_number(b, x):
    b.nodes.append(helper.make_node("Constant", [], ["two"], name="two", value_float=2.0))
    return b.node("Mul", x, "two")


def inner_cast(b, x):
    return b.node("Mul", x, b.node("Cast", b.node("Greater", x, b.constant("one", np.float32(1))), to=1))


@pytest.mark.parametrize("extra", [resize, constant_tensor, constant_number, inner_cast])
def test_nodes_that_want_care(extra):
    """Resize takes float32 factors; constants may be nodes; a Cast to float32 must become one to float16."""
    model = resized(extra)
    result = fp16_from_fp32(model)
    check(result)
    pictures = graphs.pictures(4, (8, 8))
    assert graphs.sqnr(graphs.run(model, pictures)["logits"], graphs.run(result, pictures)["logits"]) > 40
