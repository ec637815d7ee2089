"""Tiny ONNX graphs with the shapes that quantization meets, and the few lines that run them."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgetl.artifacts import OnnxModel, sha256_of
from edgetl.spec import ModelSpec, PreprocessSpec

OPSET = 18
CLASSES = 5
BLOCKS = ("conv", "clip", "plain", "depthwise", "residual", "shortcut", "se", "pool", "transpose")
HEADS = ("gemm", "gemm_trans_b", "matmul", "mlp", "mlp_trans_b", "mlp_matmul")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Builder:
    """Appends nodes; every node, weight and tensor gets a name that says what it is."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes = []
        self.constants = []
        self._numbers = {}

    def fresh(self, prefix):
        self._numbers[prefix] = self._numbers.get(prefix, 0) + 1
        return f"{prefix}{self._numbers[prefix]}"

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(self, op, *inputs, name=None, output=None, **attributes):
        name = name or self.fresh(op.lower())
        output = output or f"{name}_out"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def weight(self, name, *shape, fan_in):
        return self.constant(name, self.rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))

    def bias(self, name, channels):
        return self.constant(name, self.rng.normal(0, 0.1, channels).astype(np.float32))

    def normalize(self, source, size):
        """uint8 NHWC to normalized float32 NCHW, as `edgetl.export` writes it."""
        wide = (1, 3, 1, size[1])
        columns = [np.array(v, np.float32).reshape(1, 3, 1, 1) * 255 for v in (MEAN, STD)]
        mean, std = (np.ascontiguousarray(np.broadcast_to(c, wide)) for c in columns)
        x = self.node("Cast", source, to=TensorProto.FLOAT)
        x = self.node("Transpose", x, perm=[0, 3, 1, 2])
        x = self.node("Sub", x, self.constant("mean", mean))
        return self.node("Div", x, self.constant("std", std))

    def conv(self, x, channels_in, channels_out, kernel=3, stride=1, group=1, prefix="conv"):
        name = self.fresh(prefix)
        per_group = channels_in // group
        weight = self.weight(
            f"{name}_weight", channels_out, per_group, kernel, kernel, fan_in=per_group * kernel * kernel
        )
        pad = kernel // 2
        inputs = [x, weight, self.bias(f"{name}_bias", channels_out)]
        return self.node("Conv", *inputs, name=name, strides=[stride] * 2, pads=[pad] * 4, group=group)

    def conv_transpose(self, x, channels_in, channels_out):
        name = self.fresh("up")
        weight = self.weight(f"{name}_weight", channels_in, channels_out, 2, 2, fan_in=channels_in)
        inputs = [x, weight, self.bias(f"{name}_bias", channels_out)]
        return self.node("ConvTranspose", *inputs, name=name, strides=[2, 2])

    def relu(self, x):
        return self.node("Relu", x)

    def clip(self, x, low=0.0, high=6.0):
        name = self.fresh("clip")
        limits = [self.constant(f"{name}_{k}", np.float32(v)) for k, v in (("min", low), ("max", high))]
        return self.node("Clip", x, *limits, name=name)

    def squeeze_excite(self, x, channels):
        pooled = self.node("GlobalAveragePool", x, name=self.fresh("squeeze"))
        hidden = self.relu(self.conv(pooled, channels, 4, kernel=1, prefix="se_conv"))
        gate = self.node("Sigmoid", self.conv(hidden, 4, channels, kernel=1, prefix="se_conv"))
        return self.node("Mul", x, gate)

    def dense(self, x, features, classes, kind, output=None):
        """A fully connected layer as Gemm (two ways round) or as MatMul and Add."""
        name = self.fresh("dense")
        shape = (classes, features) if kind == "gemm_trans_b" else (features, classes)
        weight = self.weight(f"{name}_weight", *shape, fan_in=features)
        bias = self.bias(f"{name}_bias", classes)
        if kind == "matmul":
            return self.node("Add", self.node("MatMul", x, weight, name=name), bias, output=output)
        return self.node("Gemm", x, weight, bias, name=name, output=output, transB=int(kind == "gemm_trans_b"))

    def block(self, kind, x, channels):
        if kind == "conv":
            return self.relu(self.conv(x, channels, channels))
        if kind == "clip":
            return self.clip(self.conv(x, channels, channels))
        if kind == "plain":
            return self.conv(x, channels, channels, kernel=1)
        if kind == "depthwise":
            return self.clip(self.conv(x, channels, channels, group=channels, prefix="depthwise"))
        if kind == "residual":
            inner = self.conv(self.relu(self.conv(x, channels, channels)), channels, channels)
            return self.relu(self.node("Add", inner, x))
        if kind == "shortcut":
            inner = self.conv(self.relu(self.conv(x, channels, channels)), channels, channels)
            return self.relu(self.node("Add", inner, self.conv(x, channels, channels, kernel=1, prefix="shortcut")))
        if kind == "se":
            return self.squeeze_excite(x, channels)
        if kind == "pool":
            return self.node("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
        assert kind == "transpose"
        return self.relu(self.conv(self.relu(self.conv_transpose(x, channels, channels)), channels, channels, stride=2))

    def model(self, inputs, outputs, opset=OPSET):
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def cnn(blocks: Sequence[str], *, head="gemm", channels=8, size=(16, 16), seed=0) -> onnx.ModelProto:
    """A classifier with a convolution, the given blocks and a head; outputs logits and embedding."""
    b = Builder(seed)
    x = b.relu(b.conv(b.normalize("pictures", size), 3, channels, prefix="stem"))
    for kind in blocks:
        x = b.block(kind, x, channels)
    flat = b.node("Flatten", b.node("GlobalAveragePool", x), name="flatten", output="embedding")
    kind = head.removeprefix("mlp").removeprefix("_") or "gemm"
    kind = {"trans_b": "gemm_trans_b"}.get(kind, kind)
    features = channels
    if head.startswith("mlp"):
        flat, features = b.relu(b.dense(flat, channels, 12, kind)), 12
    b.dense(flat, features, CLASSES, kind, output="logits")
    return b.model(
        [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", *size, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", channels]),
        ],
    )


