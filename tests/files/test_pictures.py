"""Pictures are opened upright, and a bad file is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_refinery.files import UnreadablePicture, open_picture
from PIL import Image


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (30, 40)


@pytest.mark.parametrize(
    ("name", "words"), [("cut.png", "damaged"), ("text.png", "not an image"), ("no.png", "exist")]
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UnreadablePicture, match=words) as raised:
        open_picture(tmp_path / name)
    assert name in str(raised.value)
