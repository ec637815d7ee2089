"""The indexed view of a graph, and reading and writing files."""

import numpy as np
import onnx
import onnx_graphs as graphs
import pytest
from onnx import TensorProto, helper

from edgetl.errors import QuantizationError
from edgetl.quantize.graph import Graph, load_onnx, save_onnx


@pytest.fixture(scope="module")
def graph():
    return Graph(graphs.residual_cnn())


def test_producers_and_consumers_are_each_others_inverse(graph):
    for node in graph.nodes:
        assert all(graph.producer[name] is not None and graph.producer[name].name == node.name for name in node.output)
        for index, name in enumerate(node.input):
            assert (node.name, index) in [(taker.name, at) for taker, at in graph.consumers[name]]
    assert graph.producer["relu1_out"].name == "relu1"
    assert [(n.name, i) for n, i in graph.consumers["stem1_weight"]] == [("stem1", 1)]
    assert "pictures" not in graph.producer


def test_depth_counts_the_longest_way(graph):
    assert graph.depth["pictures"] == 0
    assert [graph.depth[f"{n}1_out"] for n in ("cast", "transpose", "sub", "div", "stem", "relu")] == [1, 2, 3, 4, 5, 6]
    add = next(n for n in graph.nodes if n.name == "add1")  # its skip input comes from the pool, depth 7
    assert [graph.depth[name] for name in add.input] == [10, 7]
    assert graph.depth["add1_out"] == 11


def test_shapes_have_zero_for_the_batch(graph):
    assert graph.shape("pictures") == (0, 16, 16, 3)
    assert graph.shape("relu1_out") == (0, 8, 16, 16)
    assert graph.shape("squeeze1_out") == (0, 8, 1, 1)
    assert graph.shape("up1_out") == (0, 8, 32, 32)
    assert graph.shape("embedding") == (0, 8)
    assert graph.shape("stem1_weight") == (8, 3, 3, 3)
    assert graph.shape("clip1_min") == ()
    assert graph.shape("no such tensor") is None


def test_types_and_constants(graph):
    assert graph.is_float("relu1_out")
    assert graph.is_float("stem1_weight")
    assert not graph.is_float("pictures")
    assert graph.is_constant("stem1_weight")
    assert not graph.is_constant("relu1_out")
    np.testing.assert_array_equal(graph.constant("clip1_max"), np.float32(6))


def test_only_consumer(graph):
    assert graph.only_consumer("stem1_out").name == "relu1"
    assert graph.only_consumer("maxpool1_out") is None  # a convolution and the skip
    assert graph.only_consumer("embedding") is None  # one consumer, but an output as well
    assert graph.only_consumer("logits") is None


def test_a_saved_graph_is_read_back_equal(tmp_path):
    model = graphs.cnn(["conv"])
    save_onnx(model, tmp_path / "deep" / "model.onnx")
    assert load_onnx(tmp_path / "deep" / "model.onnx") == model
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model.onnx"]


def test_an_invalid_graph_is_not_written(tmp_path):
    model = graphs.cnn(["conv"])
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(QuantizationError, match=r"^model\.onnx: is not valid ONNX \(.*nowhere") as caught:
        save_onnx(model, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_a_graph_of_wrong_types_is_not_written(tmp_path):
    model = graphs.cnn(["conv"])
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(QuantizationError, match=r"^model\.onnx: is not valid ONNX"):
        save_onnx(model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"model\.onnx: holds no graph; is it an ONNX file\?$"),
        (b"this is a text file, not a network\n", r"model\.onnx: is not an ONNX file \(DecodeError\)$"),
        (None, r"model\.onnx: cannot be read \(No such file or directory\)$"),
    ],
)
def test_what_is_no_onnx_is_refused(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(QuantizationError, match=message) as caught:
        load_onnx(path)
    assert str(caught.value).startswith(str(path))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(QuantizationError, match=r"cannot be read \(Is a directory\)"):
        load_onnx(tmp_path)


def test_weights_in_other_files_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(graphs.cnn(["conv"]), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    with pytest.raises(QuantizationError, match=r"model\.onnx: keeps weights in other files; save it with"):
        load_onnx(path)


def test_a_graph_larger_than_a_file_may_be_is_refused(tmp_path, monkeypatch):
    model = graphs.cnn(["conv"])
    monkeypatch.setattr("edgetl.quantize.graph._LARGEST", model.ByteSize() - 1)
    with pytest.raises(QuantizationError, match=r"^model\.onnx: larger than 2 GiB"):
        save_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_optional_inputs_do_not_confuse_the_index():
    """An omitted input has the empty name."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="relu"),
        helper.make_node("Clip", ["y", "", "high"], ["z"], name="clip"),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in ("x", "z")]
    high = helper.make_tensor("high", TensorProto.FLOAT, [], [6.0])
    model = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:], [high]), opset_imports=[helper.make_opsetid("", 18)]
    )
    graph = Graph(model)
    assert graph.depth["z"] == 2
    assert graph.only_consumer("y").name == "clip"
    assert graph.shape("z") == (0, 2)
