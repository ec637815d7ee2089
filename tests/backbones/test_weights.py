"""Weights are read without unpickling, mapped by name, then by order, and what happened is told."""

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgetl.backbones import (
    full_model,
    load_network,
    load_pretrained,
    map_weights,
    new_network,
    read_weights,
    save_network,
)
from edgetl.errors import CheckpointError, WeightsError


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(1)
    return full_model("small_cnn", 7)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    ],
)
def test_wrappers_and_prefixes_of_pth_files_are_taken_off(wrap, small, tmp_path):
    torch.save(wrap(small.state_dict()), tmp_path / "w.pth")
    state, metadata = read_weights(tmp_path / "w.pth")
    assert metadata == {}
    assert set(state) == set(small.state_dict())
    other = full_model("small_cnn", 7)
    report = map_weights(other, state, "w.pth")
    assert report.fraction == 1
    assert {m.how for m in report.matched} == {"name"}
    assert all(
        torch.equal(a, b)
        for (n, a), (_, b) in zip(other.state_dict().items(), small.state_dict().items(), strict=True)
        if "tracked" not in n
    )


def test_other_names_are_mapped_by_order_even_with_a_layer_missing(small):
    renamed = {f"layer{i}": v for i, v in enumerate(small.state_dict().values())}
    gone = [n for n, v in renamed.items() if v.shape == (32, 32, 3, 3)]
    other = full_model("small_cnn", 7)
    report = map_weights(other, {n: v for n, v in renamed.items() if n not in gone}, "w.pth")
    assert report.missing == ("features.1.0.weight",)
    assert {m.how for m in report.matched} == {"order"}
    assert torch.equal(other.state_dict()["features.5.0.weight"], small.state_dict()["features.5.0.weight"])
    assert torch.equal(other.classifier.bias, small.classifier.bias)


def test_less_than_half_is_an_error_and_changes_nothing(small):
    other = full_model("small_cnn", 7)
    before = {n: v.clone() for n, v in other.state_dict().items()}
    state = {"conv.weight": small.state_dict()["features.0.0.weight"], "odd": torch.zeros(3, 5)}
    with pytest.raises(
        WeightsError, match=r'w.pth: only 1 of 32 tensors fit this network; the file begins with "conv.weight"'
    ):
        map_weights(other, state, "w.pth")
    assert all(torch.equal(before[n], v) for n, v in other.state_dict().items())


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_file_is_not_executed(tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"w": Evil()}))
    with pytest.raises(WeightsError, match=r"evil\.pth: cannot be read without unpickling code"):
        read_weights(tmp_path / "evil.pth")
    torch.save({"w": Evil()}, tmp_path / "zip.pth")
    with pytest.raises(WeightsError, match="without unpickling"):
        read_weights(tmp_path / "zip.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.safetensors", b"not a header", "is not a readable safetensors file"),
        ("w.pth", b"", "cannot be read"),
        ("w.bin", b"x", 'ends in ".bin", weights are .safetensors, .pth or .pt'),
    ],
)
def test_damaged_and_foreign_files(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pth_without_tensors_is_told(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no tensors by name"):
        read_weights(tmp_path / "w.pth")


def test_local_weights_bring_their_own_head_as_the_original(tmp_path):
    torch.manual_seed(2)
    model = full_model("mobilenet_v3_small", 7)
    save_file(model.state_dict(), tmp_path / "seven.safetensors")
    loaded = load_pretrained("mobilenet_v3_small", str(tmp_path / "seven.safetensors"), size=(64, 64))
    assert loaded.source_spec.labels == tuple(f"class_{i}" for i in range(7))
    assert loaded.source_spec.head == "own"
    assert (loaded.preprocess.size, loaded.preprocess.resize_to) == ((64, 64), 73)
    assert loaded.report.fraction == 1
    pictures = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits, _ = loaded.source(pictures)
        torch.testing.assert_close(logits, model.eval()(loaded.source.normalize(pictures)))


def test_a_file_without_its_head_has_no_original(tmp_path):
    state = {n: v for n, v in full_model("resnet18", 5).state_dict().items() if not n.startswith("fc.")}
    save_file(state, tmp_path / "body.safetensors")
    loaded = load_pretrained("resnet18", str(tmp_path / "body.safetensors"))
    assert loaded.source is None
    assert set(loaded.report.missing) == {"fc.weight", "fc.bias"}


def test_networks_survive_the_disk_and_can_be_transferred_again(tmp_path):
    torch.manual_seed(3)
    first, spec = new_network(load_pretrained("small_cnn", "none"), ("a", "b", "c"), head="mlp:12")
    save_network(first, spec, tmp_path / "n.safetensors")
    again, restored = load_network(tmp_path / "n.safetensors")
    assert restored == spec
    pictures = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(again(pictures)[0], first.eval()(pictures)[0])
    second = load_pretrained("small_cnn", str(tmp_path / "n.safetensors"))
    assert second.source_spec == spec
    assert "head.classifier.weight" in second.report.left
    with torch.no_grad():
        torch.testing.assert_close(second.backbone(again.normalize(pictures)), again.features(pictures))


def test_an_original_can_be_transferred_too(tmp_path):
    save_file(full_model("resnet18", 6).state_dict(), tmp_path / "w.safetensors")
    source = load_pretrained("resnet18", str(tmp_path / "w.safetensors"), size=(64, 64))
    save_network(source.source, source.source_spec, tmp_path / "source.safetensors")
    again = load_pretrained("resnet18", str(tmp_path / "source.safetensors"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again.backbone.eval()(x), source.backbone.eval()(x))


def test_files_of_others_are_refused_as_runs(tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="was not written by edgetl; give it to finetune by --weights"):
        load_network(tmp_path / "w.safetensors")


def test_default_weights_that_cannot_be_downloaded_tell_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request._opener", None)  # kept for the whole process, with the proxies of its first use
    with pytest.raises(
        WeightsError, match=r"weights of squeezenet1_1 cannot be downloaded .*give a local file by --weights FILE"
    ):
        load_pretrained("squeezenet1_1", "default")


def test_linear_heads_of_foreign_models_are_found(tmp_path, monkeypatch):
    (tmp_path / "two_nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Conv2d(3, 6, 3)\n"
        "        self.out = nn.Linear(6, 4)\n"
        "    def forward(self, x):\n"
        "        return self.out(self.body(x).relu().mean((2, 3)))\n"
        "def build():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = load_pretrained("two_nets:build", "default", size=(16, 16))
    network, _ = new_network(loaded, ("x", "y"))
    assert isinstance(network.backbone, nn.Module)
    assert network.head.classifier.weight.shape == (2, 6)
    assert loaded.source_spec.labels == ("class_0", "class_1", "class_2", "class_3")


def test_another_layers_values_do_not_fill_a_layer_of_the_same_name():
    """Weights of a narrower relative fit by name at the ends alone; by order they would land in other stages."""
    state = full_model("resnet50", 10).state_dict()
    with pytest.raises(WeightsError, match=r"only \d+ of 267 tensors fit this network"):
        map_weights(full_model("wide_resnet50_2", 10), state, "resnet50.pth")
