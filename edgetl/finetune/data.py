"""Pictures for training: decoded by `edgetl.preprocess`, augmented, in an order that can be resumed.

What is random depends on seed, epoch and picture alone, never on how many numbers were drawn before, so
an interrupted training repeats itself bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode, v2

from edgetl.dataset import Item
from edgetl.errors import PictureError
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.seeding import seed_step
from edgetl.preprocess import decode, preprocess
from edgetl.spec import PreprocessSpec

__all__ = [
    "Batch",
    "EpochSampler",
    "FeatureRows",
    "evaluation_loader",
    "in_one_line",
    "shuffled_loader",
    "statistics_loader",
    "training_loader",
    "view_loader",
]

Batch = tuple[Tensor, Tensor]

# A batch of n pictures knows (n - 1) / n of the variance between pictures.
_STATISTICS_BATCH = 64


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order drawn from (seed, epoch).

    Attributes:
        epoch: The epoch that the next iteration delivers; it counts up by itself.
        start: How many entries of that epoch to leave out (after resuming), of all processes together.

    Args:
        count: Of pictures.
        seed: See above.
        shares: (count,), how likely each is to be drawn, with replacement; None takes each once.
        ranks: Of several processes, each takes its part of every batch, so that together they see the batches of one.
    """

    def __init__(self, count: int, seed: int, shares: NDArray[np.float64] | None = None, ranks: Ranks = ALONE) -> None:
        self.count = count
        self.ranks = ranks
        self.seed = seed
        self.shares = shares
        self.epoch = 0
        self.start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        rng = np.random.default_rng((self.seed, epoch))
        if self.shares is None:
            order = rng.permutation(self.count)
        else:
            order = rng.choice(self.count, self.count, p=self.shares)
        mine = order[: len(self) * self.ranks.count][start + self.ranks.rank :: self.ranks.count]
        yield from ((epoch, int(i)) for i in mine)

    def __len__(self) -> int:
        """Of a whole epoch: Lightning asks once, and would shorten every epoch after a resumed one."""
        return self.count // self.ranks.count


class _TrainingPictures(Dataset[Batch]):
    def __init__(self, items: Sequence[Item], spec: PreprocessSpec, augment: str, seed: int) -> None:
        self.items = items
        self.spec = spec
        self.seed = seed
        self.augment = _augmentation(augment, spec)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        item = self.items[index]
        if self.augment is None:
            pixels = preprocess(item.path, self.spec)
        else:
            with torch.random.fork_rng(devices=[]):
                seed_step(_seed_of(self.seed, epoch, index))
                image: Image.Image = self.augment(decode(item.path, self.spec))
            pixels = np.asarray(image, dtype=np.uint8).reshape(self.spec.input_shape)
        return torch.from_numpy(np.array(pixels)), torch.tensor(item.label)

    def __len__(self) -> int:
        return len(self.items)


class _EvaluationPictures(Dataset[Batch]):
    """Exactly what a device feeds the network."""

    def __init__(self, items: Sequence[Item], spec: PreprocessSpec) -> None:
        self.items = items
        self.spec = spec

    def __getitem__(self, index: int) -> Batch:
        item = self.items[index]
        return torch.from_numpy(preprocess(item.path, self.spec).copy()), torch.tensor(item.label)

    def __len__(self) -> int:
        return len(self.items)


class FeatureRows(Dataset[Batch]):
    """Precomputed features (N, D) and labels (N,); taken by index, or by an `EpochSampler`'s key."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        index = key[1] if isinstance(key, tuple) else key
        return self.features[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


def training_loader(
    items: Sequence[Item],
    spec: PreprocessSpec,
    *,
    augment: str,
    batch_size: int,
    seed: int,
    workers: int,
    shares: NDArray[np.float64] | None = None,
    ranks: Ranks = ALONE,
) -> DataLoader[Batch]:
    """Returns batches of (uint8 (N, H, W, C), int64 (N,)), newly ordered and augmented each epoch."""
    pictures: Dataset[Batch] = _TrainingPictures(items, spec, augment, seed)
    return shuffled_loader(
        pictures, len(items), batch_size=batch_size, seed=seed, workers=workers, shares=shares, ranks=ranks
    )


def view_loader(
    items: Sequence[Item],
    spec: PreprocessSpec,
    *,
    views: int,
    augment: str,
    seed: int,
    batch_size: int,
    workers: int,
) -> DataLoader[Batch]:
    """Returns the first views of each picture, side by side: view v is what `training_loader` gives in epoch v."""
    keys = [(view, index) for index in range(len(items)) for view in range(views)]
    return DataLoader(
        _TrainingPictures(items, spec, augment, seed),
        batch_size=batch_size,
        sampler=keys,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )


def shuffled_loader(
    data: Dataset[Any],
    count: int,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    shares: NDArray[np.float64] | None = None,
    ranks: Ranks = ALONE,
) -> DataLoader[Any]:
    """Returns batches in the order of an `EpochSampler`; a last batch of one is left out (BatchNorm).

    ``batch_size`` is that of all processes together.
    """
    sampler, size = EpochSampler(count, seed, shares, ranks), batch_size // ranks.count
    return DataLoader(
        data,
        batch_size=size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=len(sampler) > size and len(sampler) % size == 1,
        generator=torch.Generator().manual_seed(seed),
    )


def evaluation_loader(
    items: Sequence[Item], spec: PreprocessSpec, *, batch_size: int, workers: int
) -> DataLoader[Batch]:
    """Returns batches of (uint8 (N, H, W, C), int64 (N,)) in the items' order."""
    return DataLoader(
        _EvaluationPictures(items, spec),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )


def statistics_loader(items: Sequence[Item], spec: PreprocessSpec, *, workers: int) -> DataLoader[Batch]:
    """Returns the items as a device sees them, in batches of one size (but for one picture), at most 64."""
    batches = np.array_split(np.arange(len(items)), math.ceil(len(items) / _STATISTICS_BATCH))
    return DataLoader(
        _EvaluationPictures(items, spec),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )


@contextmanager
def in_one_line() -> Iterator[None]:
    """Takes torch's traceback off what a worker process said of a picture; the last line is the error's own.

    Raises:
        PictureError: In one line.
    """
    try:
        yield
    except PictureError as error:
        own = str(error).strip().splitlines()[-1]
        raise PictureError(own.removeprefix(f"{PictureError.__module__}.{PictureError.__name__}: ")) from None


def _seed_of(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _augmentation(name: str, spec: PreprocessSpec) -> Any:
    """Returns Pillow -> Pillow at network size, or None."""
    if name == "none":
        return None
    strong = name == "standard"
    jitter = 0.25 if strong else 0.15
    steps: list[Any] = [
        v2.RandomResizedCrop(
            list(spec.size),
            scale=(0.35, 1.0) if strong else (0.7, 1.0),
            ratio=(3 / 4, 4 / 3) if strong else (0.9, 1.1),
            interpolation=InterpolationMode(spec.interpolation),
        )
    ]
    if strong:
        steps.append(v2.RandomHorizontalFlip())
    steps.append(v2.ColorJitter(jitter, jitter, jitter if spec.color == "RGB" else 0.0))
    return v2.Compose(steps)
