"""FP16 and INT8 graphs of real backbones are built by the real TensorRT-RTX builder, ahead of time, without a GPU."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import tensorrt_builder
import torch

from edgetl.backbones import load_pretrained, new_network
from edgetl.export import check_agreement, onnx_from_module
from edgetl.quantize import QuantizeConfig, calibrate, write_fp16, write_int8

pytestmark = pytest.mark.slow

# convolutions that INT8 must reach: all but the squeeze-excite ones on 1 x 1 maps
CONVOLUTIONS = {"mobilenet_v2": 52, "resnet18": 20, "mobilenet_v3_large": 46, "efficientnet_b0": 49}


def pictures(spec, count):
    """Smooth random pictures: noise enlarged, so that neighbouring pixels go together."""
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width, _ = spec.preprocess.input_shape
    small = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in small])


@pytest.fixture(scope="module", params=CONVOLUTIONS)
def graphs(request, tmp_path_factory):
    """One backbone with a new head: its FP16 and INT8 graphs."""
    torch.manual_seed(0)
    network, spec = new_network(load_pretrained(request.param, "none"), tuple("abcdefgh"))
    network.eval()
    folder = tmp_path_factory.mktemp(request.param)
    graph = onnx_from_module(network, spec, folder / "fp32.onnx")
    check_agreement(network, spec, graph, pictures(spec, 3))
    calibration = calibrate(graph, [pictures(spec, 4)], QuantizeConfig())
    fp16 = write_fp16(graph, folder / "fp16.onnx")
    int8 = write_int8(graph, calibration, "tensorrt", folder / "int8.onnx")
    spared = [node.name for node in onnx.load(graph.path).graph.node if node.op_type == "Conv"][1:20:4]
    decisions = replace(calibration.decisions, spared={"tensorrt": tuple(spared)})
    mixed = write_int8(graph, replace(calibration, decisions=decisions), "tensorrt", folder / "mixed.onnx")
    return request.param, {"fp16": fp16.path, "int8": int8.path, "mixed": mixed.path}


def test_int8_reaches_every_convolution_worth_it(graphs):
    name, files = graphs
    convolutions = [node for node in onnx.load(files["int8"]).graph.node if node.op_type == "Conv"]
    quantized = [node for node in convolutions if "_dq" in node.input[0] and "_dq" in node.input[1]]
    assert len(quantized) == CONVOLUTIONS[name]


@pytest.mark.parametrize("precision", ["fp16", "int8", "mixed"])
def test_the_builder_accepts(graphs, precision):
    _, files = graphs
    plan, warnings = tensorrt_builder.build(files[precision], *tensorrt_builder.ALL)
    assert len(plan) > 100_000
    assert warnings == []


def test_layers_left_in_float_are_half_floats_between_integers(graphs):
    _, files = graphs
    whole, mixed = (
        sum("_dq" in node.input[1] for node in onnx.load(files[name]).graph.node if node.op_type == "Conv")
        for name in ("int8", "mixed")
    )
    assert 0 < whole - mixed <= 5