def residual_cnn(**options) -> onnx.ModelProto:
    """Everything at once: MaxPool, both kinds of residual, depthwise, squeeze-excite, ConvTranspose, two Gemms."""
    return cnn(("pool", "residual", "depthwise", "se", "shortcut", "transpose"), head="mlp", **options)


def spec(size=(16, 16), classes=CLASSES) -> ModelSpec:
    preprocess = PreprocessSpec(size=size, resize_to=None, crop="none", mode="squash", mean=MEAN, std=STD)
    return ModelSpec("tiny", preprocess, tuple(f"class{i}" for i in range(classes)))


def pictures(count=8, size=(16, 16), seed=0):
    """Noise with a brightness and a contrast of its own for each picture, uint8 (N, H, W, 3)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(rng.uniform(80, 170, (count, 1, 1, 3)), rng.uniform(20, 60, (count, 1, 1, 1)), (count, *size, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


def saved(model: onnx.ModelProto, path: Path, size=(16, 16)) -> OnnxModel:
    """Writes an FP32 graph as the export stage would hand it on."""
    path.write_bytes(model.SerializeToString())
    return OnnxModel(path, spec(size), "fp32", "any", sha256_of(path), "")


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The graph with inner tensors as its outputs."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    return exposed


def session(model: onnx.ModelProto, **config) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, batch, **config):
    """Outputs by name; keywords are entries of the session's configuration."""
    ready = session(model, **config)
    names = [o.name for o in ready.get_outputs()]
    return dict(zip(names, ready.run(names, {ready.get_inputs()[0].name: batch}), strict=True))


def fused_ops(model: onnx.ModelProto, **config) -> list[str]:
    """Ops that ONNX Runtime really executes on this CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns that a saved graph belongs to this machine
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(path).graph.node]


def sqnr(reference, other) -> float:
    """Signal to noise in dB: 10 log10 of the signal's power over the difference's."""
    signal, noise = np.square(reference, dtype=np.float64).sum(), np.square(reference - other, dtype=np.float64).sum()
    return float(10 * np.log10(signal / noise)) if noise else np.inf


def nodes_of(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def constants_of(model: onnx.ModelProto):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
