"""Image files are opened upright, in a mode that can be used; a bad file is one sentence."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from image_refinery.files import UnreadableImage, open_image, with_8_bits
from PIL import Image, ImageCms


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (30, 40)


def test_a_photo_with_a_damaged_exif_block_opens(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0nonsense")
    assert open_image(tmp_path / "odd.jpg").size == (40, 30)


def profile(space: bytes) -> bytes:
    """The header of a color profile, as far as anybody reads it here."""
    return bytes(16) + space + bytes(108)


@pytest.mark.parametrize(
    ("mode", "file", "space", "opened", "keeps"),
    [
        ("CMYK", "a.jpg", b"CMYK", "RGB", False),
        ("CMYK", "a.tif", b"CMYK", "RGB", False),
        ("LAB", "a.tif", b"Lab ", "RGB", True),  # Pillow puts an sRGB profile in its place
        ("YCbCr", "a.tif", b"RGB ", "RGB", True),
        ("RGB", "a.jpg", b"RGB ", "RGB", True),
        ("RGB", "a.png", b"CMYK", "RGB", False),
        ("L", "a.jpg", b"GRAY", "L", True),
        ("L", "a.jpg", b"RGB ", "L", False),
    ],
)
def test_modes_become_those_that_png_knows_and_a_profile_must_fit(
    tmp_path: Path, mode: str, file: str, space: bytes, opened: str, keeps: bool
) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / file, icc_profile=profile(space))
    try:
        with Image.open(tmp_path / file) as written:
            written.load()
    except OSError as error:  # YCbCr in a .tif, with Pillow 12.3 on Python 3.10
        pytest.skip(f"Pillow cannot read what it wrote: {error}")
    image = open_image(tmp_path / file)
    assert image.mode == opened
    kept = image.info.get("icc_profile")
    assert (kept is not None) is keeps
    assert kept is None or kept[16:20] == (b"GRAY" if opened == "L" else b"RGB ")
    image.save(tmp_path / "again.png")


def test_a_cmyk_photo_keeps_its_colors(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (200, 40, 40)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    color = open_image(tmp_path / "a.jpg").getpixel((8, 8))
    assert isinstance(color, tuple) and len(color) == 3
    assert all(abs(got - was) < 5 for got, was in zip(color, (200, 40, 40), strict=True))


def ink_profile() -> bytes:
    """A color profile of a printer whose inks are duller than Pillow's formula assumes."""
    ramp = bytes(range(256))
    corners = bytearray()
    for corner in range(16):  # C, M, Y, K: the first changes slowest
        cyan, magenta, yellow, black = (
            corner >> 3 & 1,
            corner >> 2 & 1,
            corner >> 1 & 1,
            corner & 1,
        )
        light = 0 if black else 255 - 70 * cyan - 80 * magenta - 20 * yellow
        corners += bytes([light, 128 - 30 * cyan + 60 * magenta, 128 - 40 * cyan + 80 * yellow])
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    head = (
        struct.pack(">I4xI", 144 + len(table), 0x02400000) + b"prtrCMYKLab " + bytes(12) + b"acsp"
    )
    return head.ljust(68, b"\0") + d50 + bytes(48) + tags + table


@pytest.mark.parametrize("file", ["a.jpg", "a.tif"])
def test_cmyk_becomes_srgb_by_its_profile(tmp_path: Path, file: str) -> None:
    inks = ink_profile()
    printed = Image.new("CMYK", (16, 16), (200, 30, 60, 20))
    printed.save(tmp_path / file, icc_profile=inks, dpi=(300, 300))
    image = open_image(tmp_path / file)

    with Image.open(tmp_path / file) as stored:
        srgb = ImageCms.createProfile("sRGB")
        right = ImageCms.profileToProfile(stored, io.BytesIO(inks), srgb, outputMode="RGB")
        plain = np.asarray(stored.convert("RGB")).astype(int)
    assert right is not None
    assert image.mode == "RGB" and image.tobytes() == right.tobytes()
    assert np.abs(np.asarray(image) - plain).mean() > 20
    assert image.info["icc_profile"][16:20] == b"RGB "
    assert image.info["dpi"] == pytest.approx((300, 300)), "what else the file says is kept"


def test_a_profile_that_is_no_cmyk_profile_is_ignored(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    printed = Image.new("CMYK", (16, 16), (200, 30, 60, 20))
    for number, wrong in enumerate((srgb, ink_profile()[:300], b"nonsense")):
        printed.save(tmp_path / f"{number}.tif", icc_profile=wrong)
        image = open_image(tmp_path / f"{number}.tif")
        assert image.tobytes() == printed.convert("RGB").tobytes()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_gray_is_scaled_to_8(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    (image.convert("I") if name == "a.pgm" else image).save(tmp_path / name)
    opened = open_image(tmp_path / name)
    assert opened.mode == "I;16", "no bit is lost before somebody wants fewer"
    gray = with_8_bits(opened)
    assert gray.mode == "L"
    assert np.asarray(gray).tolist() == [[0, 1, 128, 255]]


@pytest.mark.parametrize(("mode", "kind"), [("F", "float"), ("I", "integer")])
def test_values_without_a_known_range_are_refused_in_words(
    tmp_path: Path, mode: str, kind: str
) -> None:
    Image.new(mode, (8, 8), 1).save(tmp_path / "deep.tif")
    with pytest.raises(UnreadableImage) as raised:
        open_image(tmp_path / "deep.tif")
    assert str(raised.value) == (
        f"{tmp_path / 'deep.tif'} holds 32-bit {kind} values, whose range is unknown. "
        "Save it as an 8-bit image."
    )


@pytest.mark.parametrize(
    ("name", "words"), [("cut.png", "damaged"), ("text.png", "not an image"), ("no.png", "exist")]
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UnreadableImage, match=words) as raised:
        open_image(tmp_path / name)
    assert name in str(raised.value)
