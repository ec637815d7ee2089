"""Pictures as bad cameras and bad links make them, in five strengths: a test of how a classifier bears it.

After Hendrycks and Dietterich 2019 ("Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"):
their kinds as far as numpy and Pillow can make them, their strengths, on pictures at network size. They are no
replica: absolute figures are not to be compared with published ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from edgetl.errors import InputError

__all__ = ["CORRUPTIONS", "STRENGTHS", "corrupted"]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

STRENGTHS = (1, 2, 3, 4, 5)
_OF = 224  # the size that strengths in pixels were chosen for


def corrupted(pixels: Pixels, kind: str, strength: int, seed: int = 0) -> Pixels:
    """Returns a corrupted copy.

    Args:
        pixels: (H, W, 1 or 3) uint8.
        kind: One of `CORRUPTIONS`.
        strength: 1 to 5.
        seed: Of noise, angles and clouds, which are the same at every strength.

    Raises:
        InputError: There is no such kind or strength.
    """
    if kind not in CORRUPTIONS:
        raise InputError(f'corruption "{kind}" is unknown; there are {", ".join(CORRUPTIONS)}')
    if strength not in STRENGTHS:
        raise InputError(f"strength is {strength}: it must be 1 to 5")
    make, levels = CORRUPTIONS[kind]
    found = make(pixels, levels[strength - 1], np.random.default_rng(seed))
    return np.clip(np.rint(found), 0, 255).astype(np.uint8).reshape(pixels.shape)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _gaussian_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Floats:
    return pixels + rng.normal(0, sigma * 255, pixels.shape)


def _shot_noise(pixels: Pixels, photons: float, rng: np.random.Generator) -> Floats:
    return np.asarray(rng.poisson(pixels / 255 * photons) / photons * 255)


def _impulse_noise(pixels: Pixels, share: float, rng: np.random.Generator) -> Floats:
    draws = rng.random(pixels.shape)
    return np.where(draws < share / 2, 0.0, np.where(draws < share, 255.0, pixels))


def _defocus_blur(pixels: Pixels, radius: float, _: np.random.Generator) -> Floats:
    """Convolves with a disk, as an open aperture does."""
    radius = _in_pixels(radius, pixels, 0.6 + 0.12 * radius)
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return _convolved(pixels, np.clip(radius + 0.5 - np.hypot(x, y), 0, 1))


def _motion_blur(pixels: Pixels, length: float, rng: np.random.Generator) -> Floats:
    """Convolves with a line at a random angle, each of its points shared among the four pixels around it."""
    half = _in_pixels(length / 2, pixels, 0.5 + 0.05 * length)
    angle, reach = rng.uniform(-np.pi / 4, np.pi / 4), int(np.ceil(half)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for t in np.linspace(-half, half, 16 * reach + 1):
        y, x = reach + t * np.sin(angle), reach + t * np.cos(angle)
        row, column = int(y), int(x)
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            share = (1 - abs(y - row - down)) * (1 - abs(x - column - right))
            kernel[row + down, column + right] += share
    return _convolved(pixels, kernel)


def _in_pixels(length: float, pixels: Pixels, least: float) -> float:
    """Scales a length to the picture's size; on small pictures it would be less than a pixel, and nothing at all."""
    return float(max(least, length * max(pixels.shape[:2]) / _OF))


def _convolved(pixels: Pixels, kernel: Floats) -> Floats:
    """Convolves each channel by way of the spectrum, edges repeated."""
    reach = kernel.shape[0] // 2
    padded = np.pad(pixels.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    spectrum = np.fft.rfft2(kernel / kernel.sum(), padded.shape[:2])
    product = np.fft.rfft2(padded, axes=(0, 1)) * spectrum[:, :, None]
    found: Floats = np.fft.irfft2(product, padded.shape[:2], axes=(0, 1))
    return found[2 * reach :, 2 * reach :]


def _zoom_blur(pixels: Pixels, most: float, _: np.random.Generator) -> Floats:
    """Averages over zooms from 1 up."""
    image, (height, width) = _image(pixels), pixels.shape[:2]
    total = pixels.astype(np.float64)
    factors = np.arange(1.01, most, 0.02)
    for factor in factors:
        w, h = width / factor, height / factor
        box = ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
        zoomed = image.resize((width, height), Image.Resampling.BILINEAR, box)
        total += np.asarray(zoomed, np.float64).reshape(pixels.shape)
    return total / (len(factors) + 1)


def _fog(pixels: Pixels, thickness: float, rng: np.random.Generator) -> Floats:
    """Adds clouds: noise at ever finer scales, each half as strong."""
    height, width = pixels.shape[:2]
    cloud, weight, cells = np.zeros((height, width)), 1.0, 2
    while cells <= max(height, width):
        coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        cloud += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        weight, cells = weight / 2, cells * 2
    cloud = (cloud - cloud.min()) / max(float(np.ptp(cloud)), 1e-9)
    largest = float(pixels.max())
    return np.asarray((pixels + thickness * 255 * cloud[:, :, None]) * largest / (largest + thickness * 255))


def _brightness(pixels: Pixels, shift: float, _: np.random.Generator) -> Floats:
    return pixels + shift * 255.0


def _darkness(pixels: Pixels, factor: float, _: np.random.Generator) -> Floats:
    return pixels.astype(np.float64) * factor


def _contrast(pixels: Pixels, factor: float, _: np.random.Generator) -> Floats:
    mean: Floats = pixels.mean((0, 1), keepdims=True)
    return (pixels - mean) * factor + mean


def _saturation(pixels: Pixels, factor: float, _: np.random.Generator) -> Floats:
    return np.asarray(ImageEnhance.Color(_image(pixels)).enhance(factor), np.float64)


def _gaussian_blur(pixels: Pixels, sigma: float, _: np.random.Generator) -> Floats:
    radius = _in_pixels(sigma, pixels, 0.3 + 0.15 * sigma)
    return np.asarray(_image(pixels).filter(ImageFilter.GaussianBlur(radius)), np.float64)


def _pixelate(pixels: Pixels, factor: float, _: np.random.Generator) -> Floats:
    height, width = pixels.shape[:2]
    small = _image(pixels).resize((max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST), np.float64)


def _jpeg(pixels: Pixels, quality: float, _: np.random.Generator) -> Floats:
    file = io.BytesIO()
    _image(pixels).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file), np.float64)


_Maker = Callable[[Pixels, float, np.random.Generator], Floats]
CORRUPTIONS: dict[str, tuple[_Maker, tuple[float, float, float, float, float]]] = {
    "gaussian noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus blur": (_defocus_blur, (3, 4, 6, 8, 10)),
    "motion blur": (_motion_blur, (10, 15, 20, 25, 30)),
    "zoom blur": (_zoom_blur, (1.11, 1.16, 1.21, 1.26, 1.33)),
    "gaussian blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "fog": (_fog, (1.0, 1.5, 2.0, 2.5, 3.0)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "darkness": (_darkness, (0.7, 0.55, 0.4, 0.25, 0.15)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pale colours": (_saturation, (0.6, 0.45, 0.3, 0.15, 0.0)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}
