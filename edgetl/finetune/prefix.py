"""The frozen lower blocks of a backbone: run once for a few augmented views of each picture, kept on disk.

Which layer hands which tensor to the first trained block is the network's own affair; it is found by running it, and
only where running the upper part alone gives the same answers is the lower part left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgetl.artifacts import cache_folder
from edgetl.backbones import Network, blocks, units_below
from edgetl.canonical import canonical_json
from edgetl.dataset import Item
from edgetl.errors import InputError
from edgetl.finetune.data import Batch, view_loader
from edgetl.finetune.kept_arrays import check_room, forget_oldest, new_array, read_array
from edgetl.spec import PreprocessSpec

__all__ = ["MapRows", "UpperPart", "map_shape", "maps_of", "upper_part"]

_VERSION = 1
_LARGEST_BYTES = 8 << 30  # of one cache
_KEPT_BYTES = 16 << 30  # of all together
_WHAT = "what the frozen blocks give"


class UpperPart(nn.Module):
    """The trained blocks and the head of a network, fed with what the frozen blocks gave: (N, C, h, w)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (logits, embedding)."""
        maps = maps.float().contiguous(memory_format=torch.channels_last)
        logits, embedding = self.network.head(self.network.backbone(maps))
        return logits, embedding


class _Reached(Exception):  # noqa: N818
    """The first trained block was called; carries what with."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps


def _lower(network: Network, frozen: int, pictures: Tensor) -> Tensor | None:
    """Returns what the first trained block is called with, or None where that is not one map."""
    entry = blocks(network.backbone)[frozen].modules[0]

    def stop(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _Reached(inputs[0]) if len(inputs) == 1 else TypeError

    handle = entry.register_forward_pre_hook(stop)
    try:
        network.features(pictures)
    except _Reached as reached:
        maps = reached.maps
        return maps if isinstance(maps, Tensor) and maps.ndim == 4 else None
    except TypeError:
        return None
    finally:
        handle.remove()
    return None


@contextmanager
def upper_part(network: Network, frozen: int) -> Iterator[UpperPart]:
    """Takes the frozen blocks out of a network while the block lasts.

    Args:
        network: Changed in place, and put together again.
        frozen: How many blocks, from the input on.
    """
    taken = units_below(network.backbone, frozen)
    try:
        for path, _ in taken:
            _put(network.backbone, path, nn.Identity())
        yield UpperPart(network)
    finally:
        for path, module in taken:
            _put(network.backbone, path, module)


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def map_shape(network: Network, frozen: int, spec: PreprocessSpec) -> tuple[int, ...] | None:
    """Returns (C, h, w) of what the frozen blocks give, or None where the network cannot be cut there.

    It can be where the upper part, fed with what was caught on the way, answers as the whole network does.
    """
    device = next(network.parameters()).device
    pixels = np.random.default_rng(0).integers(0, 256, (2, *spec.input_shape), np.uint8)
    pictures = torch.from_numpy(pixels).to(device)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            whole = network(pictures)[1]  # a head may begin at zero, and its logits then agree whatever comes
            maps = _lower(network, frozen, pictures)
            if maps is None:
                return None
            with upper_part(network, frozen) as upper:
                parts = upper(maps)[1]
        return tuple(maps.shape[1:]) if torch.allclose(whole, parts, rtol=1e-3, atol=1e-4) else None
    except Exception:  # what is left of a stranger's network does not run by itself
        return None
    finally:
        network.train(training)


class MapRows(Dataset[Batch]):
    """Views of pictures as maps; an `EpochSampler`'s epoch chooses the view.

    Args:
        maps: (pictures x views, C, h, w) float16, the views of a picture side by side.
        labels: (pictures,).
        views: How many of each picture.
    """

    def __init__(self, maps: NDArray[np.float16], labels: Tensor, views: int) -> None:
        self._maps = maps
        self._labels = labels
        self._views = views

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = np.array(self._maps[index * self._views + epoch % self._views])
        return torch.from_numpy(row), self._labels[index]

    def __len__(self) -> int:
        return len(self._labels)


def maps_of(
    network: Network,
    frozen: int,
    items: Sequence[Item],
    spec: PreprocessSpec,
    shape: tuple[int, ...],
    *,
    views: int,
    augment: str,
    seed: int,
    batch_size: int,
    workers: int,
    on_progress: Callable[[int, int], None],
) -> NDArray[np.float16]:
    """Returns what the frozen blocks give of each picture's views, (pictures x views, *shape), from disk.

    A cache of the same weights, preprocessing, pictures and views is used where the first batch, computed anew,
    agrees with it.

    Raises:
        InputError: The disk has no room for it, or an answer does not fit into float16.
    """
    rows = len(items) * views
    folder = cache_folder() / "maps"
    path = folder / f"{_key(network, frozen, items, spec, views, augment, seed)}.npy"
    cached = read_array(path, (rows, *shape), np.float16)
    loader = view_loader(items, spec, views=views, augment=augment, seed=seed, batch_size=batch_size, workers=workers)
    if cached is None:
        _check_room(folder, rows * int(np.prod(shape)) * 2)
    elif _agree(network, frozen, loader, cached):
        on_progress(rows, rows)
        return cached
    return _compute(network, frozen, loader, path, (rows, *shape), on_progress)


def _agree(network: Network, frozen: int, loader: DataLoader[Any], cached: NDArray[np.float16]) -> bool:
    for pictures, _ in loader:
        first = _batch(network, frozen, pictures)
        return bool(np.abs(first - cached[: len(first)]).max() <= 1e-2 * max(float(np.abs(first).max()), 1e-6))
    return False


def _batch(network: Network, frozen: int, pictures: Tensor) -> NDArray[np.float32]:
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        maps = _lower(network, frozen, pictures.to(device))
    assert maps is not None  # map_shape() found one
    return maps.float().cpu().numpy()


def _compute(
    network: Network,
    frozen: int,
    loader: DataLoader[Any],
    path: Path,
    shape: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> NDArray[np.float16]:
    """Writes batch by batch, so that memory does not grow with the pictures."""
    with new_array(path, shape, np.float16) as maps:
        done = 0
        for pictures, _ in loader:
            batch = _batch(network, frozen, pictures)
            if float(np.abs(batch).max()) > float(np.finfo(np.float16).max):
                raise InputError("the frozen blocks give values beyond float16")
            maps[done : done + len(batch)] = batch
            done += len(batch)
            on_progress(done, shape[0])
    forget_oldest(path, _KEPT_BYTES)
    found = read_array(path, shape, np.float16)
    return maps if found is None else found


def _check_room(folder: Path, needed: int) -> None:
    if needed > _LARGEST_BYTES:
        raise InputError(f"{_WHAT} would take {needed / 2**30:.0f} GiB")
    check_room(folder, needed, _WHAT)


def _key(
    network: Network, frozen: int, items: Sequence[Item], spec: PreprocessSpec, views: int, augment: str, seed: int
) -> str:
    made = [_VERSION, torch.__version__, spec.to_dict(), frozen, views, augment, seed]
    digest = hashlib.sha256(canonical_json(made))
    for path, module in units_below(network.backbone, frozen):
        for name, tensor in module.state_dict().items():
            digest.update(f"{path}.{name}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for item in items:
        digest.update(item.sha256.encode())
    return digest.hexdigest()
