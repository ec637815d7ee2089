"""A loss that explodes ends the training with the last good weights."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from edgetl.errors import InputError
from edgetl.finetune.data import shuffled_loader
from edgetl.finetune.fit import Settings, fit
from edgetl.finetune.objective import Objective
from edgetl.finetune.optimizers import Descent

pytestmark = pytest.mark.slow

COUNT, WIDTH = 24, 5


class Rows(Dataset):
    """Features whose class is the sign of the first; from an epoch on they are what `bad` makes of them."""

    def __init__(self, bad_epoch=99, bad=math.nan):
        self.features = torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(0))
        self.bad_epoch = bad_epoch
        self.bad = bad

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row, label = self.features[index], (self.features[index, 0] > 0).long()
        return (row * self.bad, 1 - label) if epoch >= self.bad_epoch else (row, label)

    def __len__(self):
        return COUNT


def trained(tmp_path, rows, *, epochs=4, last=True, ema=0.0, hook=None, **settings):
    torch.manual_seed(0)
    network = nn.Linear(WIDTH, 2)
    if hook is not None:
        network.weight.register_hook(hook)
    groups = [{"params": list(network.parameters()), "lr": 0.5, "weight_decay": 0.0}]
    result = fit(
        network,
        groups,
        shuffled_loader(rows, COUNT, batch_size=8, seed=0),
        {"val": DataLoader(Rows(), batch_size=8)},
        Settings(
            "tune", epochs, Objective(), Descent(schedule="constant", warmup=0), ema,
            last=tmp_path / "last.ckpt" if last else None, **settings,
        ),
        on_row=lambda rows: None,
        on_progress=lambda *_: None,
    )  # fmt: skip
    return network, result


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("bad", "ema"), [(math.nan, 0.0), (math.nan, 0.5), (1e4, 0.0)])
def test_the_weights_of_the_last_good_epoch_come_back(bad, ema, last, tmp_path):
    network, result = trained(tmp_path, Rows(2, bad), last=last, ema=ema)
    good, reference = trained(tmp_path / "good", Rows(), epochs=2, last=False, ema=ema)
    assert (result.diverged, result.kept_epoch, len(result.rows)) == (3, 2, 2)
    assert reference.diverged == 0
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), good.parameters(), strict=True))


def spoiling(step):
    """Makes the gradient of one step, counted from 1, no number."""
    steps = itertools.count(1)
    return lambda gradient: gradient * math.nan if next(steps) == step else gradient


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_weights_that_an_epochs_last_step_spoils_are_not_the_last_good_ones(ema, tmp_path):
    """The loss of every step of that epoch is finite."""
    steps = COUNT // 8
    network, result = trained(tmp_path, Rows(), ema=ema, hook=spoiling(3 * steps))
    good, _ = trained(tmp_path / "good", Rows(), epochs=2, last=False, ema=ema)
    assert (result.diverged, result.kept_epoch, len(result.rows)) == (3, 2, 2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), good.parameters(), strict=True))
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_weights_that_the_very_last_step_spoils_are_not_the_result(tmp_path):
    network, result = trained(tmp_path, Rows(), epochs=2, last=False, hook=spoiling(2 * COUNT // 8))
    assert (result.diverged, result.kept_epoch) == (2, 1)
    assert network.weight.isfinite().all()


def test_what_was_good_to_begin_with_is_kept_where_no_epoch_is(tmp_path):
    torch.manual_seed(0)
    begun = nn.Linear(WIDTH, 2)
    network, result = trained(tmp_path, Rows(0), start_is_good=True)
    assert (result.diverged, result.kept_epoch, result.rows) == (1, 0, [])
    assert torch.equal(network.weight, begun.weight)


def test_where_nothing_is_good_it_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match="diverged in epoch 1 of tune: its loss is no longer finite; give a lower --lr"
    ):
        trained(tmp_path, Rows(0))
    assert not (tmp_path / "last.ckpt").exists()
