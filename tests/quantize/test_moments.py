"""Moments of layers' inputs against patches cut out by torch."""

import numpy as np
import onnx_graphs as graphs
import pytest
import torch
from onnx import TensorProto, helper

from edgetl.quantize.graph import Graph
from edgetl.quantize.moments import geometry_of, input_moments


def one_conv(side=6, channels=4, outputs=6, **attributes):
    """A picture, a 1x1 convolution that makes channels of it, and the convolution in question."""
    b = graphs.Builder(1)
    x = b.conv(b.normalize("pictures", (side, side)), 3, channels, kernel=1, prefix="stem")
    group = attributes.pop("group", 1)
    kernel = attributes.get("kernel_shape", [3, 3])
    weight = b.weight("w", outputs, channels // group, *kernel, fan_in=9)
    y = b.node("Conv", x, weight, name="layer", group=group, **attributes)
    b.node("Flatten", b.node("GlobalAveragePool", y), output="logits")
    value = helper.make_tensor_value_info
    return b.model(
        [value("pictures", TensorProto.UINT8, ["batch", side, side, 3])], [value("logits", 1, ["batch", outputs])]
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 1], "strides": [2, 1]},
        {"pads": [2, 2, 2, 2], "dilations": [2, 2]},
        {"group": 4, "outputs": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]},
        {"group": 2, "pads": [0, 0, 0, 0]},
        {"kernel_shape": [1, 1]},
    ],
)
def test_all_positions_of_a_small_map_give_the_exact_moments(attributes):
    group = attributes.get("group", 1)
    model = one_conv(**attributes)
    graph = Graph(model)
    layer = next(n for n in graph.nodes if n.name == "layer")
    pictures = graphs.pictures(5, (6, 6))
    found = input_moments(model, [layer], lambda: [pictures[:3], pictures[3:]], threads=1)["layer"]
    x = torch.from_numpy(graphs.run(graphs.with_outputs(model, ["stem1_out"]), pictures)["stem1_out"])
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    patches = torch.nn.functional.unfold(
        padded, attributes.get("kernel_shape", [3, 3]), attributes.get("dilations", 1), 0, attributes.get("strides", 1)
    )
    rows = patches.permute(0, 2, 1).reshape(-1, group, patches.shape[1] // group).double().numpy()
    assert found.first == pytest.approx(rows.mean(axis=0), abs=1e-5)
    expected = np.einsum("ngi,ngj->gij", rows, rows) / len(rows)
    assert found.second == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("head", ["mlp", "mlp_trans_b", "mlp_matmul"])
def test_a_matrix_sees_its_input(head):
    model = graphs.cnn(["conv"], head=head)
    graph = Graph(model)
    layer = next(n for n in graph.nodes if n.name == "dense1")
    pictures = graphs.pictures(7)
    found = input_moments(model, [layer], lambda: [pictures], threads=1)["dense1"]
    x = graphs.run(model, pictures)["embedding"].astype(np.float64)
    assert found.first[0] == pytest.approx(x.mean(axis=0), abs=1e-5)
    assert found.second[0] == pytest.approx(x.T @ x / len(x), abs=1e-5)


@pytest.mark.parametrize("head", ["mlp", "mlp_trans_b", "mlp_matmul"])
def test_rows_are_what_an_output_multiplies(head):
    graph = Graph(graphs.cnn(["depthwise"], head=head))
    for node in graph.nodes:
        geometry = geometry_of(graph, node) if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if geometry is None:
            continue
        weight = graph.constant(node.input[1])
        rows = geometry.rows_of(weight)
        assert rows.shape == (geometry.groups, geometry.outputs, geometry.taps)
        assert np.array_equal(geometry.weight_of(rows, weight), weight)


def test_moments_of_a_scaled_input_are_scaled():
    model = one_conv(group=2)
    layer = next(n for n in Graph(model).nodes if n.name == "layer")
    pictures = graphs.pictures(4, (6, 6))
    found = input_moments(model, [layer], lambda: [pictures], threads=1)["layer"]
    factors = np.array([1.0, 2.0, 3.0, 4.0])
    taps = np.repeat(factors.reshape(2, 2), 9, axis=1)
    scaled = found.scaled(factors)
    assert scaled.first == pytest.approx(found.first * taps)
    assert scaled.second == pytest.approx(found.second * taps[:, :, None] * taps[:, None, :])


def test_layers_without_a_known_geometry_say_so():
    graph = Graph(graphs.cnn(["transpose"]))
    assert geometry_of(graph, next(n for n in graph.nodes if n.op_type == "ConvTranspose")) is None


def test_a_layer_of_very_many_taps_has_a_mean_and_no_second_moments(monkeypatch):
    """A square of 62720 taps were 29 GB."""
    from edgetl.quantize import moments

    model = graphs.cnn(["conv"], head="mlp")
    layer = Graph(model).node("dense1")
    pictures = graphs.pictures(7)
    whole = input_moments(model, [layer], lambda: [pictures], threads=1)["dense1"]
    monkeypatch.setattr(moments, "_MOST_TAPS", 7)
    found = input_moments(model, [layer], lambda: [pictures], threads=1)["dense1"]
    assert found.second is None
    assert np.array_equal(found.first, whole.first)
    assert found.scaled(np.full(8, 2.0)).first == pytest.approx(2 * whole.first)


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_a_scaled_gemm_is_left_alone(name):
    """Its bias and its sum are multiplied after they were quantized, so no correction fits."""
    graph = Graph(graphs.cnn(["conv"], head="mlp"))
    layer = graph.node("dense1")
    assert geometry_of(graph, layer) is not None
    layer.attribute.append(helper.make_attribute(name, 0.5))
    assert geometry_of(graph, layer) is None
