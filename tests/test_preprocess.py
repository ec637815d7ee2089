"""edgetl.preprocess: every kind of picture gives the one right tensor, and everything else a PictureError."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import encoded, noise
from torchvision.transforms import InterpolationMode, v2

from edgetl.errors import PictureError
from edgetl.preprocess import FORMATS, MAX_PIXELS, decode, preprocess
from edgetl.spec import PreprocessSpec

SPEC = PreprocessSpec(size=(8, 8), resize_to=8)
GREY = PreprocessSpec(size=(8, 8), resize_to=8, color="L", mean=(0.5,), std=(0.5,))


def spec_of(height: int, width: int, **fields) -> PreprocessSpec:
    """No resize and no crop for a picture of that size."""
    return PreprocessSpec(size=(height, width), mode="squash", resize_to=None, crop="none", **fields)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# What a camera stores, so that the orientation of the same number turns it upright (EXIF 2.32, table 6).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_gives_the_upright_picture(orientation, kind):
    upright = noise(6, 9)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"lossless": True} if kind == "WEBP" else {}

    data = encoded(stored, kind, exif=exif(orientation), **options)

    np.testing.assert_array_equal(preprocess(data, spec_of(6, 9)), upright)
    np.testing.assert_array_equal(preprocess(Image.open(io.BytesIO(data)), spec_of(6, 9)), upright)


def test_exif_of_a_jpeg_and_its_switch():
    red_left = np.zeros((16, 32, 3), np.uint8)
    red_left[:, :16, 0] = 255
    data = encoded(Image.fromarray(red_left), "JPEG", quality=95, exif=exif(6))  # upright: red on top

    turned = preprocess(data, spec_of(32, 16))
    as_stored = preprocess(data, spec_of(16, 32, exif=False))

    assert turned[:14, :, 0].min() > 200 > 50 > turned[18:, :, 0].max()
    assert as_stored[:, :14, 0].min() > 200 > 50 > as_stored[:, 18:, 0].max()


def test_decoded_picture_is_not_turned_twice():
    data = encoded(Image.fromarray(noise(6, 9)), exif=exif(6))

    once = decode(data, SPEC)

    np.testing.assert_array_equal(np.asarray(decode(once, SPEC)), np.asarray(once))


def test_caller_keeps_the_picture_as_it_was():
    image = Image.open(io.BytesIO(encoded(Image.fromarray(noise(6, 9)), exif=exif(6))))

    preprocess(image, SPEC)

    assert image.size == (9, 6)
    assert image.getexif()[0x0112] == 6


def test_damaged_metadata_beside_sound_pixels_is_no_reason_to_refuse():
    # A tag of type SHORT becomes one of type ASCII: Pillow's exif_transpose fails when it writes the rest back.
    tags = exif(3)
    tags[0x0128] = 2
    data = encoded(Image.fromarray(noise(16, 16)), "JPEG", exif=tags)
    sound = preprocess(data, SPEC)
    at = data.index(b"\x28\x01\x03\x00") if b"\x28\x01\x03\x00" in data else data.index(b"\x01\x28\x00\x03")
    mended = bytearray(data)
    mended[at : at + 4] = b"\x28\x01\x02\x00" if data[at] == 0x28 else b"\x01\x28\x00\x02"

    np.testing.assert_array_equal(preprocess(bytes(mended), SPEC), sound)


def test_unreadable_exif_block_leaves_the_picture_as_stored():
    data = encoded(Image.fromarray(noise(8, 8)), "WEBP", lossless=True, exif=exif(3))
    at = data.index(b"EXIF") + 8
    broken = data[:at] + data[at:].replace(b"MM\x00*", b"MX\x00*").replace(b"II*\x00", b"IX*\x00")
    assert broken != data

    np.testing.assert_array_equal(preprocess(broken, SPEC), noise(8, 8))


def test_cmyk():
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:4, :, 0] = 255  # cyan above, white below
    for kind, tolerance in (("TIFF", 0), ("JPEG", 8)):
        data = encoded(Image.frombytes("CMYK", (8, 8), inks.tobytes()), kind)
        answer = preprocess(data, SPEC).astype(int)
        assert abs(answer[:3] - [0, 255, 255]).max() <= tolerance
        assert abs(answer[5:] - 255).max() <= tolerance


def test_palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (preprocess(encoded(image), SPEC) == [10, 20, 30]).all()


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["index", "alpha-table"])
def test_palette_with_transparency_lies_on_white(transparency):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 10, 20, 30])
    image.paste(1, (0, 4, 8, 8))
    data = encoded(image, transparency=transparency)

    answer = preprocess(data, SPEC)

    assert (answer[:4] == 255).all()
    assert (answer[4:] == [10, 20, 30]).all()


def test_half_transparent_red_lies_on_white():
    answer = preprocess(Image.new("RGBA", (8, 8), (255, 0, 0, 128)), SPEC)

    assert (answer[..., 0] == 255).all()
    assert set(np.unique(answer[..., 1:])) <= {126, 127, 128}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_every_mode_with_alpha_lies_on_white(mode):
    clear = Image.new("RGBA" if mode in ("RGBA", "RGBa") else "LA", (8, 8), 0).convert(mode)

    assert (preprocess(clear, SPEC) == 255).all()
    assert (preprocess(clear, GREY) == 255).all()


def test_transparent_colour_of_a_png_without_alpha_lies_on_white():
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    image.paste((9, 9, 9), (0, 0, 8, 4))
    data = encoded(image, transparency=(1, 2, 3))

    answer = preprocess(data, SPEC)

    assert (answer[:4] == 9).all()
    assert (answer[4:] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_eight_bits(kind):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    values[0, :4] = [0, 255, 256, 65535]

    answer = preprocess(encoded(Image.fromarray(values), kind), SPEC)

    np.testing.assert_array_equal(answer, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(preprocess(encoded(Image.fromarray(values), kind), GREY)[..., 0], values >> 8)


def test_other_deep_modes():
    thirty_two = Image.fromarray(np.full((8, 8), 0x1234, np.int32))
    unit = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    wide = Image.fromarray(np.array([[np.nan, -5.0, 100.0, 999.0]] * 4, np.float32))

    assert (preprocess(thirty_two, SPEC) == 0x12).all()
    assert (preprocess(unit, SPEC) == 127).all()
    assert preprocess(wide, spec_of(4, 4))[0, :, 0].tolist() == [0, 0, 100, 255]


def test_grey_and_bilevel():
    grey = Image.fromarray(noise(8, 8, channels=1))

    np.testing.assert_array_equal(preprocess(grey, GREY)[..., 0], noise(8, 8, channels=1))
    np.testing.assert_array_equal(preprocess(grey, SPEC), np.repeat(noise(8, 8, channels=1)[..., None], 3, axis=2))
    assert (preprocess(Image.new("1", (8, 8), 1), SPEC) == 255).all()
    # ITU-R 601: 0.299 x 255 = 76
    assert (preprocess(Image.new("RGB", (8, 8), (255, 0, 0)), GREY) == 76).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("exif", [True, False])
def test_animation_gives_its_first_frame(kind, exif):
    frames = [Image.new("RGB", (12, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3

    spec = PreprocessSpec(size=(8, 8), resize_to=8, exif=exif)
    assert (preprocess(data, spec) == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP", "PPM"])
@pytest.mark.parametrize("exif", [True, False])
def test_lossless_formats_give_the_same(kind, exif):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(noise(24, 16)), kind, **options)

    spec = PreprocessSpec(size=(8, 8), resize_to=8, exif=exif)
    np.testing.assert_array_equal(preprocess(data, spec), preprocess(noise(24, 16), spec))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 9
%%EndComments
(/tmp/written) (w) file closefile showpage
%%EOF
"""


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000"])
@pytest.mark.parametrize("ending", ["", ".jpg", ".png", ".eps"])
def test_other_formats_are_never_opened(tmp_path, monkeypatch, kind, ending):
    data = EPS if kind == "EPS" else encoded(Image.fromarray(noise(16, 16)), kind)
    opened = []
    Image.init()
    real, accept = Image.OPEN[kind]
    monkeypatch.setitem(Image.OPEN, kind, (lambda *args: opened.append(kind) or real(*args), accept))
    path = tmp_path / f"picture{ending}"
    path.write_bytes(data)
    for picture in (data, path, str(path)):
        with pytest.raises(PictureError, match="is not a picture that can be read"):
            preprocess(picture, SPEC)
    assert not opened
    with Image.open(path) as image:  # Pillow itself would
        assert image.format == kind
    assert opened


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"HEIF"}))
def test_whatever_its_name_a_picture_is_read(tmp_path, name):
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {name}")
    options = {"lossless": True} if name == "WEBP" else {}
    data = encoded(Image.new("RGB", (16, 16), (250, 0, 0)), name, **options)
    for ending in ("", ".tmp", *(ending for endings in FORMATS.values() for ending in endings), ".JPG"):
        path = tmp_path / f"picture{ending}"
        path.write_bytes(data)
        np.testing.assert_allclose(preprocess(path, SPEC)[0, 0], (250, 0, 0), atol=5)


