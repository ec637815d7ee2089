"""A user's own ONNX file becomes a graph like ours: uint8 NHWC in, logits and embedding out, dynamic batch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from edgetl.artifacts import OnnxModel, sha256_of
from edgetl.errors import EdgetlError, ExportError
from edgetl.export.onnx import OPSET
from edgetl.metrics import softmax
from edgetl.quantize import load_onnx, save_onnx
from edgetl.runtime.ort import OrtSession
from edgetl.spec import ModelSpec

__all__ = ["onnx_from_foreign"]

_LARGEST_ERROR = 1e-3


def onnx_from_foreign(source: Path, spec: ModelSpec, path: Path) -> OnnxModel:
    """Adapts a classifier that takes normalized float32 (N, C, H, W), or already takes uint8 (N, H, W, C).

    Args:
        source: The user's file.
        spec: What it expects and answers.
        path: File to write.

    Raises:
        ExportError: Input or output do not fit the spec, or the batch size cannot be made dynamic.
        QuantizationError: The file is not single-file ONNX.
    """
    model = load_onnx(source)
    model = _at_our_opset(model, source)
    _check_output(model, spec, source)
    probabilities = _drop_softmax(model)
    _store_constants(model)
    moving = _only_input(model, source)
    height, width, channels = spec.preprocess.input_shape
    if moving.type.tensor_type.elem_type == TensorProto.FLOAT:
        _check_input(moving, (channels, height, width), source)
        _prepend_preprocessing(model, moving, spec)
    elif moving.type.tensor_type.elem_type == TensorProto.UINT8:
        _check_input(moving, (height, width, channels), source)
        _cast_first(model, moving.name)
    else:
        raise ExportError(f"{source}: takes neither float32 (N, C, H, W) nor uint8 (N, H, W, C)")
    _free_batch(model)
    _name_nodes(model)
    _name_outputs(model, source)
    _fold(model, source, path)
    _check_answers(source, spec, path, probabilities)
    return OnnxModel(path, spec, "fp32", "any", sha256_of(path), sha256_of(source))


def _at_our_opset(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if version == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises plain RuntimeErrors of its C++ side
        raise ExportError(
            f"{source}: has opset {version} and cannot be converted to {OPSET} ({str(error).splitlines()[0][:120]}); "
            f"export it again with opset {OPSET}"
        ) from None


def _only_input(model: onnx.ModelProto, source: Path) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ExportError(f"{source}: has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}), it must have one")
    del model.graph.input[:]
    model.graph.input.append(inputs[0])
    moving: onnx.ValueInfoProto = inputs[0]
    return moving


def _check_output(model: onnx.ModelProto, spec: ModelSpec, source: Path) -> None:
    first = model.graph.output[0]
    dims = [d.dim_value for d in first.type.tensor_type.shape.dim]
    if len(dims) != 2 or dims[1] not in (0, len(spec.labels)):
        raise ExportError(
            f"{source}: its first output {first.name} has shape {dims}, the spec has {len(spec.labels)} labels: "
            f"it must be (N, {len(spec.labels)})"
        )


def _drop_softmax(model: onnx.ModelProto) -> bool:
    """Ends a graph at its logits where it ends with a softmax over the classes, which the runtime applies itself.

    Returns:
        Whether there was one.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    output = model.graph.output[0]
    node = makers.get(output.name)
    tail = [node]
    while node is not None and node.op_type == "Identity":
        node = makers.get(node.input[0])
        tail.append(node)
    if node is None or node.op_type != "Softmax":
        return False
    if next((a.i for a in node.attribute if a.name == "axis"), -1) not in (-1, 1):
        return False
    kept = [n for n in model.graph.node if not any(n is member for member in tail)]
    if any(name in n.input for n in kept for name in node.output):
        return False
    output.name = node.input[0]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return True


def _cast_first(model: onnx.ModelProto, name: str) -> None:
    """Lets a graph that moves uint8 channels first cast before: TensorRT moves no uint8."""
    takers = [node for node in model.graph.node if name in node.input]
    if len(takers) != 1 or takers[0].op_type != "Transpose":
        return
    transpose = takers[0]
    behind = [node for node in model.graph.node if transpose.output[0] in node.input]
    if len(behind) != 1 or behind[0].op_type != "Cast":
        return
    cast = behind[0]
    moved = onnx.NodeProto()
    moved.CopyFrom(cast)
    kept = onnx.NodeProto()
    kept.CopyFrom(transpose)
    moved.input[0], moved.output[0] = name, transpose.output[0]
    kept.input[0], kept.output[0] = transpose.output[0], cast.output[0]
    transpose.CopyFrom(moved)
    cast.CopyFrom(kept)


