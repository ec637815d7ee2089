"""Features of a frozen backbone, computed once and kept on disk under a key of their content."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from edgetl.artifacts import cache_folder
from edgetl.backbones import Network
from edgetl.canonical import canonical_json
from edgetl.dataset import Item
from edgetl.errors import InputError
from edgetl.finetune.data import evaluation_loader
from edgetl.finetune.kept_arrays import check_room, forget_oldest, new_array, read_array
from edgetl.spec import PreprocessSpec

__all__ = ["compute_features"]

_VERSION = 1
_KEPT_BYTES = 8 << 30  # of all together


def compute_features(
    network: Network,
    items: Sequence[Item],
    spec: PreprocessSpec,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> NDArray[np.float32]:
    """Returns what the head's first layer sees of each picture, (N, D) float32, without augmentation.

    The result is taken from ``$XDG_CACHE_HOME/edgetl/features`` where weights, preprocessing and pictures
    are the same to the bit, and the first batch, computed anew, proves that the code between them is too. It lies on
    disk, mapped; in memory only where the disk has no room for it.
    """
    path = cache_folder() / "features" / f"{_key(network, items, spec)}.npy"
    loader = evaluation_loader(items, spec, batch_size=batch_size, workers=workers)
    rows = _rows(network.eval().to(device), loader, device)
    first = next(rows)
    shape = (len(items), first.shape[1])
    cached = read_array(path, shape, np.float32)
    if cached is not None and _agree(cached[: len(first)], first):
        on_progress(len(items), len(items))
        return cached
    with _room_for(path, shape) as features:
        done = 0
        for batch in itertools.chain([first], rows):
            features[done : done + len(batch)] = batch
            done += len(batch)
            on_progress(done, len(items))
    forget_oldest(path, _KEPT_BYTES)
    found = read_array(path, shape, np.float32)
    return features if found is None else found


def _rows(network: Network, loader: DataLoader[Any], device: torch.device) -> Iterator[NDArray[np.float32]]:
    for pictures, _ in loader:
        with torch.inference_mode():
            pooled = network.head.pool(network.features(pictures.to(device)))
            rows = torch.flatten(pooled, 1).float().cpu().numpy()
        yield rows


@contextmanager
def _room_for(path: Path, shape: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """Gives an array on disk, or in memory where that cannot be: it is only a cache."""
    with ExitStack() as stack:
        array: NDArray[np.float32]
        try:
            check_room(path.parent, 4 * shape[0] * shape[1], "features")
            array = stack.enter_context(new_array(path, shape, np.float32))
        except InputError:
            array = np.empty(shape, np.float32)
        yield array


def _agree(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Tells whether features differ by no more than another device's or another batch size's rounding."""
    return bool(np.abs(a - b).max() <= 1e-3 * max(float(np.abs(b).max()), 1e-6))


def _key(network: Network, items: Sequence[Item], spec: PreprocessSpec) -> str:
    digest = hashlib.sha256(canonical_json([_VERSION, torch.__version__, spec.to_dict()]))
    digest.update(type(network.head.pool).__name__.encode())
    for name, tensor in network.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for item in items:
        digest.update(item.sha256.encode())
    return digest.hexdigest()
