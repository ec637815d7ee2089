"""Networks become ONNX graphs that answer as torch does, for any batch."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgetl.backbones import feature_extractor, feature_shape, full_model, load_pretrained, new_network
from edgetl.backbones.network import Head, Network
from edgetl.errors import ExportError
from edgetl.export import check_agreement, onnx_from_module
from edgetl.runtime.ort import OrtSession
from edgetl.spec import ModelSpec, PreprocessSpec

pytestmark = pytest.mark.slow

TIMM = (
    "mobilenetv4_conv_small", "mobilenetv3_small_050", "efficientnet_lite0", "resnet18", "regnetx_002", "repvgg_a0",
    "ghostnet_050", "convnext_atto", "hardcorenas_a", "mnasnet_small", "tf_efficientnetv2_b0", "vit_tiny_patch16_224",
)  # fmt: skip


def pictures(spec, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *spec.preprocess.input_shape), dtype=np.uint8)


def exported(network, spec, folder):
    graph = onnx_from_module(network, spec, folder / "model.onnx")
    worst = check_agreement(network, spec, graph, pictures(spec))
    return graph, worst


@pytest.mark.parametrize("name", TIMM)
def test_a_dozen_timm_families(name, tmp_path):
    torch.manual_seed(0)
    size = (224, 224) if "vit" in name else (64, 64)
    pretrained = load_pretrained(f"timm/{name}", "none", size=size)
    network, spec = new_network(pretrained, ("a", "b", "c"))
    network.eval()
    graph, worst = exported(network, spec, tmp_path)
    assert worst < 1e-3
    nodes = onnx.load(graph.path).graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    unfolded = [
        node.name for node in nodes if node.op_type == "BatchNormalization" and made_by[node.input[0]] == "Conv"
    ]
    assert unfolded == []


def test_the_graph_takes_uint8_nhwc_and_gives_logits_and_embedding(tmp_path):
    network, spec = new_network(load_pretrained("small_cnn", "none"), ("a", "b"), head="mlp:10")
    graph, _ = exported(network.eval(), spec, tmp_path)
    model = onnx.load(graph.path).graph
    assert [i.name for i in model.input] == ["pictures"]
    assert model.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value or d.dim_param for d in model.input[0].type.tensor_type.shape.dim] == ["batch", 32, 32, 3]
    assert [o.name for o in model.output] == ["logits", "embedding"]
    assert model.node[0].op_type == "Cast"  # TensorRT rejects a Transpose of uint8
    assert "GlobalAveragePool" in [n.op_type for n in model.node]
    with OrtSession(graph.path, spec) as session:
        for count in (1, 2, 7):
            answer = session.infer(pictures(spec, count))
            assert answer["logits"].shape == (count, 2)
            assert answer["embedding"].shape == (count, 10)


def test_the_file_says_nothing_about_where_it_was_made(tmp_path):
    network, spec = new_network(load_pretrained("small_cnn", "none"), ("a", "b"))
    graph, _ = exported(network.eval(), spec, tmp_path)
    model = onnx.load(graph.path)
    assert {tensor.name: tensor.raw_data for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # among a million random bytes any three stand somewhere
    written = model.SerializeToString()
    assert b".py" not in written
    assert b"site-packages" not in written


def test_a_graph_that_disagrees_is_refused(tmp_path):
    network, spec = new_network(load_pretrained("small_cnn", "none"), ("a", "b"))
    graph, _ = exported(network.eval(), spec, tmp_path)
    with torch.no_grad():
        network.head.classifier.bias += 1.0
    with pytest.raises(ExportError, match="answers differently from torch"):
        check_agreement(network, spec, graph, pictures(spec))


class Fickle(nn.Module):
    """Its control flow depends on values, which no graph can hold."""

    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


def test_a_network_that_torch_cannot_export_is_told(tmp_path):
    spec = ModelSpec("mine", PreprocessSpec(size=(8, 8), resize_to=8), ("a", "b", "c"))
    with pytest.raises(ExportError, match="mine: torch cannot export this network") as caught:
        onnx_from_module(Fickle(), spec, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("kind", ["linear", "pooled"])
def test_a_foreign_module_gets_our_preprocessing_in_front(kind, tmp_path):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module = nn.Sequential(body, nn.Linear(4, 3)) if kind == "linear" else nn.Sequential(body, nn.Softsign())
    labels = ("a", "b", "c") if kind == "linear" else ("a", "b", "c", "d")
    spec = ModelSpec("mine", PreprocessSpec(size=(8, 8), resize_to=8), labels, "own")
    graph, _ = exported(module.eval(), spec, tmp_path)
    x = pictures(spec)
    normalized = (x / 255 - np.array(spec.preprocess.mean)) / np.array(spec.preprocess.std)
    with torch.no_grad():
        expected = module(torch.from_numpy(normalized.transpose(0, 3, 1, 2)).float()).numpy()
    with OrtSession(graph.path, spec) as session:
        np.testing.assert_allclose(session.infer(x)["logits"], expected, rtol=1e-3, atol=1e-4)


def test_the_wide_normalization_changes_no_answer(tmp_path):
    torch.manual_seed(0)
    spec = PreprocessSpec(size=(16, 24), resize_to=24)
    backbone = feature_extractor(full_model("small_cnn"))
    network = Network(spec, backbone, Head("linear", feature_shape(backbone, spec), 2)).eval()
    graph, worst = exported(network, ModelSpec("small_cnn", spec, ("a", "b")), tmp_path)
    widths = [tuple(t.dims) for t in onnx.load(graph.path).graph.initializer if tuple(t.dims)[:2] == (1, 3)]
    assert widths == [(1, 3, 1, 24)] * 2
    assert worst < 1e-5


@pytest.mark.parametrize(("size", "op"), [(28, "Identity"), (56, "AveragePool"), (84, "AveragePool")])
def test_originals_that_pool_to_more_than_one(size, op, tmp_path):
    """As VGG does, to 7 x 7: at its own size, and at twice and three times it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=4, padding=1)
    module = nn.Sequential(conv, nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(4 * 49, 3)).eval()
    spec = ModelSpec("mine", PreprocessSpec(size=(size, size), resize_to=size), ("a", "b", "c"), "own")
    graph, worst = exported(module, spec, tmp_path)
    assert worst < 1e-3
    ops = [n.op_type for n in onnx.load(graph.path).graph.node]
    assert "GlobalAveragePool" not in ops
    assert ("AveragePool" in ops) == (op == "AveragePool")


def test_uneven_pooling_is_refused_in_one_clear_line(tmp_path):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(75, 2)).eval()
    spec = ModelSpec("mine", PreprocessSpec(size=(32, 32), resize_to=32), ("a", "b"), "own")
    with pytest.raises(ExportError) as caught:
        onnx_from_module(module, spec, tmp_path / "a.onnx")
    assert "from [32, 32] to [5, 5] has windows of different sizes; choose another --size" in str(caught.value)
    assert "\n" not in str(caught.value)
