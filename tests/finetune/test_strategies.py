"""Which layers a strategy trains, on real architectures; and that frozen blocks can be run once."""

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.backbones import blocks, load_pretrained, new_network, units_below
from edgetl.dataset import Item
from edgetl.errors import InputError
from edgetl.finetune import FinetuneConfig
from edgetl.finetune.data import EpochSampler
from edgetl.finetune.prefix import MapRows, map_shape, maps_of, upper_part
from edgetl.finetune.strategies import Freezing, frozen_blocks, parameter_groups


def network_of(name="small_cnn", size=32, classes=4):
    torch.manual_seed(0)
    network, spec = new_network(load_pretrained(name, "none", size=(size, size)), tuple("abcdefgh"[:classes]))
    return network.eval(), spec


def test_vgg_has_the_five_blocks_of_its_paper():
    network, _ = network_of("vgg16", 32)
    found = [(b.name, sum(isinstance(m, nn.Conv2d) for m in b.modules)) for b in blocks(network.backbone)]
    assert found == [("0", 2), ("5", 2), ("10", 3), ("17", 3), ("24", 3)]


def test_strided_convolutions_in_a_row_are_blocks_of_their_own():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert [b.name for b in blocks(body)] == ["0", "2"]


def test_gradual_unfreezes_from_the_top_until_the_middle():
    network, _ = network_of()
    freezing = Freezing(network, FinetuneConfig(backbone="small_cnn", strategy="gradual", epochs=9))
    seen = []
    for epoch in range(9):
        freezing.begin_epoch(epoch)
        trained = [all(p.requires_grad for p in b.parameters()) for b in blocks(network.backbone)]
        assert trained == sorted(trained)  # once a block is trained, all above it are
        assert all(p.requires_grad for p in network.head.parameters())
        seen.append(sum(trained))
    assert seen == [0, 2, 3, 5, 6, 6, 6, 6, 6]


def test_gradual_freezes_what_belongs_to_no_block_until_all_are_trained():
    network, _ = network_of()
    network.backbone.register_parameter("position", nn.Parameter(torch.ones(3)))
    freezing = Freezing(network, FinetuneConfig(backbone="small_cnn", strategy="gradual", epochs=5))
    freezing.begin_epoch(1)
    assert not network.backbone.position.requires_grad
    freezing.begin_epoch(4)
    assert network.backbone.position.requires_grad


def test_normalizations_of_frozen_blocks_stay_in_eval_while_others_follow():
    network, _ = network_of()
    config = FinetuneConfig(backbone="small_cnn", strategy="gradual", epochs=5, batchnorm="train")
    freezing = Freezing(network, config)
    followed = []
    for epoch in (0, 1, 4):
        kept = freezing.begin_epoch(epoch)
        network.train()
        for module in kept:
            module.eval()
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert {n for n in norms if n.training} == set(freezing.following())
        followed.append(len(freezing.following()))
    assert followed == [0, 3, 6]


def test_dropout_within_frozen_blocks_is_off():
    network, _ = network_of("efficientnet_b0", 64)
    freezing = Freezing(network, FinetuneConfig(backbone="efficientnet_b0", strategy="last:2"))
    network.train()
    for module in freezing.begin_epoch(0):
        module.eval()
    depth = blocks(network.backbone)
    modes = [any(m.training for module in block.modules for m in module.modules()) for block in depth]
    assert modes == [False] * (len(depth) - 2) + [True] * 2


def test_pulling_to_pretrained_weights_leaves_no_pull_to_zero_on_the_backbone():
    network, _ = network_of()
    config = FinetuneConfig(backbone="small_cnn", strategy="full", l2_sp=0.1, weight_decay=0.3)
    Freezing(network, config)
    decays = {
        name: group["weight_decay"]
        for group in parameter_groups(network, config)
        for name, p in network.named_parameters()
        if any(p is member for member in group["params"])
    }
    assert decays["head.classifier.weight"] == 0.3
    assert {decay for name, decay in decays.items() if name.startswith("backbone")} == {0.0}


def test_more_blocks_than_there_are_is_an_error():
    network, _ = network_of()
    with pytest.raises(InputError, match="this backbone has 6 blocks; give last:6 or full"):
        Freezing(network, FinetuneConfig(backbone="small_cnn", strategy="last:7"))


