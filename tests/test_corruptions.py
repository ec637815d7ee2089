"""Corruptions grow with their strength, are the same for the same seed, and are what they are called."""

import numpy as np
import pytest
from PIL import Image
from tiny import noise

from edgetl.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from edgetl.errors import InputError


def scene(channels=3, height=96, width=128):
    """Something with detail at every scale, as pictures have: each channel noise, the finer the weaker."""
    planes = []
    for seed in range(channels):
        rng, plane, weight = np.random.default_rng(seed), np.zeros((height, width)), 1.0
        for cells in (2, 4, 8, 16, 32, 64, 128):
            coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
            plane += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
            weight *= 0.7
        planes.append((plane - plane.min()) / np.ptp(plane) * 255)
    return np.stack(planes, 2).astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "size"), [(3, (96, 128)), (1, (96, 128)), (3, (32, 32)), (1, (28, 28))])
def test_each_strength_is_further_from_the_picture(kind, channels, size):
    if kind == "pale colours" and channels == 1:
        pytest.skip("grey has no colours to lose")
    picture = scene(channels, *size)
    found = [corrupted(picture, kind, strength) for strength in STRENGTHS]
    assert all(f.shape == picture.shape and f.dtype == np.uint8 for f in found)
    far = [float(np.abs(f.astype(int) - picture.astype(int)).mean()) for f in found]
    assert far[0] > 0.5
    assert far == sorted(far)
    assert far[-1] > 1.3 * far[0]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_same_seed_gives_the_same_picture_whatever_its_shape(kind):
    for shape in ((17, 31), (64, 64)):
        picture = noise(*shape)
        assert np.array_equal(corrupted(picture, kind, 3, 7), corrupted(picture, kind, 3, 7))
        assert corrupted(picture, kind, 5).shape == picture.shape


def test_blurs_keep_what_is_flat_and_the_mean():
    flat = np.full((40, 50, 3), 100, np.uint8)
    for kind in ("defocus blur", "motion blur", "zoom blur", "gaussian blur", "pixelate"):
        assert np.abs(corrupted(flat, kind, 5).astype(int) - 100).max() <= 1, kind
    dot = np.zeros((41, 41, 1), np.uint8)
    dot[20, 20] = 255
    blurred = corrupted(dot, "defocus blur", 5).astype(float)
    rows, columns = np.nonzero(blurred[:, :, 0] > 1)
    assert (rows.mean(), columns.mean()) == (20, 20)  # no shift


def test_noise_has_the_strength_that_is_written():
    grey = np.full((200, 200, 1), 128, np.uint8)
    found = corrupted(grey, "gaussian noise", 1).astype(float)
    assert found.std() == pytest.approx(0.08 * 255, rel=0.02)
    salt = corrupted(grey, "impulse noise", 5)
    assert ((salt == 0) | (salt == 255)).mean() == pytest.approx(0.27, abs=0.01)


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match='corruption "rain" is unknown; there are gaussian noise, '):
        corrupted(scene(), "rain", 1)
    with pytest.raises(InputError, match="strength is 6: it must be 1 to 5"):
        corrupted(scene(), "fog", 6)