def test_two_pictures_in_one_jpeg_give_the_first():
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (9, 9))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_allclose(preprocess(data, SPEC)[0, 0], (250, 0, 0), atol=5)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_a_file_that_is_what_it_says_imports_no_other_format(tmp_path, ending):
    """Each costs a cold start milliseconds."""
    Image.new("RGB", (9, 9)).save(tmp_path / f"a{ending}")
    code = (
        "import sys\nfrom edgetl.preprocess import preprocess\nfrom edgetl.spec import PreprocessSpec\n"
        f"preprocess({str(tmp_path / f'a{ending}')!r}, PreprocessSpec())\n"
        "print(len([m for m in sys.modules if m.startswith('PIL.') and m.endswith('ImagePlugin')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain = code.replace("from edgetl.preprocess import preprocess", "from PIL import Image").replace(
        "preprocess(", "Image.open(", 1
    )
    plain = plain.replace(", PreprocessSpec())", ").load()")
    alone = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= int(alone.stdout)


@pytest.mark.parametrize("mode", ["shortest", "squash", "letterbox"])
def test_one_pixel_fills_the_picture(mode):
    spec = SPEC if mode == "shortest" else PreprocessSpec(size=(8, 8), mode=mode, resize_to=None, crop="none")
    assert (preprocess(Image.new("RGB", (1, 1), (1, 2, 3)), spec) == [1, 2, 3]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_path_bytes_pillow_and_array_give_the_same(tmp_path: Path, kind):
    path = tmp_path / "picture"
    data = encoded(Image.fromarray(noise(21, 33)), kind)
    path.write_bytes(data)
    expected = preprocess(path, SPEC)

    assert (expected.shape, expected.dtype, expected.flags["C_CONTIGUOUS"]) == ((8, 8, 3), np.uint8, True)
    pixels = np.asarray(Image.open(path))
    for same in (str(path), data, Image.open(path), pixels, np.asfortranarray(pixels)):
        np.testing.assert_array_equal(preprocess(same, SPEC), expected)
    np.testing.assert_array_equal(preprocess(pixels[::-1, ::-1], SPEC), preprocess(pixels[::-1, ::-1].copy(), SPEC))


def test_arrays_of_every_allowed_shape():
    grey, alpha = noise(8, 8, channels=1), np.full((8, 8, 1), 255, np.uint8)

    np.testing.assert_array_equal(preprocess(grey, GREY)[..., 0], grey)
    np.testing.assert_array_equal(preprocess(grey[..., None], GREY)[..., 0], grey)
    np.testing.assert_array_equal(preprocess(noise(8, 8), SPEC), noise(8, 8))
    np.testing.assert_array_equal(preprocess(np.concatenate([noise(8, 8), alpha], axis=2), SPEC), noise(8, 8))
    assert (preprocess(np.zeros((8, 8, 4), np.uint8), SPEC) == 255).all()


@pytest.mark.parametrize(("height", "width"), [(37, 61), (61, 37), (8, 8), (9, 500), (40, 41), (12, 12)])
@pytest.mark.parametrize(("size", "resize_to"), [((8, 8), 12), ((24, 24), 24), ((7, 10), 11)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_shortest_agrees_bit_for_bit_with_torchvision(height, width, size, resize_to, interpolation):
    image = Image.fromarray(noise(height, width))
    reference = v2.Compose(
        [v2.Resize(resize_to, InterpolationMode(interpolation), antialias=True), v2.CenterCrop(list(size))]
    )
    spec = PreprocessSpec(size=size, resize_to=resize_to, interpolation=interpolation)

    np.testing.assert_array_equal(preprocess(image, spec), np.asarray(reference(image)))


def test_shortest_takes_the_middle():
    picture = np.zeros((4, 12, 3), np.uint8)
    picture[:, 4:8] = 200
    assert (preprocess(picture, PreprocessSpec(size=(4, 4), resize_to=4)) == 200).all()


def test_squash_uses_the_whole_picture():
    picture = noise(20, 50)
    expected = np.asarray(Image.fromarray(picture).resize((16, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(preprocess(picture, spec_of(8, 16)), expected)


@pytest.mark.parametrize(
    ("shape", "inside"),
    [((4, 8), np.s_[2:6, :]), ((8, 4), np.s_[:, 2:6]), ((8, 8), np.s_[:, :]), ((1, 400), np.s_[3:4, :])],
    ids=str,
)
def test_letterbox_keeps_the_ratio_on_grey(shape, inside):
    spec = PreprocessSpec(size=(8, 8), mode="letterbox", resize_to=None, crop="none")
    expected = np.full((8, 8, 3), 114, np.uint8)
    expected[inside] = 250

    np.testing.assert_array_equal(preprocess(np.full((*shape, 3), 250, np.uint8), spec), expected)


def test_letterbox_in_grey():
    spec = PreprocessSpec(
        size=(8, 8), mode="letterbox", resize_to=None, crop="none", color="L", mean=(0.5,), std=(0.5,)
    )
    answer = preprocess(np.full((4, 8), 250, np.uint8), spec)

    assert answer[:, 0, 0].tolist() == [114] * 2 + [250] * 4 + [114] * 2


def test_without_antialias_bilinear_samples_two_neighbours():
    picture = noise(32, 48)
    spec = spec_of(8, 16, antialias=False)

    rows, columns = (np.arange(8) + 0.5) * 4 - 0.5, (np.arange(16) + 0.5) * 3 - 0.5
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    p = picture.astype(float)
    upper = p[top][:, left] * (1 - right) + p[top][:, left + 1] * right
    lower = p[top + 1][:, left] * (1 - right) + p[top + 1][:, left + 1] * right
    expected = upper * (1 - down) + lower * down

    assert abs(preprocess(picture, spec) - expected).max() <= 1
    assert abs(preprocess(picture, spec_of(8, 16)) - expected).max() > 30


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_constant_pictures_stay_constant(interpolation, antialias):
    spec = spec_of(5, 7, interpolation=interpolation, antialias=antialias)
    for height, width in ((50, 71), (2, 3)):
        assert (preprocess(np.full((height, width, 3), 77, np.uint8), spec) == 77).all()


@pytest.mark.parametrize(
    ("height", "width", "decoded"),
    [
        (256, 256, (32, 32)),  # an eighth, the most that JPEG knows: still four times the size needed
        (64, 64, (16, 16)),  # twice the size needed is enough
        (63, 63, (32, 32)),  # a quarter would be less than twice
        (31, 31, (31, 31)),
        (64, 300, (75, 16)),  # the short side decides
    ],
)
def test_reduced_decoding_stays_at_least_twice_as_large(height, width, decoded):
    data = encoded(Image.fromarray(noise(height, width)), "JPEG")
    spec = PreprocessSpec(size=(8, 8), resize_to=8, decode="reduced")

    assert decode(data, spec).size == decoded
    assert decode(data, SPEC).size == (width, height)
    assert preprocess(data, spec).shape == (8, 8, 3)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40))
def test_reduced_decoding_never_goes_below_twice_the_need(height, width, need):
    spec = PreprocessSpec(size=(need, need), resize_to=need, decode="reduced")
    image = decode(encoded(Image.new("RGB", (width, height)), "JPEG"), spec)

    assert min(image.size) >= min(2 * need, height, width)


def test_reduced_decoding_leaves_enough_to_resize_before_a_small_crop():
    data = encoded(Image.new("RGB", (1280, 960)), "JPEG")

    assert decode(data, PreprocessSpec(size=(224, 224), resize_to=256, decode="reduced")).size == (640, 480)
    assert decode(data, PreprocessSpec(size=(224, 224), resize_to=448, decode="reduced")).size == (1280, 960)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF"])
def test_reduced_decoding_is_for_jpeg_alone(kind):
    data = encoded(Image.new("RGB", (256, 256)), kind)
    assert decode(data, PreprocessSpec(size=(8, 8), resize_to=8, decode="reduced")).size == (256, 256)


def test_reduced_decoding_hardly_changes_a_smooth_picture():
    ramp = np.repeat(np.linspace(0, 255, 256).astype(np.uint8)[:, None, None], 256, axis=1).repeat(3, axis=2)
    data = encoded(Image.fromarray(ramp), "JPEG", quality=95)
    reduced = preprocess(data, PreprocessSpec(size=(8, 8), resize_to=8, decode="reduced")).astype(int)

    assert abs(reduced - preprocess(data, SPEC)).max() <= 3


JPEG = encoded(Image.fromarray(noise(24, 32)), "JPEG", exif=exif(6))
PNG = encoded(Image.fromarray(noise(24, 32)), "PNG")


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "array has dtype float32: a picture is uint8 with values 0-255"),
        (np.zeros((8, 8, 3), np.int64), "array has dtype int64: a picture is uint8 with values 0-255"),
        (np.zeros(8, np.uint8), "array has shape (8,): a picture is (H, W), (H, W, 3) or (H, W, 4)"),
        (np.zeros((8, 8, 2), np.uint8), "array has shape (8, 8, 2): a picture is"),
        (np.zeros((3, 8, 8), np.uint8), "array has shape (3, 8, 8): a picture is"),
        (np.zeros((1, 8, 8, 3), np.uint8), "array has shape (1, 8, 8, 3): a picture is"),
        (np.zeros((0, 8, 3), np.uint8), "array has shape (0, 8, 3): a picture is"),
        (np.broadcast_to(np.uint8(0), (9460, 9460)), "array has shape (9460, 9460): more than 89 megapixels"),
        (b"", "picture bytes: empty"),
        (b"no picture at all", "picture bytes: is not a picture that can be read"),
        (JPEG[:-100], "picture bytes: cannot be decoded (image file is truncated"),
        (PNG[:-40], "picture bytes: cannot be decoded ("),
        ("/no/such/picture.jpg", "/no/such/picture.jpg: no such file"),
        ("with\0null.jpg", "with\0null.jpg: cannot be decoded (embedded null byte)"),
        (bytearray(PNG), "bytearray is not a picture: give a path, bytes, a Pillow image or a uint8 array"),
        (None, "NoneType is not a picture: give a path, bytes, a Pillow image or a uint8 array"),
        (Image.new("RGB", (8, 8 * 64 + 9)), "picture of 8 x 521 pixels: too narrow to be classified"),
        (Image.new("RGB", (10_000, 1)), "picture of 10000 x 1 pixels: too narrow to be classified"),
    ],
    ids=lambda v: v[:40].replace("\0", "0") if isinstance(v, str) else type(v).__name__,
)
def test_refusals(picture, message):
    with pytest.raises(PictureError) as caught:
        preprocess(picture, SPEC)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_ratio_of_64_is_still_taken():
    assert preprocess(Image.new("RGB", (8, 8 * 64)), SPEC).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a picture that can be read (or is empty)"),
        (b"text", "is not a picture"),
        (JPEG[:300], "cannot be"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_refused_files_are_named(tmp_path: Path, content, message):
    path = tmp_path / "bolt.jpg"
    path.write_bytes(content)
    with pytest.raises(PictureError) as caught:
        preprocess(path, SPEC)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_folder_is_refused(tmp_path: Path):
    with pytest.raises(PictureError) as caught:
        preprocess(tmp_path, SPEC)
    assert str(caught.value).startswith(f"{tmp_path}: cannot be decoded (")


def test_truncated_pillow_picture_is_refused():
    image = Image.open(io.BytesIO(JPEG[:-100]))
    with pytest.raises(PictureError, match=r"^Pillow image: cannot be decoded \(image file is truncated"):
        preprocess(image, SPEC)


@pytest.mark.parametrize("side", [9460, 14_000], ids=["above-the-limit", "above-twice-the-limit"])
def test_too_many_pixels_are_refused_before_decoding(side):
    assert side * side > MAX_PIXELS
    data = encoded(Image.new("1", (side, side)), compress_level=1)

    with pytest.raises(PictureError, match=r"megapixels.*; reduce it first$"):
        preprocess(data, SPEC)


def test_too_many_pixels_of_a_pillow_picture_are_refused():
    with pytest.raises(PictureError, match=r"^Pillow image: 89 megapixels, more than 89; reduce it first$"):
        preprocess(Image.new("1", (9460, 9460)), SPEC)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    with pytest.raises(PictureError):
        preprocess(data, SPEC)


@settings(max_examples=400)
@given(
    st.sampled_from([JPEG, PNG, encoded(Image.fromarray(noise(9, 9)), "GIF"), encoded(Image.new("L", (9, 9)), "BMP")]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
    st.sampled_from(["full", "reduced"]),
)
def test_corrupted_files_are_refused_or_give_the_right_shape(data, changes, kept, decoding):
    damaged = bytearray(data)
    for where, value in changes:
        # Half of the changes go to the first 64 bytes, where the structure is.
        damaged[int(where * 2 * 64) if where < 0.5 else int((where * 2 - 1) * len(damaged))] = value
    damaged = damaged[: len(damaged) if kept > 0.5 else int(kept * 2 * len(damaged))]
    try:
        answer = preprocess(bytes(damaged), PreprocessSpec(size=(8, 8), resize_to=8, decode=decoding))
    except PictureError:
        return
    assert (answer.shape, answer.dtype) == ((8, 8, 3), np.uint8)


def test_warnings_of_pillow_do_not_reach_the_user():
    image = Image.new("P", (8, 8))
    image.putpalette([9, 9, 9])
    data = encoded(image, transparency=b"\xff")  # Pillow would advise to convert it to RGBA
    assert (preprocess(data, SPEC) == 9).all()


def test_threads_leave_the_filters_of_warnings_alone():
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: preprocess(JPEG, SPEC), range(600)))
    finally:
        sys.setswitchinterval(interval)

    assert list(warnings.filters) == before
    assert all((answer == answers[0]).all() for answer in answers)