def _store_constants(model: onnx.ModelProto) -> None:
    """Turns Constant nodes that hold a tensor into initializers, so that shapes are found in one place."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            model.graph.initializer.append(node.attribute[0].t)
            model.graph.initializer[-1].name = node.output[0]
        else:
            model.graph.node.append(node)


def _check_input(moving: onnx.ValueInfoProto, wanted: tuple[int, int, int], source: Path) -> None:
    dims = [d.dim_value for d in moving.type.tensor_type.shape.dim]
    if len(dims) != 4 or any(has not in (0, want) for has, want in zip(dims[1:], wanted, strict=True)):
        raise ExportError(
            f"{source}: its input {moving.name} has shape {dims}, the spec says (N, {', '.join(map(str, wanted))}); "
            "mend preprocess.size or preprocess.color in the spec"
        )


def _prepend_preprocessing(model: onnx.ModelProto, moving: onnx.ValueInfoProto, spec: ModelSpec) -> None:
    height, width, channels = spec.preprocess.input_shape
    for node in model.graph.node:  # the float tensor may have the name that the uint8 input takes
        node.input[:] = ["edgetl_normalized" if name == moving.name else name for name in node.input]
    scale = spec.preprocess.scale
    wide = (1, channels, 1, width)  # see edgetl.export.onnx on why the width is spelled out
    for name, values in (("edgetl_mean", spec.preprocess.mean), ("edgetl_std", spec.preprocess.std)):
        column = (np.array(values, np.float64) / scale).astype(np.float32).reshape(1, channels, 1, 1)
        model.graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(np.broadcast_to(column, wide)), name)
        )
    steps = [
        helper.make_node("Cast", ["pictures"], ["edgetl_float"], name="edgetl_cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["edgetl_float"], ["edgetl_nchw"], name="edgetl_transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["edgetl_nchw", "edgetl_mean"], ["edgetl_centred"], name="edgetl_sub"),
        helper.make_node("Div", ["edgetl_centred", "edgetl_std"], ["edgetl_normalized"], name="edgetl_div"),
    ]
    nodes = [*steps, *model.graph.node]
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(
        helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", height, width, channels])
    )


def _free_batch(model: onnx.ModelProto) -> None:
    """Makes the first dimension of inputs and outputs a symbol; shapes in between are inferred again."""
    kept = [output for i, output in enumerate(model.graph.output) if i == 0 or output.name == "embedding"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    shapes = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:  # a fixed batch of 1 written into a Reshape
        tensor = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        if tensor is not None:
            values = numpy_helper.to_array(tensor).copy()
            if values.size >= 2 and values[0] == 1 and (values[1:] == -1).sum() <= 1:
                rest = values[1:]
                values[0] = -1 if not (rest == -1).any() else 0
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _name_nodes(model: onnx.ModelProto) -> None:
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def _name_outputs(model: onnx.ModelProto, source: Path) -> None:
    """Renames the first output to ``logits``; what the last layer sees becomes ``embedding``."""
    old = model.graph.output[0].name
    names = {name for node in model.graph.node for name in [*node.input, *node.output]}
    if old != "logits":
        if "logits" in names:
            raise ExportError(
                f'{source}: an inner tensor is named "logits"; rename it, the first output takes that name'
            )
        for node in model.graph.node:
            node.input[:] = ["logits" if n == old else n for n in node.input]
            node.output[:] = ["logits" if n == old else n for n in node.output]
        model.graph.output[0].name = "logits"
    if any(output.name == "embedding" for output in model.graph.output):
        return
    last = next((n for n in reversed(model.graph.node) if n.op_type in ("Gemm", "MatMul")), None)
    inner = last.input[0] if last is not None else "logits"
    model.graph.node.append(helper.make_node("Flatten", [inner], ["embedding"], name="edgetl_embedding", axis=1))
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", "features"])
    logits = model.graph.output[0]
    outputs = [
        helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, ["batch", logits.type.tensor_type.shape.dim[1].dim_value]
        )
    ]
    del model.graph.output[:]
    model.graph.output.extend([*outputs, embedding])


def _fold(model: onnx.ModelProto, source: Path, path: Path) -> None:
    """Folds BatchNorm and constants by ONNX Runtime's basic passes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(folded)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"{source}: ONNX Runtime refuses it ({str(error).splitlines()[0][:200]})") from None
        result = load_onnx(folded)
    standard = [o for o in result.opset_import if o.domain in ("", "ai.onnx")]
    del result.opset_import[:]
    result.opset_import.extend(standard)
    save_onnx(result, path)


def _check_answers(source: Path, spec: ModelSpec, path: Path, probabilities: bool) -> None:
    """Compares the adapted graph with the user's own, in one batch and picture by picture."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, *spec.preprocess.input_shape), dtype=np.uint8)
    try:
        with OrtSession(path, spec) as session:
            together = session.infer(pictures)["logits"]
            alone = np.concatenate([session.infer(picture[None])["logits"] for picture in pictures])
    except EdgetlError as error:
        raise ExportError(
            f"{source}: works for one batch size only ({error}); export it with a dynamic batch"
        ) from None
    tolerance = _LARGEST_ERROR * float(np.abs(alone).max()) + 1e-12
    if together.shape != alone.shape or np.abs(together - alone).max() > tolerance:
        raise ExportError(f"{source}: answers differently in a batch; export it with a dynamic batch")
    theirs = _answers_of(source, spec, pictures)
    ours, tolerance = (softmax(alone), _LARGEST_ERROR) if probabilities else (alone, tolerance)
    if np.abs(theirs - ours).max() > tolerance:
        raise ExportError(f"{source}: answers differently once adapted; export it again with opset {OPSET}")


def _answers_of(source: Path, spec: ModelSpec, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Runs the user's own file, picture by picture, on what it expects."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    moving = session.get_inputs()[0]
    inputs: NDArray[Any] = pictures
    if moving.type != "tensor(uint8)":
        mean, std = (np.array(v, np.float32) for v in (spec.preprocess.mean, spec.preprocess.std))
        normalized = (pictures.astype(np.float32) * spec.preprocess.scale - mean) / std
        inputs = np.ascontiguousarray(normalized.transpose(0, 3, 1, 2).astype(np.float32))
    first = session.get_outputs()[0].name
    try:
        return np.concatenate([session.run([first], {moving.name: one[None]})[0] for one in inputs])
    except Exception as error:  # onnxruntime raises its own classes, unrelated to each other
        raise ExportError(
            f"{source}: does not take one picture ({str(error).splitlines()[0][:160]}); export it with a dynamic batch"
        ) from None
