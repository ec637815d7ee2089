"""Every backbone builds, ends at a feature map, and can be cut into blocks."""

import pytest
import torch
from torch import nn

from edgetl.backbones import (
    Head,
    Network,
    OriginalNetwork,
    backbone_names,
    blocks,
    check_head,
    default_preprocess,
    feature_extractor,
    feature_shape,
    full_model,
    skeleton,
    unfriendly,
)
from edgetl.errors import BackboneError, InputError
from edgetl.spec import PreprocessSpec

FAMILIES = {  # one of each: (channels of the feature map, its side at the default size)
    "alexnet": (256, 6), "convnext_tiny": (768, 7), "densenet121": (1024, 7), "efficientnet_b0": (1280, 7),
    "googlenet": (1024, 7), "inception_v3": (2048, 8), "maxvit_t": (512, 7), "mnasnet0_5": (1280, 7),
    "mobilenet_v2": (1280, 7), "mobilenet_v3_small": (576, 7), "regnet_x_400mf": (400, 7), "resnet18": (512, 7),
    "shufflenet_v2_x0_5": (1024, 7), "squeezenet1_1": (512, 13), "swin_t": (768, 7), "vgg11_bn": (512, 7),
    "vit_b_16": (768, 1), "small_cnn": (128, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_map_of_each_family(name):
    channels, side = FAMILIES[name]
    extractor = feature_extractor(skeleton(name))
    assert feature_shape(extractor, default_preprocess(name)) == (channels, side, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(backbone_names()) - set(FAMILIES)))
def test_every_torchvision_classifier_builds(name):
    extractor = feature_extractor(skeleton(name))
    assert all(p.is_meta for p in extractor.parameters())
    channels, height, _ = feature_shape(extractor, default_preprocess(name))
    assert channels >= 256
    assert height >= 1
    assert len(blocks(extractor)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "std"), [("googlenet", "conv1", 0.01), ("inception_v3", "Conv2d_2b_3x3", 0.1)]
)
def test_random_weights_are_those_torchvision_begins_with(name, layer, std):
    """Of these two it says so only when asked, since it once took minutes."""
    weight = full_model(name).get_submodule(layer).conv.weight
    assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_blocks_cover_every_parameter_once_from_input_to_output():
    extractor = feature_extractor(skeleton("resnet18"))
    found = blocks(extractor)
    assert [b.name for b in found] == [
        "conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1",
    ]  # fmt: skip
    assert len(found[0].modules) == 2  # the normalization follows its convolution
    ids = [id(p) for b in found for p in b.parameters()]
    assert len(ids) == len(set(ids)) == len(list(extractor.parameters()))


@pytest.mark.parametrize(
    ("name", "count"), [("vit_b_16", 13), ("mobilenet_v2", 19), ("timm/mobilenetv4_conv_small", 18)]
)
def test_number_of_blocks(name, count):
    found = blocks(feature_extractor(skeleton(name)))
    assert len(found) == count


