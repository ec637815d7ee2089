"""FP16 and INT8 graphs of real backbones are built by the real TensorRT-RTX builder, ahead of time, without a GPU."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from edgetl.backbones import load_pretrained, new_network
from edgetl.bundle import Variant, write_manifest
from edgetl.cli.main import run
from edgetl.compile import PlanSettings, build_plan, product_named
from edgetl.export import check_agreement, onnx_from_module
from edgetl.quantize import QuantizeConfig, calibrate, write_fp16, write_int8

pytestmark = pytest.mark.slow

# convolutions that INT8 must reach: all but the squeeze-excite ones on 1 x 1 maps
CONVOLUTIONS = {"mobilenet_v2": 52, "resnet18": 20, "mobilenet_v3_large": 46, "efficientnet_b0": 49}
SMS = (80, 86, 89, 120)  # A100, Orin's and desktop Ampere, Ada, desktop Blackwell


def pictures(spec, count):
    """Smooth random pictures: noise enlarged, so that neighbouring pixels go together."""
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width, _ = spec.preprocess.input_shape
    small = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in small])


@pytest.fixture(scope="module", params=CONVOLUTIONS)
def graphs(request, tmp_path_factory):
    """One backbone with a new head: a folder that is a bundle, and a graph with some layers left in float."""
    torch.manual_seed(0)
    network, spec = new_network(load_pretrained(request.param, "none"), tuple("abcdefgh"))
    network.eval()
    folder = tmp_path_factory.mktemp("backbones") / f"{request.param}.edgetl"
    folder.mkdir()
    graph = onnx_from_module(network, spec, folder / "model.fp32.onnx")
    check_agreement(network, spec, graph, pictures(spec, 3))
    calibration = calibrate(graph, [pictures(spec, 4)], QuantizeConfig())
    fp16 = write_fp16(graph, folder / "model.fp16.onnx")
    int8 = write_int8(graph, calibration, "tensorrt", folder / "model.int8-tensorrt.onnx")
    variants = [
        Variant(name, model.precision, model.target, model.path.name, model.sha256, model.path.stat().st_size)
        for name, model in (("fp32", graph), ("fp16", fp16), ("int8-tensorrt", int8))
    ]
    write_manifest(folder, spec, variants, provenance={}, proof={})
    spared = [node.name for node in onnx.load(graph.path).graph.node if node.op_type == "Conv"][1:20:4]
    decisions = replace(calibration.decisions, spared={"tensorrt": tuple(spared)})
    out = folder.with_suffix(".mixed.onnx")
    mixed = write_int8(graph, replace(calibration, decisions=decisions), "tensorrt", out)
    return request.param, folder, {"int8": int8.path, "mixed": mixed.path}


def test_int8_reaches_every_convolution_worth_it(graphs):
    name, _, files = graphs
    convolutions = [node for node in onnx.load(files["int8"]).graph.node if node.op_type == "Conv"]
    quantized = [node for node in convolutions if "_dq" in node.input[0] and "_dq" in node.input[1]]
    assert len(quantized) == CONVOLUTIONS[name]


def test_compile_builds_one_plan_for_several_gpus_and_names_every_convolutions_type(graphs, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    name, bundle, _ = graphs
    arguments = ["--engine", "tensorrt-rtx", "--sm", ",".join(map(str, SMS)), "--out", str(tmp_path / "plans")]
    assert run(["compile", str(bundle), *arguments, "--json", str(tmp_path / "result.json")]) == 0
    plans = {plan["variant"]: plan for plan in json.loads((tmp_path / "result.json").read_text())["plans"]}
    assert plans.keys() == {"fp16", "int8-tensorrt"}
    for variant, plan in plans.items():
        assert plan["bytes"] > 100_000
        assert plan["warnings"] == []
        data = (tmp_path / "plans" / plan["path"]).read_bytes()
        (record,) = (tmp_path / "plans").glob(f"{name}.{variant}.*.json")
        told = json.loads(record.read_text())
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
        assert tuple(told["key"]["sms"]) == SMS
        convolutions = [
            node.name for node in onnx.load(bundle / f"model.{variant}.onnx").graph.node if node.op_type == "Conv"
        ]
        types = plan["report"]["weighted"]
        assert convolutions
        assert set(convolutions) <= types.keys()
        assert sum(kind == "Int8" for kind in types.values()) == (CONVOLUTIONS[name] if "int8" in variant else 0)
        assert set(types.values()) <= {"Half", "Int8"}


def test_a_mix_is_built_for_all_of_them_and_its_islands_are_named(graphs):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _, _, files = graphs
    built = build_plan(files["mixed"].read_bytes(), "mixed", product_named("tensorrt-rtx"), PlanSettings(sms=SMS))
    assert built.warnings == ()
    assert len(built.report.islands) >= 1


def test_layers_left_in_float_are_half_floats_between_integers(graphs):
    _, _, files = graphs
    whole, mixed = (
        sum("_dq" in node.input[1] for node in onnx.load(files[name]).graph.node if node.op_type == "Conv")
        for name in ("int8", "mixed")
    )
    assert 0 < whole - mixed <= 5
