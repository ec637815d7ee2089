"""What a comparison with random weights trains: the transfer's network and pictures, and weights as authors begin."""

import dataclasses

import numpy as np
import pytest
import torch
from fixtures_trained import Recorder
from torch import nn

from edgetl.backbones import load_pretrained, new_network, reset_weights, save_network
from edgetl.errors import InputError
from edgetl.finetune import FinetuneConfig
from edgetl.finetune.job import Job
from edgetl.finetune.stage import _against_scratch, _prepared


class Attending(nn.Module):
    """A user's network with an attention layer, and weights that it brings."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(7.0)

    def forward(self, x):
        maps = self.conv(x)
        rows = maps.flatten(2).transpose(1, 2)
        mixed = self.attention(rows, rows, rows, need_weights=False)[0].transpose(1, 2).reshape(maps.shape)
        return self.head(mixed.mean((2, 3)))


class WithToken(Attending):
    """The same, with a parameter that no layer owns."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.full((1, 8, 1, 1), 7.0))


def test_attention_begins_anew_and_what_no_layer_begins_is_named():
    torch.manual_seed(0)
    network = Attending()
    assert reset_weights(network) == []
    assert network.attention.in_proj_weight.std().item() == pytest.approx((2 / 32) ** 0.5, rel=0.2)  # Glorot's
    assert not network.attention.out_proj.bias.any()  # its own rule, not that of the linear layer in it
    assert not any((parameter == 7).any() for parameter in network.parameters())
    assert reset_weights(WithToken()) == ["token"]


@pytest.fixture
def own(monkeypatch, tmp_path):
    """Networks of this file, found as a user's are."""
    (tmp_path / "own_nets.py").write_text("from test_scratch import Attending, WithToken\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))


def compared(monkeypatch, dataset, **settings):
    """The transfer's job, and those that would be trained beside it: (transferred, from scratch)."""
    begun = []

    def run(job, *, resume):
        begun.append(job)
        raise InputError("seen enough")

    monkeypatch.setattr(Job, "run", run)
    config = FinetuneConfig(size=(32, 32), compare_scratch=True, **settings)
    job, _ = _prepared(dataset, config, None, Recorder())
    _against_scratch(job, dataset, np.ones(len(job.val), np.bool_))
    return job, [j for j in begun if j.config.strategy != "full"], [j for j in begun if j.config.strategy == "full"]


def test_a_networks_own_way_to_begin_is_left_alone(digits, monkeypatch):
    _, _, scratch = compared(monkeypatch, digits, backbone="resnet18", weights="none")
    weight = dict(scratch[0].network.backbone.named_parameters())["layer4.1.conv2.weight"]
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)  # He's, not a convolution's default


def test_what_a_users_function_brings_is_no_random_start(digits, own, monkeypatch):
    _, transferred, scratch = compared(monkeypatch, digits, backbone="own_nets:Attending", weights="none")
    for jobs, brought in ((transferred, True), (scratch, False)):
        assert jobs
        for job in jobs:
            assert all(bool((p == 7).all()) == brought for p in job.network.backbone.parameters())


def test_a_comparison_that_cannot_be_had_is_refused_at_once(digits, own):
    config = FinetuneConfig(backbone="own_nets:WithToken", weights="none", size=(32, 32), compare_scratch=True)
    with pytest.raises(InputError, match=r"--compare-scratch cannot be had of own_nets:WithToken.* body\.token begins"):
        _prepared(digits, config, None, Recorder())
    _prepared(digits, dataclasses.replace(config, compare_scratch=False), None, Recorder())


def test_random_weights_see_the_pictures_as_the_transfer_does(digits, monkeypatch, tmp_path):
    network, spec = new_network(load_pretrained("small_cnn", "none", size=(40, 40), mean=(0.1, 0.2, 0.3)), ("a", "b"))
    spec = dataclasses.replace(spec, preprocess=dataclasses.replace(spec.preprocess, mode="letterbox", resize_to=None))
    save_network(network, spec, tmp_path / "w.safetensors")
    job, transferred, scratch = compared(
        monkeypatch, digits, backbone="small_cnn", weights=str(tmp_path / "w.safetensors")
    )
    assert job.spec.preprocess.mode == "letterbox"
    assert {j.spec.preprocess for j in transferred + scratch} == {job.spec.preprocess}
    for other in scratch:
        assert torch.equal(other.network.normalize.mean, job.network.normalize.mean)
