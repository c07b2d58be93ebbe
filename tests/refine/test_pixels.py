"""Pictures of three kinds: what comes apart must come together again, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch
from image_refinery.refine.errors import ImageError
from image_refinery.refine.pixels import (
    Planes,
    check_values,
    from_planes,
    read_image,
    read_mask,
    to_planes,
)
from PIL import Image

RNG = np.random.default_rng(1)


def there_and_back(image: Any) -> Any:
    """Take an image apart and put it together again."""
    pixels = read_image(image)
    return pixels.join([from_planes(to_planes(row), row, None) for row in pixels.rows])


def random_pil(mode: str) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    array = RNG.integers(0, 256, (7, 5, bands), np.uint8)
    return Image.fromarray(array[..., 0] if bands == 1 else array).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_a_pil_image_survives_unchanged(mode: str) -> None:
    image = random_pil(mode)
    back = there_and_back(image)
    assert back.mode == mode
    assert back.tobytes() == image.tobytes()
    planes = to_planes(read_image(image).rows[0])
    assert planes.rgb.dtype == torch.float32
    assert planes.rgb.shape == (1, 3, 7, 5)


def test_a_palette_image_with_a_transparent_colour_comes_back_as_rgba() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((1, 1), 1)
    image.info["transparency"] = 0
    back = there_and_back(image)
    assert back.mode == "RGBA"
    assert back.getpixel((0, 0))[3] == 0
    assert back.getpixel((1, 1)) == (200, 10, 10, 255)


@pytest.mark.parametrize(
    ("mode", "back"),
    [
        *(("1", "L"), ("I;16", "L"), ("I;16B", "L"), ("La", "LA"), ("PA", "RGBA")),
        *(("RGBa", "RGBA"), ("RGBX", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB")),
        *(("LAB", "RGB"), ("HSV", "RGB"), ("P", "RGB")),
    ],
)
def test_other_modes_come_back_as_the_nearest_that_every_format_can_hold(
    mode: str, back: str
) -> None:
    image = Image.new(mode, (6, 4))
    image.info["icc_profile"] = bytes(16) + b"Lab " + bytes(108)
    restored = there_and_back(image)
    assert (restored.mode, restored.size) == (back, (6, 4))
    kept = restored.info.get(
        "icc_profile", bytes(16) + b"RGB "
    )  # from LAB Pillow makes an sRGB one
    assert kept[16:20] == b"RGB ", "a profile for Lab does not fit the result"


def test_16_bit_gray_is_scaled() -> None:
    image = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert image.mode == "I;16"
    planes = to_planes(read_image(image).rows[0])
    assert torch.equal(planes.rgb[0, 0, 0], torch.tensor([0, 128, 255]) / 255)


def turned(image: Image.Image) -> Image.Image:
    """The image as a phone stores it: on its side, with the tag "rotate by 90 degrees to show"."""
    stored = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "A maker"
    stored.info["exif"] = exif.tobytes()
    return stored


def test_a_photo_comes_apart_upright_and_comes_back_without_the_tag() -> None:
    upright = random_pil("RGB")
    image = turned(upright)
    assert [row.shape for row in read_image(image).rows] == [(1, 7, 5, 3)]
    back = there_and_back(image)
    assert back.tobytes() == upright.tobytes()
    assert back.getexif().get(0x0112, 1) == 1
    assert back.getexif()[0x010F] == "A maker"
    assert image.size == (7, 5), "the input is never changed"
    assert image.getexif()[0x0112] == 6


def test_a_mask_with_an_orientation_is_upright_too() -> None:
    mask = Image.fromarray(np.eye(7, 5, dtype=np.uint8) * 255)
    assert torch.equal(read_mask(turned(mask), 1, 7, 5), read_mask(mask, 1, 7, 5))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8])
def test_a_tensor_survives_with_its_shape_and_dtype(
    channels: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    image = torch.rand(*shape, channels, generator=torch.Generator().manual_seed(1))
    image = (image * 255).to(dtype) if dtype == torch.uint8 else image.to(dtype)
    back = there_and_back(image)
    assert (back.shape, back.dtype) == (image.shape, image.dtype)
    assert torch.allclose(back.double(), image.double(), atol=1e-6)


def test_a_float_array_takes_no_detour_through_8_bits() -> None:
    image = RNG.random((6, 4, 3), np.float32)
    back = there_and_back(image)
    assert isinstance(back, np.ndarray)
    assert (back == image).all()


def test_arrays_read_backwards_are_taken() -> None:
    image = RNG.random((6, 4, 3), np.float32)[::-1, :, ::-1]
    assert (there_and_back(image) == image).all()


def test_kept_pixels_and_alpha_are_the_originals_bit_for_bit() -> None:
    image = torch.rand(1, 6, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    planes = to_planes(image)
    mask = torch.ones(1, 1, 6, 4)
    mask[..., :2] = 0
    assert planes.alpha is not None
    back = from_planes(Planes(torch.zeros_like(planes.rgb), planes.alpha * 0.5), image, mask)
    assert torch.equal(back[:, :, :2], image[:, :, :2])
    assert torch.equal(back[..., 3], image[..., 3])
    assert bool((back[:, :, 2:, :3] == 0).all())


def test_transparent_pixels_stand_on_grey() -> None:
    image = torch.tensor([1.0, 0.0, 0.0, 0.5]).expand(2, 2, 4)
    assert torch.allclose(
        to_planes(image[None]).composite[0, :, 0, 0], torch.tensor([0.75, 0.25, 0.25])
    )


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("cup.png", "not str"),
        (torch.zeros(3, 8, 8), "movedim(-3, -1)"),
        (torch.zeros(8, 8), "not (8, 8)"),
        (torch.zeros(0, 8, 3), "empty"),
        (torch.full((8, 8, 3), 200.0), "must be from 0 to 1, but this one is from 200 to 200"),
        (torch.full((8, 8, 3), float("nan")), "NaN"),
        (torch.zeros(8, 8, 3, dtype=torch.int64), "not int64"),
        (np.zeros((8, 8, 3), np.int32), "not int32"),
        (Image.new("F", (8, 8)), "mode F"),
        (Image.new("I", (8, 8)), "mode I"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(image: object, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        check_values(read_image(image).rows[0])
    assert words in str(caught.value)


def test_masks_of_every_kind() -> None:
    marked = np.zeros((6, 4), np.float32)
    marked[:3] = 1
    expected = torch.from_numpy(marked).expand(2, 1, 6, 4)
    picture = Image.fromarray((marked * 255).astype(np.uint8))
    for mask in (
        marked,
        marked.astype(bool),
        torch.from_numpy(marked)[None],
        marked[None, ..., None],
        picture,
    ):
        assert torch.equal(read_mask(mask, 2, 6, 4), expected)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.new("L", (3, 2)), "The mask is 3 x 2 px, but the image is 4 x 6 px: scale the mask"),
        (torch.zeros(5, 4), "The mask is 4 x 5 px, but the image is 4 x 6 px: scale the mask"),
        (torch.zeros(2, 0, 4), "The mask is 4 x 0 px, but"),
        (torch.zeros(3, 6, 4), "There are 3 masks for 2 images: pass one mask"),
        (torch.zeros(6), "shape (H, W), (B, H, W) or (B, H, W, 1), not (6,)"),
        (torch.full((6, 4), 2.0), "A mask must be from 0 (keep) to 1 (refine)"),
        ("m", "A mask must be an image, array or tensor, not str"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: object, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_mask(mask, 2, 6, 4)
    assert words in str(caught.value)
