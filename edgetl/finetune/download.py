"""Getting CIFAR and MNIST from where they are published, by torchvision, which checks their digests."""

from __future__ import annotations

from pathlib import Path

from edgetl.dataset import original_of
from edgetl.errors import DatasetError, InputError

__all__ = ["fetch_original"]

_KINDS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


def fetch_original(source: str) -> Path:
    """Downloads what a source like ``cifar10:DIR`` names into DIR, unless it is there.

    Raises:
        InputError: The source names a folder or a table.
        DatasetError: It cannot be had.
    """
    from torchvision import datasets

    original = original_of(source)
    if original is None:
        raise InputError(f"--download: {source} is not published; it gets {', '.join(f'{k}:DIR' for k in _KINDS)}")
    kind, folder = original
    try:
        for train in (True, False):
            getattr(datasets, _KINDS[kind])(folder, train=train, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; torchvision raises RuntimeError on a bad digest
        raise DatasetError(
            f"{kind} cannot be downloaded to {folder} ({' '.join(str(error).split())[:120]}); get it another way"
        ) from None
    return folder
