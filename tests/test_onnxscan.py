"""Graphs that want to read other files are found without the onnx package, wherever the tensor hides."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny_graph, write_tiny_bundle

import edgetl
from edgetl.errors import BundleError
from edgetl.onnxscan import external_data


def outside(name="secret"):
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    return tensor


def model(nodes=(), initializers=(), **fields):
    graph = helper.make_graph(list(nodes), "g", [], [], list(initializers))
    made = helper.make_model(graph, ir_version=10)
    for name, value in fields.items():
        getattr(made, name).extend(value)
    return made.SerializeToString()


def within(tensor, depth):
    """A constant in the branch of an If, in the branch of an If ..."""
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    for _ in range(depth):
        node = helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph([node], "b", [], []))
    return node


def sparse(tensor):
    return onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.zeros(4, np.int64), "i"), dims=[9])


HIDDEN = {
    "initializer": lambda t: model(initializers=[t]),
    "constant": lambda t: model([within(t, 0)]),
    "branch": lambda t: model([within(t, 3)]),
    "list of tensors": lambda t: model([helper.make_node("X", [], ["y"], values=[t])]),
    "sparse constant": lambda t: model([helper.make_node("Constant", [], ["c"], sparse_value=sparse(t))]),
    "function": lambda t: model(
        functions=[helper.make_function("d", "f", [], ["c"], [within(t, 1)], [helper.make_opsetid("", 18)])]
    ),
    "training": lambda t: model(
        training_info=[onnx.TrainingInfoProto(algorithm=helper.make_graph([], "g", [], [], [t]))]
    ),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_found_wherever_it_hides(place):
    assert external_data(HIDDEN[place](outside()))
    assert not external_data(HIDDEN[place](numpy_helper.from_array(np.zeros(4, np.float32), "own")))


def test_location_alone_is_enough():
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    tensor.data_location = TensorProto.EXTERNAL
    assert external_data(model(initializers=[tensor]))


def test_graphs_within_graphs_end_somewhere():
    with pytest.raises(BundleError, match="graphs within graphs"):
        external_data(model([within(outside(), 30)]))


def varint(value):
    text = b""
    while value > 0x7F:
        text, value = text + bytes([value & 0x7F | 0x80]), value >> 7
    return text + bytes([value])


def field(number, content, more=0):
    """A field of bytes, with bits in its tag that protobuf drops."""
    return varint((number << 3 | 2) | more << 32) + varint(len(content)) + content


@pytest.mark.parametrize("more", [0, 1, 0x10])
@pytest.mark.parametrize("place", ["graph", "initializer", "external_data"])
def test_bits_that_protobuf_drops_hide_nothing(place, more):
    bits = {name: more if name == place else 0 for name in ("graph", "initializer", "external_data")}
    tensor = field(13, b"", bits["external_data"])
    data = field(7, field(5, tensor, bits["initializer"]), bits["graph"])
    if more:
        with pytest.raises(BundleError, match="is no ONNX model"):
            external_data(data)
    else:
        assert external_data(data)


def test_a_field_of_number_0_is_none():
    with pytest.raises(BundleError, match="is no ONNX model"):
        external_data(field(0, b""))


def test_a_bundle_with_such_a_graph_is_refused(tmp_path):
    made = onnx.load_from_string(tiny_graph())
    made.graph.initializer.append(outside())
    root = write_tiny_bundle(tmp_path / "b", graph=made.SerializeToString())
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx: keeps tensors in other files"):
        edgetl.load(root)
    root = write_tiny_bundle(tmp_path / "c", graph=b"\xff" * 40)
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx: is no ONNX model.*export the bundle again"):
        edgetl.load(root)


@given(st.integers(0, len(tiny_graph()) - 1), st.binary(max_size=12), st.integers(0, 20))
@settings(max_examples=500)
def test_any_bytes_end_in_an_answer(at, inserted, cut):
    data = tiny_graph()
    with contextlib.suppress(BundleError):
        assert external_data(data[:at] + inserted + data[at + cut :]) in (True, False)
