"""What is sent is the picture that came in: size, colours, orientation, transparency."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from image_refinery.captioning.images import EncodedImage, encode_image
from PIL import Image


def decoded(encoded: EncodedImage) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(encoded.base64)))
    assert image.format == encoded.format
    assert image.size == encoded.size
    return image


def quarters(width: int = 640, height: int = 480) -> np.ndarray:
    """Red, green over blue, yellow: swapped channels and flipped axes show."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2] = (255, 0, 0)
    array[: height // 2, width // 2 :] = (0, 255, 0)
    array[height // 2 :, : width // 2] = (0, 0, 255)
    array[height // 2 :, width // 2 :] = (255, 255, 0)
    return array


@pytest.mark.parametrize("lossless", [False, True])
def test_colours_and_places_survive(lossless: bool) -> None:
    image = decoded(encode_image(quarters(), lossless=lossless))
    assert image.format == ("PNG" if lossless else "JPEG")
    sent = np.asarray(image.convert("RGB")).astype(int)
    error = np.abs(sent - quarters())
    assert error.mean() < (1e-9 if lossless else 3.0)


@pytest.mark.parametrize(
    ("size", "sent"),
    [
        ((1344, 900), (1344, 900)),
        ((4000, 2000), (1344, 672)),
        ((33, 5000), (32, 1344)),
        ((100, 60), (100, 60)),
        ((1, 1), (32, 32)),
        ((3000, 5), (1344, 32)),
    ],
)
def test_the_longest_side_is_limited_and_tiny_sides_padded(
    size: tuple[int, int], sent: tuple[int, int]
) -> None:
    array = np.full((size[1], size[0], 3), 90, np.uint8)
    assert decoded(encode_image(array)).size == sent


def test_small_images_are_lossless() -> None:
    assert encode_image(quarters(256, 200)).format == "PNG"
    assert encode_image(quarters(257, 200)).format == "JPEG"


def test_transparent_parts_become_white() -> None:
    array = np.zeros((300, 300, 4), np.uint8)
    array[:150, :, 0], array[:150, :, 3] = 255, 255
    sent = np.asarray(decoded(encode_image(array, lossless=True)).convert("RGB"))
    assert tuple(sent[10, 10]) == (255, 0, 0)
    assert tuple(sent[290, 10]) == (255, 255, 255)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "I;16", "HSV", "LAB", "YCbCr"],
)
def test_every_mode_of_pillow_can_be_sent(mode: str) -> None:
    image = Image.new(mode, (400, 300))
    assert decoded(encode_image(image)).size == (400, 300)


def test_a_phone_photo_is_sent_upright() -> None:
    upright = Image.fromarray(quarters())
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=95, exif=exif)
    sent = decoded(encode_image(Image.open(file)))
    assert sent.size == upright.size
    assert np.abs(np.asarray(sent).astype(int) - quarters()).mean() < 3.0
    assert sent.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_known_range_are_refused_not_sent_as_black(mode: str) -> None:
    with pytest.raises(ValueError, match="range is unknown"):
        encode_image(Image.new(mode, (300, 300), 1))


def test_sixteen_bits_are_scaled_not_cut() -> None:
    image = Image.fromarray(np.full((300, 300), 32768, np.uint16))
    sent = np.asarray(decoded(encode_image(image, lossless=True)).convert("L"))
    assert abs(int(sent[0, 0]) - 127) <= 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((10, 10, 3), np.float32),
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 2), np.uint8),
        np.zeros((0, 10, 3), np.uint8),
    ],
)
def test_anything_else_is_refused_with_a_sentence(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image"):
        encode_image(array)


def test_max_side_is_checked() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        encode_image(quarters(), max_side=16)
