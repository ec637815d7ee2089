"""An ONNX graph with the questions that quantization asks of it: who makes a tensor, who takes it, what it is."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

from edgetl.artifacts import write_bytes
from edgetl.errors import QuantizationError

__all__ = ["Graph", "attribute", "load_onnx", "save_onnx"]

_LARGEST = 2**31 - 1


class Graph:
    """A read-only view of a model, indexed by tensor name.

    Attributes:
        model: The model itself.
        initializers: Constant tensors by name.
        producer: The node that makes a tensor.
        consumers: (node, input index) of those that take it.
        depth: Number of nodes on the longest path from the graph's input to a tensor.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.depth: dict[str, int] = {value.name: 0 for value in model.graph.input}
        for node in model.graph.node:
            below = max((self.depth.get(name, 0) for name in node.input), default=0)
            for name in node.output:
                self.producer[name] = node
                self.depth[name] = below + 1
            for index, name in enumerate(node.input):
                self.consumers[name].append((node, index))
        self.outputs = [value.name for value in model.graph.output]
        self._nodes: dict[str, onnx.NodeProto] = {node.name: node for node in model.graph.node}
        self._shapes, self._types = _infer(model)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """Nodes in execution order."""
        return list(self.model.graph.node)

    def node(self, name: str) -> onnx.NodeProto:
        """Returns the node of a name."""
        return self._nodes[name]

    def is_constant(self, name: str) -> bool:
        """Tells whether a tensor is an initializer."""
        return name in self.initializers

    def constant(self, name: str) -> NDArray[np.generic]:
        """Returns an initializer's values."""
        return np.asarray(numpy_helper.to_array(self.initializers[name]))

    def is_float(self, name: str) -> bool:
        """Tells whether a tensor is float32."""
        return self._types.get(name) == onnx.TensorProto.FLOAT

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns a tensor's shape with 0 for the batch and anything dynamic, or None where unknown."""
        return self._shapes.get(name)

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """Returns the node that takes a tensor, if just one does and it is no output of the graph."""
        takers = self.consumers.get(name, [])
        return takers[0][0] if len(takers) == 1 and name not in self.outputs else None


def _infer(model: onnx.ModelProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    inferred = shape_inference.infer_shapes(model, data_prop=True)
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, int] = {t.name: t.data_type for t in model.graph.initializer}
    for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]:
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    shapes |= {t.name: tuple(t.dims) for t in model.graph.initializer}
    return shapes, types


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Returns a node's attribute, or a default where it is not given."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def load_onnx(path: Path) -> onnx.ModelProto:
    """Reads a single-file model.

    Raises:
        QuantizationError: The file is absent, not ONNX, or keeps its weights in other files.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise QuantizationError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # protobuf's DecodeError has no public home
        raise QuantizationError(f"{path}: is not an ONNX file ({type(error).__name__})") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise QuantizationError(f"{path}: keeps weights in other files; save it with save_as_external_data=False")
    if not model.graph.node:
        raise QuantizationError(f"{path}: holds no graph; is it an ONNX file?")
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Checks a model and writes it as one file, whole or not at all.

    Raises:
        QuantizationError: ONNX's own checker refuses it, or it is larger than one file may be (2 GiB).
    """
    if model.ByteSize() > _LARGEST:
        raise QuantizationError(f"{path.name}: larger than 2 GiB, more than one ONNX file can hold")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise QuantizationError(f"{path.name}: is not valid ONNX ({str(error).splitlines()[0][:200]})") from error
    write_bytes(path, model.SerializeToString())
