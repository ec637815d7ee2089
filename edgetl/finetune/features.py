"""Features of a frozen backbone, computed once and kept on disk under a key of their content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgetl.artifacts import cache_folder, canonical_json, write_bytes
from edgetl.backbones import Network
from edgetl.dataset import Item
from edgetl.errors import InputError
from edgetl.finetune.data import evaluation_loader
from edgetl.spec import PreprocessSpec

__all__ = ["compute_features"]

_VERSION = 1
_KEPT = 64


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
    are the same to the bit, and the first batch, computed anew, proves that the code between them is too.
    """
    path = _cache() / f"{_key(network, items, spec)}.npy"
    cached = _read(path, len(items))
    network.eval().to(device)
    rows: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for pictures, _ in evaluation_loader(items, spec, batch_size=batch_size, workers=workers):
            pooled = network.head.pool(network.features(pictures.to(device)))
            rows.append(torch.flatten(pooled, 1).float().cpu().numpy())
            if len(rows) == 1 and cached is not None and _agree(cached[: len(rows[0])], rows[0]):
                on_progress(len(items), len(items))
                return cached
            on_progress(sum(map(len, rows)), len(items))
    features = np.concatenate(rows)
    _keep(path, features)
    return features


def _agree(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Tells whether features differ by no more than another device's or another batch size's rounding."""
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 1e-3 * max(float(np.abs(b).max()), 1e-6))


def _keep(path: Path, features: NDArray[np.float32]) -> None:
    """Writes the cache where that is possible, and forgets the oldest entries beyond the newest few."""
    buffer = io.BytesIO()
    np.save(buffer, features, allow_pickle=False)
    try:
        write_bytes(path, buffer.getvalue())
        for old in sorted(path.parent.glob("*.npy"), key=lambda p: -p.stat().st_mtime)[_KEPT:]:
            old.unlink(missing_ok=True)
    except (InputError, OSError):  # no home, no space: it is only a cache
        return


def _cache() -> Path:
    return cache_folder() / "features"


def _read(path: Path, rows: int) -> NDArray[np.float32] | None:
    try:
        features: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == rows else None


def _key(network: Network, items: Sequence[Item], spec: PreprocessSpec) -> str:
    digest = hashlib.sha256(canonical_json([_VERSION, torch.__version__, spec.to_dict()]))
    digest.update(type(network.head.pool).__name__.encode())
    for name, tensor in network.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for item in items:
        digest.update(item.sha256.encode())
    return digest.hexdigest()