def test_pre_logit_layers_are_dropped():
    kept = sum(p.numel() for p in feature_extractor(skeleton("mobilenet_v3_small")).parameters())
    whole = sum(p.numel() for p in skeleton("mobilenet_v3_small").parameters())
    assert whole - kept == 576 * 1024 + 1024 + 1024 * 1000 + 1000
    names = [n for n, _ in feature_extractor(skeleton("timm/mobilenetv4_conv_small")).named_parameters()]
    assert not [n for n in names if "conv_head" in n or "classifier" in n]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilnet_v2", "did you mean mobilenet_v2"),
        ("timm/resnet1", "unknown to timm"),
        ("no_such_module:build", 'backbone "no_such_module:build": cannot be imported'),
        ("collections:OrderedDict", "returned OrderedDict, it must return a torch.nn.Module"),
    ],
)
def test_unknown_names_are_told_with_what_is_near(name, message):
    with pytest.raises(BackboneError) as caught:
        full_model(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_of_the_user_gives_a_backbone(tmp_path, monkeypatch):
    (tmp_path / "mine_nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def plain():\n"
        "    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    return nn.Sequential(body, nn.Linear(8, 4))\n"
        "def loaded():\n"
        "    network = plain()\n"
        "    network.load_state_dict(torch.load('mine.pth', weights_only=True))\n"
        "    return network\n"
    )
    monkeypatch.chdir(tmp_path)
    extractor = feature_extractor(full_model("mine_nets:plain"))
    assert feature_shape(extractor, PreprocessSpec(size=(16, 16), resize_to=16)) == (8, 1, 1)
    torch.save(full_model("mine_nets:plain").state_dict(), "mine.pth")
    empty = feature_extractor(skeleton("mine_nets:loaded"))
    assert all(p.is_meta for p in empty.parameters())
    assert feature_shape(empty, PreprocessSpec(size=(16, 16), resize_to=16)) == (8, 1, 1)


def test_a_users_network_is_taken_whole_whatever_its_attributes_are_called(tmp_path, monkeypatch):
    (tmp_path / "stem_nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.stem = nn.Conv2d(3, 8, 3, 2, 1)\n"
        "        self.features = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU())\n"
        "        self.fc = nn.Linear(16, 4)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.features(self.stem(x)).mean((2, 3)))\n"
        "def broken():\n"
        "    raise KeyError('depth')\n"
    )
    monkeypatch.chdir(tmp_path)
    full = full_model("stem_nets:Net").eval()
    pictures = torch.rand(2, 3, 16, 16)
    expected, linear = full(pictures), full.fc
    got = linear(feature_extractor(full)(pictures).flatten(1))
    torch.testing.assert_close(got, expected)
    with pytest.raises(BackboneError, match=r"calling it without arguments failed \(KeyError: 'depth'\)"):
        full_model("stem_nets:broken")


def test_timm_networks_that_squash_pictures_do_so_here():
    spec = default_preprocess("timm/convnext_tiny.fb_in22k_ft_in1k_384")
    assert (spec.mode, spec.size, spec.resize_to) == ("squash", (384, 384), None)


def test_an_unknown_tag_of_a_known_timm_network_is_told():
    with pytest.raises(BackboneError, match=r'backbone "timm/resnet18.nowhere" is unknown to timm'):
        default_preprocess("timm/resnet18.nowhere")


def test_networks_that_renormalize_their_input_get_the_normalization_they_were_trained_with():
    """torchvision's transform_input: published weights see [-1, 1], and nobody may renormalize twice."""
    import inspect

    renormalizing = {
        name
        for name in backbone_names()[1:]
        if "transform_input" in inspect.signature(type(skeleton(name)).__init__).parameters
    }
    assert renormalizing == {"googlenet", "inception_v3"}
    for name in renormalizing:
        assert default_preprocess(name).mean == default_preprocess(name).std == (0.5, 0.5, 0.5)
        assert not full_model(name).transform_input


def test_too_small_an_input_is_refused_with_what_to_do():
    tiny = PreprocessSpec(size=(8, 8), resize_to=8)
    with pytest.raises(BackboneError, match=r"cannot take pictures of 8 x 8 x 3: .*choose another --size"):
        feature_shape(feature_extractor(skeleton("alexnet")), tiny)


def test_preprocessing_comes_from_the_weights_own_metadata():
    v1 = default_preprocess("mobilenet_v2", "whatever.pth")
    assert (v1.size, v1.resize_to, v1.interpolation) == ((224, 224), 256, "bilinear")
    v2 = default_preprocess("mobilenet_v2", "mobilenet_v2-7ebf99e0.pth")  # torchvision's own name of its V2 file
    assert v2.resize_to == 232
    four = default_preprocess("timm/mobilenetv4_conv_small")
    assert (four.size, four.resize_to, four.interpolation) == ((224, 224), 256, "bicubic")
    inception = default_preprocess("inception_v3")
    assert inception.size == (299, 299)


def test_backbones_hard_to_quantize_are_named():
    assert unfriendly(skeleton("mobilenet_v2")) == []
    found = unfriendly(skeleton("mobilenet_v3_large"))
    assert [w.split(" ", 2)[1] for w in found] == ["squeeze-excite", "hard-swish,"]


@pytest.mark.parametrize(
    ("head", "parsed"), [("linear", ("linear", 0)), ("mlp:64", ("mlp", 64)), ("flatten-mlp:8", ("flatten-mlp", 8))]
)
def test_heads_are_parsed(head, parsed):
    assert check_head(head) == parsed


@pytest.mark.parametrize("head", ["", "mlp", "mlp:", "mlp:0", "mlp:-3", "linear:5", "flatten-mlp:x", "mlp:99999999"])
def test_other_heads_are_refused(head):
    with pytest.raises(InputError, match="it must be linear, mlp:W or flatten-mlp:W"):
        check_head(head)


def test_network_normalizes_as_the_spec_says():
    spec = PreprocessSpec(size=(4, 4), resize_to=4)
    network = Network(spec, nn.Identity(), Head("linear", (3, 4, 4), 2))
    pictures = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    expected = (pictures.permute(0, 3, 1, 2) / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(
        spec.std
    ).view(3, 1, 1)
    torch.testing.assert_close(network.features(pictures), expected, rtol=1e-5, atol=1e-5)
    logits, embedding = network(pictures)
    torch.testing.assert_close(embedding, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, network.head.classifier(embedding))


def test_original_network_answers_as_the_full_model():
    torch.manual_seed(0)
    full = full_model("resnet18", 7).eval()
    spec = PreprocessSpec(size=(64, 64), resize_to=64)
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        network = OriginalNetwork(spec, full_model("resnet18", 7)).eval()
        state = full.state_dict()
        network.load_state_dict(
            {("classifier." + n[3:] if n.startswith("fc.") else "body." + n): v for n, v in state.items()}
        )
        logits, embedding = network(pictures)
        torch.testing.assert_close(logits, full(network.normalize(pictures)))
    assert embedding.shape == (2, 512)
