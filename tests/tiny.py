"""A model small enough to be worked by hand, its bundle, and pictures made by code."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgetl.bundle import EXEMPLARS, Decision, Variant, write_manifest
from edgetl.spec import ModelSpec, PreprocessSpec

TINY_LABELS = ("blue", "green", "red")
# Row = class; columns = mean red, green and blue of the picture, 0-255.
TINY_WEIGHT = np.array([[0, 0, 0.02], [0, 0.02, 0], [0.02, 0, 0]], np.float32)
TINY_BIAS = np.array([0.5, 0.0, 0.25], np.float32)


def tiny_spec(labels: Sequence[str] = TINY_LABELS, size: int = 16) -> ModelSpec:
    return ModelSpec("tiny", PreprocessSpec(size=(size, size), resize_to=size), tuple(labels))


def tiny_graph(weight: NDArray[np.float32] = TINY_WEIGHT, bias: NDArray[np.float32] = TINY_BIAS) -> bytes:
    """A classifier that sees the mean colour: logits = weight @ mean + bias, embedding = mean."""
    nodes = [
        helper.make_node("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["nchw"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", 16, 16, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(bias)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def hollow_graph() -> bytes:
    """The same classifier, but a black picture's logits are NaN."""
    model = onnx.load_from_string(tiny_graph())
    model.graph.node[-1].output[0] = "plain"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["embedding", "axes"], ["light"], keepdims=1),
            helper.make_node("Log", ["light"], ["power"]),
            helper.make_node("Sub", ["power", "power"], ["nothing"]),
            helper.make_node("Add", ["plain", "nothing"], ["logits"]),
        ]
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_variant(root: Path, name: str, graph: bytes, **fields: object) -> Variant:
    """Writes a graph into a folder and describes it, as the export does."""
    file = f"model.{name}.onnx"
    (root / file).write_bytes(graph)
    precision, _, target = name.partition("-")
    known = {"precision": precision, "target": target or "any", "sha256": hashlib.sha256(graph).hexdigest()}
    return Variant(name=name, file=file, bytes=len(graph), **(known | fields))  # type: ignore[arg-type]


def write_tiny_bundle(
    root: Path,
    names: Sequence[str] = ("fp32",),
    *,
    graph: bytes | None = None,
    labels: Sequence[str] = TINY_LABELS,
    decisions: Mapping[str, Decision] | None = None,
    exemplars: Mapping[str, NDArray[np.float32]] | None = None,
    **fields: object,
) -> Path:
    """Writes a bundle whose variants hold the same float graph; ``fields`` go to the variants after fp32."""
    root.mkdir()
    graph = graph or tiny_graph()
    variants = [tiny_variant(root, name, graph, **({} if name == "fp32" else fields)) for name in names]
    counts = None
    if exemplars is not None:
        counts = [len(exemplars[label]) for label in labels]
        np.save(root / EXEMPLARS, np.vstack([exemplars[label] for label in labels]).astype(np.float16))
    write_manifest(
        root,
        tiny_spec(labels),
        variants,
        provenance={"made_by": "tests"},
        proof={},
        decisions=decisions,
        exemplars=counts,
    )
    return root


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, *, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """A picture that has no two alike parts: (H, W, channels), or (H, W) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
