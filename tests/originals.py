"""Small files in the formats that CIFAR and MNIST are published in."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def blobs(count: int, classes: int, size: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, size, size, channels) whose class shows in place and shade of a bright square, and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pictures = rng.integers(0, 60, (count, size, size, channels), np.uint8)
    step = size // 4
    for picture, label in zip(pictures, labels, strict=True):
        row, column, shade = label % 4, label // 4 % 4, 120 + 130 * (label // 16 % 2)
        picture[row * step : (row + 1) * step, column * step : (column + 1) * step, label % channels] = shade
    return pictures, labels.astype(np.uint8)


def _planes(pictures: np.ndarray) -> np.ndarray:
    return pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1)


def write_cifar10(root: Path, each: int = 20, *, binary: bool = False, seed: int = 0) -> Path:
    """Five training files and one of tests with ``each`` pictures."""
    folder = root / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        pictures, labels = blobs(each, 10, 32, 3, seed + number)
        if binary:
            (folder / f"{name}.bin").write_bytes(np.hstack([labels[:, None], _planes(pictures)]).tobytes())
        else:
            record = {b"data": _planes(pictures), b"labels": labels.tolist(), b"batch_label": name.encode()}
            (folder / name).write_bytes(pickle.dumps(record, protocol=2))
    if binary:
        (folder / "batches.meta.txt").write_text("\n".join(CIFAR10) + "\n\n")
    else:
        (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [n.encode() for n in CIFAR10]}, protocol=2))
    return root


def write_cifar100(root: Path, train: int = 200, test: int = 100, *, binary: bool = False) -> Path:
    """Fine labels of 100 classes named class00 ...; the coarse label is a fifth of the fine one."""
    folder = root / ("cifar-100-binary" if binary else "cifar-100-python")
    folder.mkdir(parents=True)
    names = [f"class{i:02d}" for i in range(100)]
    for seed, (name, count) in enumerate((("train", train), ("test", test))):
        pictures, labels = blobs(count, 100, 32, 3, 50 + seed)
        if binary:
            rows = np.hstack([labels[:, None] // 5, labels[:, None], _planes(pictures)])
            (folder / f"{name}.bin").write_bytes(rows.astype(np.uint8).tobytes())
        else:
            record = {
                b"data": _planes(pictures),
                b"fine_labels": labels.tolist(),
                b"coarse_labels": (labels // 5).tolist(),
            }
            (folder / name).write_bytes(pickle.dumps(record, protocol=2))
    if binary:
        (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    else:
        (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [n.encode() for n in names]}, protocol=2))
    return root


def write_mnist(
    root: Path, train: int = 60, test: int = 20, *, folder: str = "MNIST/raw", zipped: bool = False, seed: int = 90
) -> Path:
    """The four idx files."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    for number, (prefix, count) in enumerate((("train", train), ("t10k", test))):
        pictures, labels = blobs(count, 10, 28, 1, seed + number)
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + pictures.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes(),
        }
        for name, data in files.items():
            if zipped:
                (place / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (place / name).write_bytes(data)
    return root
