"""FP16 as explicit casts in the graph, made from the FP32 graph.

``model.half()`` in torch would fold BatchNorm in half precision, which measured worse.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetl.quantize.graph import Graph

__all__ = ["fp16_from_fp32"]

# What may stand between the uint8 input and the first layer: it stays FP32, engines fuse it into one kernel.
_PREPROCESSING = frozenset({"Cast", "Transpose", "Sub", "Div", "Mul", "Add", "Reshape", "Resize", "Concat", "Slice"})
# Q/DQ stay FP32: with float16 scales onnxruntime gave wrong answers, and opset 18 does not allow them.
# Constants are cast where they are used.
_SINGLE = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant", "ConstantOfShape"})
_LARGEST_HALF = float(np.finfo(np.float16).max)


def fp16_from_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph with FP16 weights and activations; inputs, outputs, preprocessing and Q/DQ stay FP32.

    Args:
        model: FP32 graph, with or without Q/DQ pairs.
    """
    converter = _Converter(Graph(model))
    return converter.convert()


class _Converter:
    """Walks the graph once; each tensor that crosses between FP32 and FP16 gets one Cast."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: list[onnx.NodeProto] = []
        self._half: set[str] = set()
        self._cast_names: dict[tuple[str, int], str] = {}
        self._constants: dict[str, TensorProto] = {}

    def convert(self) -> onnx.ModelProto:
        graph = self._graph
        stays = self._preprocessing()
        for node in graph.nodes:
            self._add(node, single=node.op_type in _SINGLE or node.output[0] in stays)
        for name in graph.outputs:
            self._cast_output(name)
        converted = onnx.ModelProto()
        converted.CopyFrom(graph.model)
        del converted.graph.node[:], converted.graph.initializer[:], converted.graph.value_info[:]
        converted.graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        converted.graph.initializer.extend(
            tensor for name, tensor in {**graph.initializers, **self._constants}.items() if name in used
        )
        return converted

    def _preprocessing(self) -> set[str]:
        """Returns the tensors that come from the input through elementwise nodes only."""
        graph = self._graph
        known = {value.name for value in graph.model.graph.input}
        for node in graph.nodes:
            moving = [name for name in node.input if name and not graph.is_constant(name)]
            if node.op_type in _PREPROCESSING and moving and all(name in known for name in moving):
                known.update(node.output)
        return known

    def _add(self, node: onnx.NodeProto, *, single: bool) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        wanted = TensorProto.FLOAT if single else TensorProto.FLOAT16
        for index, name in enumerate(node.input):
            if name and self._graph.is_float(name) and not (node.op_type == "Resize" and index > 0):
                copy.input[index] = self._as_type(name, wanted)
        self._nodes.append(copy)
        if single:
            return
        for attribute in copy.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        self._half.update(name for name in node.output if self._graph.is_float(name))

    def _as_type(self, name: str, wanted: int) -> str:
        if self._graph.is_constant(name):
            return name if wanted == TensorProto.FLOAT else self._half_constant(name)
        has = TensorProto.FLOAT16 if name in self._half else TensorProto.FLOAT
        return name if has == wanted else self._cast(name, wanted)

    def _half_constant(self, name: str) -> str:
        new = f"{name}_fp16"
        if new not in self._constants:
            self._constants[new] = _half_tensor(self._graph.initializers[name], new)
        return new

    def _cast(self, name: str, wanted: int) -> str:
        key = (name, wanted)
        if key not in self._cast_names:
            suffix = "fp16" if wanted == TensorProto.FLOAT16 else "fp32"
            self._cast_names[key] = f"{name}_{suffix}"
            self._nodes.append(
                helper.make_node("Cast", [name], [self._cast_names[key]], name=f"cast_{name}_{suffix}", to=wanted)
            )
        return self._cast_names[key]

    def _cast_output(self, name: str) -> None:
        """Gives the output's name to its FP32 cast, which quantizers may share, and another to what it reads."""
        if name not in self._half:
            return
        renamed = {self._as_type(name, TensorProto.FLOAT): name, name: f"{name}_inner"}
        for node in self._nodes:
            node.input[:] = [renamed.get(n, n) for n in node.input]
            node.output[:] = [renamed.get(n, n) for n in node.output]


def _half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    values = np.clip(numpy_helper.to_array(tensor), -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
    return numpy_helper.from_array(values, name)
