"""Two images side by side, and below them the place that changed most, magnified."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PANEL_PX = 640
_MARGIN_PX = 16
_HEADING_PX = 34
_CROP_SHARE = 5
"""The crop's side is the image's shorter side divided by this."""


def comparison(
    before: Image.Image, after: Image.Image, names: tuple[str, str] = ("before", "after")
) -> Image.Image:
    """Return a sheet with both images and a magnified crop of each.

    Args:
        before: Any size and mode.
        after: The same image; another size is resized to that of `before`.
        names: The headings.
    """
    left = opaque(before)
    right = opaque(after).resize(left.size, Image.Resampling.LANCZOS)
    box = busiest_box(left, right)
    panels = [_fit(image, Image.Resampling.LANCZOS) for image in (left, right)]
    crops = [_fit(image.crop(box), Image.Resampling.NEAREST) for image in (left, right)]
    rows = [_HEADING_PX, _HEADING_PX + panels[0].height + _MARGIN_PX]
    size = (2 * _PANEL_PX + 3 * _MARGIN_PX, rows[1] + crops[0].height + _MARGIN_PX)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        x = _MARGIN_PX + column * (_PANEL_PX + _MARGIN_PX)
        draw.text((x, 6), name, fill="#222222", font=ImageFont.load_default(18))
        sheet.paste(panels[column], (x, rows[0]))
        sheet.paste(crops[column], (x, rows[1]))
        scale = panels[column].width / left.width
        frame = [x + box[0] * scale, rows[0] + box[1] * scale]
        frame += [x + box[2] * scale - 1, rows[0] + box[3] * scale - 1]
        draw.rectangle(frame, outline="#e4572e", width=2)
    return sheet


def busiest_box(left: Image.Image, right: Image.Image) -> tuple[int, int, int, int]:
    """Return the square (left, top, right, bottom) in which two images differ most."""
    width, height = left.size
    side = max(1, min(width, height) // _CROP_SHARE)
    change = np.abs(np.asarray(left, np.float32) - np.asarray(right, np.float32)).sum(axis=2)
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = change.cumsum(axis=0).cumsum(axis=1)
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, start = np.unravel_index(windows.argmax(), windows.shape)
    return int(start), int(top), int(start) + side, int(top) + side


def opaque(image: Image.Image) -> Image.Image:
    """Return an image without transparency: over white, as most viewers show it."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def _fit(image: Image.Image, how: Image.Resampling) -> Image.Image:
    """An image at the width of a panel, and no higher than twice that."""
    scale = min(_PANEL_PX / image.width, 2 * _PANEL_PX / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, how)
