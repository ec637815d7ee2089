"""What a network is fed: pictures, the features of a frozen backbone, or what its frozen blocks give."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from edgetl.backbones import Network
from edgetl.dataset import Item, calibration_sample
from edgetl.errors import InputError
from edgetl.finetune.config import FinetuneConfig
from edgetl.finetune.data import FeatureRows, evaluation_loader, shuffled_loader, statistics_loader, training_loader
from edgetl.finetune.features import compute_features
from edgetl.finetune.prefix import MapRows, map_shape, maps_of
from edgetl.finetune.ranks import ALONE, Ranks
from edgetl.finetune.strategies import frozen_blocks
from edgetl.spec import PreprocessSpec

__all__ = ["Inputs", "Loaders"]

Items = tuple[Item, ...]

_MOST_WORKERS = 8
_STATISTICS_PICTURES = 2048
_ROWS = 1024  # of features at a time


@dataclass(frozen=True)
class Loaders:
    """Batches of one kind of input.

    Attributes:
        train: This process's part of them.
        rates: The same, whole and from the start, for a range test.
        evaluate: By name: ``val``, and ``select`` where epochs are to be chosen.
        shared: Whether each process's ``evaluate`` has a part of the pictures.
    """

    train: DataLoader[Any]
    rates: DataLoader[Any]
    evaluate: dict[str, DataLoader[Any]]
    shared: bool = False


@dataclass
class Inputs:
    """The pictures of a training, in every form that a strategy asks for.

    Attributes:
        network: On its device when features or maps are asked for.
        preprocess: What it expects.
        config: Settings.
        train: Pictures to learn from.
        select: Pictures on which the best epoch is chosen; may be none.
        val: Pictures on which it is reported.
        shares: How likely each of ``train`` is to be drawn, or None for each once.
        ranks: Processes that train together.
        on_progress: Called with (stage, done, total).
        on_note: Called with a line that the user should read.
    """

    network: Network
    preprocess: PreprocessSpec
    config: FinetuneConfig
    train: Items
    select: Items
    val: Items
    shares: NDArray[np.float64] | None
    ranks: Ranks
    on_progress: Callable[[str, int, int], None]
    on_note: Callable[[str], None]
    _features: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Items]:
        """The pictures by name, those parts left out that have none."""
        named = {"train": self.train, "val": self.val, "select": self.select}
        return {name: items for name, items in named.items() if items}

    @property
    def workers(self) -> int:
        """How many processes decode: on a CPU they would only take its time."""
        if self.config.workers is not None:
            return self.config.workers
        spare = ((os.cpu_count() or 2) - 1) // self.ranks.devices
        return min(_MOST_WORKERS, spare) if torch.cuda.is_available() else 0

    def labels(self, name: str) -> NDArray[np.int64]:
        """Returns the labels of a part."""
        return np.array([item.label for item in self.parts[name]], np.int64)

    def features(self, name: str) -> NDArray[np.float32]:
        """Returns what the head sees of a part, (N, D); every process computes its share of them."""
        if name not in self._features:
            items = self.parts[name]
            mine = compute_features(
                self.network,
                self.ranks.part(items),
                self.preprocess,
                batch_size=self.config.batch_size,
                workers=self.workers,
                device=self.ranks.device(),
                on_progress=lambda done, total: self.on_progress(f"features of {name}", done, total),
            )
            self._features[name] = self._together(mine, items)
        return self._features[name]

    def _together(self, mine: NDArray[np.float32], items: Items) -> NDArray[np.float32]:
        """Puts every process's part in its place."""
        if not self.ranks.shares(items):
            return mine
        found = np.empty((len(items), mine.shape[1]), np.float32)
        for rank, part in enumerate(self.ranks.gathered(mine)):
            found[rank :: self.ranks.count] = part
        return found

    def known_features(self, items: Items) -> NDArray[np.float32] | None:
        """Returns the features of some pictures, or None where they were not all asked for before."""
        rows = {
            id(i): row for name in self._features for i, row in zip(self.parts[name], self._features[name], strict=True)
        }
        return np.stack([rows[id(i)] for i in items]) if all(id(i) in rows for i in items) else None

    def of_features(self) -> Loaders:
        """Returns batches for the head alone, the same in every process."""
        rows = {
            name: FeatureRows(torch.from_numpy(self.features(name)), torch.from_numpy(self.labels(name)))
            for name in self.parts
        }
        evaluate = {name: _in_order(data, _ROWS) for name, data in rows.items() if name != "train"}
        return Loaders(self._shuffled(rows["train"]), self._shuffled(rows["train"]), evaluate)

    def of_pictures(self) -> Loaders:
        """Returns batches of pictures, newly augmented each epoch; each process gets its part."""
        shared = all(self.ranks.shares(items) for name, items in self.parts.items() if name != "train")
        evaluate = {
            name: self.as_on_a_device(tuple(self.ranks.part(items)) if shared else items)
            for name, items in self.parts.items()
            if name != "train"
        }
        return Loaders(self._augmented(self.workers, self.ranks), self._augmented(0, ALONE), evaluate, shared)

    def _augmented(self, workers: int, ranks: Ranks) -> DataLoader[Any]:
        return training_loader(
            self.train,
            self.preprocess,
            augment=self.config.augment,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            workers=workers,
            shares=self.shares,
            ranks=ranks,
        )

    def of_maps(self) -> Loaders | None:
        """Returns batches of what the frozen blocks give, where that saves work and can be had."""
        config = self.config
        frozen = frozen_blocks(self.network, config.strategy)
        if not frozen or not config.views or config.teacher or config.mix != "none" or self.ranks.count > 1:
            return None
        shape = map_shape(self.network, frozen, self.preprocess)
        if shape is None:
            return None
        views = min(config.views, config.epochs) if config.augment != "none" else 1
        try:
            rows = {name: self._maps(name, frozen, shape, views if name == "train" else 1) for name in self.parts}
        except InputError as error:
            self.on_note(f"frozen blocks run at every step: {error}")
            return None
        evaluate = {name: _in_order(data, config.batch_size) for name, data in rows.items() if name != "train"}
        return Loaders(self._shuffled(rows["train"]), self._shuffled(rows["train"]), evaluate)

    def _maps(self, name: str, frozen: int, shape: tuple[int, ...], views: int) -> MapRows:
        maps = maps_of(
            self.network,
            frozen,
            self.parts[name],
            self.preprocess,
            shape,
            views=views,
            augment=self.config.augment if name == "train" else "none",
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            workers=self.workers,
            on_progress=lambda done, total: self.on_progress(f"frozen blocks on {name}", done, total),
        )
        return MapRows(maps, torch.from_numpy(self.labels(name)), views)

    def _shuffled(self, rows: Any) -> DataLoader[Any]:
        config = self.config
        return shuffled_loader(rows, len(rows), batch_size=config.batch_size, seed=config.seed, shares=self.shares)

    def as_on_a_device(self, items: Items) -> DataLoader[Any]:
        """Returns pictures without augmentation, in their order."""
        return evaluation_loader(items, self.preprocess, batch_size=self.config.batch_size, workers=self.workers)

    def for_statistics(self) -> DataLoader[Any] | None:
        """Returns training pictures for the statistics of BatchNorm; one picture alone has no variance."""
        seen = calibration_sample(self.train, _STATISTICS_PICTURES)
        return statistics_loader(seen, self.preprocess, workers=self.workers) if len(seen) > 1 else None


def _in_order(data: Any, batch_size: int) -> DataLoader[Any]:
    return DataLoader(data, batch_size=batch_size, generator=torch.Generator().manual_seed(0))