@pytest.mark.parametrize(
    ("name", "size", "trained"),
    [
        ("small_cnn", 32, 2),
        ("vgg16", 32, 1),
        ("resnet18", 64, 1),
        ("mobilenet_v2", 64, 3),
        ("timm/mobilenetv4_conv_small", 64, 4),
        ("densenet121", 64, 1),
        ("shufflenet_v2_x0_5", 64, 2),
    ],
)
def test_the_upper_part_answers_as_the_whole_network(name, size, trained):
    network, spec = network_of(name, size)
    frozen = frozen_blocks(network, f"last:{trained}")
    assert frozen == len(blocks(network.backbone)) - trained
    shape = map_shape(network, frozen, spec.preprocess)
    assert shape is not None
    names = [n for n, _ in network.named_modules()]
    with upper_part(network, frozen) as upper:
        left = sum(p.numel() for p in upper.network.backbone.parameters())
    assert left == sum(p.numel() for b in blocks(network.backbone)[frozen:] for p in b.parameters())
    assert [n for n, _ in network.named_modules()] == names  # put together again


class Skipping(nn.Module):
    """Its second layer gets two inputs, so nothing can be cut there."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2)
        self.second = nn.Conv2d(4, 4, 3, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.first(x)
        z = self.second(y + 0.1 * x.mean())
        return self.head((z * y.mean()).mean((2, 3)))


def test_what_cannot_be_cut_is_not_cut(monkeypatch, tmp_path):
    (tmp_path / "skipping_net.py").write_text("from test_strategies import Skipping\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    network, spec = new_network(load_pretrained("skipping_net:Skipping", "none", size=(32, 32)), ("a", "b"))
    assert map_shape(network.eval(), 1, spec.preprocess) is None


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    items = []
    for i in range(6):
        rng = np.random.default_rng(i)
        path = root / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
        items.append(Item(path, i % 2, "train", f"{i:064d}"))
    return items


def cached(network, spec, pictures, **changes):
    steps = []
    options = {"views": 3, "augment": "light", "seed": 0, "batch_size": 4, "workers": 0} | changes
    frozen = 4
    shape = map_shape(network, frozen, spec.preprocess)
    maps = maps_of(
        network, frozen, pictures, spec.preprocess, shape,
        on_progress=lambda done, total: steps.append(done), **options,
    )  # fmt: skip
    return maps, steps


def test_views_are_computed_once_and_differ(pictures):
    network, spec = network_of()
    maps, steps = cached(network, spec, pictures)
    assert maps.shape == (18, 64, 8, 8)
    assert steps == [4, 8, 12, 16, 18]
    views = maps.reshape(6, 3, -1)
    assert not np.array_equal(views[0, 0], views[0, 1])
    again, steps = cached(network, spec, pictures)
    assert steps == [18]  # from the cache
    assert np.array_equal(again, maps)
    other, steps = cached(network, spec, pictures, seed=1)
    assert len(steps) == 5
    assert not np.array_equal(other, maps)


def test_a_change_of_a_frozen_weight_is_a_new_cache_and_one_above_is_not(pictures):
    network, spec = network_of()
    maps, _ = cached(network, spec, pictures, seed=3)
    with torch.no_grad():
        next(blocks(network.backbone)[5].modules[0].parameters()).add_(1)
    assert cached(network, spec, pictures, seed=3)[1] == [18]
    with torch.no_grad():
        next(units_below(network.backbone, 4)[0][1].parameters()).mul_(1.5)
    other, steps = cached(network, spec, pictures, seed=3)
    assert len(steps) == 5
    assert not np.allclose(other, maps)


def test_epochs_take_the_views_in_turn():
    maps = np.arange(6, dtype=np.float16).reshape(6, 1, 1, 1)
    rows = MapRows(maps, torch.tensor([0, 1]), views=3)
    assert [float(rows[(epoch, 1)][0]) for epoch in range(4)] == [3, 4, 5, 3]
    assert float(rows[1][0]) == 3
    assert len(rows) == 2


def test_small_classes_are_drawn_as_often_as_asked():
    shares = np.array([0.25, 0.25, 0.5])
    sampler = EpochSampler(3, 0, shares)
    drawn = [index for _ in range(2000) for _, index in sampler]
    assert np.bincount(drawn) / len(drawn) == pytest.approx(shares, abs=0.02)
