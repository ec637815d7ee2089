"""Randomness of training pictures depends on seed, epoch and picture alone."""

import numpy as np
import torch

from edgetl.finetune.data import EpochSampler, evaluation_loader, training_loader
from edgetl.preprocess import preprocess
from edgetl.spec import PreprocessSpec

SPEC = PreprocessSpec(size=(32, 32), resize_to=36)


def test_sampler_orders_by_seed_and_epoch_and_can_start_anywhere():
    sampler = EpochSampler(10, seed=3)
    first, second = list(sampler), list(sampler)
    assert [e for e, _ in first] == [0] * 10
    assert [e for e, _ in second] == [1] * 10
    assert sorted(i for _, i in first) == list(range(10))
    assert first != [(0, i) for _, i in second]
    resumed = EpochSampler(10, seed=3)
    resumed.epoch, resumed.start = 1, 4
    assert len(resumed) == 10  # of a whole epoch, always
    assert list(resumed) == second[4:]
    assert list(EpochSampler(10, seed=4)) != first


def loader(digits, seed=0, workers=0):
    return training_loader(
        digits.split("train")[:12], SPEC, augment="standard", batch_size=4, seed=seed, workers=workers
    )


def test_augmented_pictures_repeat_for_the_same_seed_and_differ_between_epochs(digits):
    a, b = loader(digits), loader(digits)
    first, again = [p for p, _ in a], [p for p, _ in b]
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    torch.manual_seed(99)  # numbers drawn elsewhere change nothing
    torch.rand(7)
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(a, b, strict=True))
    ordered = np.concatenate([p.numpy() for p in first])
    assert ordered.shape == (12, 32, 32, 3)
    assert ordered.dtype == np.uint8


def test_worker_processes_change_nothing(digits):
    alone, helped = loader(digits), loader(digits, workers=2)
    for _ in range(2):
        assert all(torch.equal(x, y) and torch.equal(a, b) for (x, a), (y, b) in zip(alone, helped, strict=True))


def test_augmentation_leaves_the_global_random_state_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(iter(loader(digits)))
    assert torch.equal(torch.rand(3), expected)


def test_validation_feeds_what_the_runtime_makes(digits):
    items = digits.split("val")[:6]
    fed = torch.cat([p for p, _ in evaluation_loader(items, SPEC, batch_size=4, workers=0)]).numpy()
    assert all(np.array_equal(a, preprocess(i.path, SPEC)) for a, i in zip(fed, items, strict=True))


def test_a_last_batch_of_one_is_left_out(digits):
    items = digits.split("train")[:9]
    batches = [len(y) for _, y in training_loader(items, SPEC, augment="none", batch_size=4, seed=0, workers=0)]
    assert batches == [4, 4]
