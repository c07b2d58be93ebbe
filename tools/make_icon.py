"""Draw docs/images/icon.png (400 x 400) and banner.png (21:9), for the Comfy registry.

    python tools/make_icon.py

The motif is a disc, coarse on the left and fine on the right, with lines of text beside it. Needs
numpy and Pillow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "images"
FINER = 4  # drawn larger and reduced, for smooth edges
NIGHT, DUSK = (22, 24, 38), (52, 40, 84)
SUN, GLOW = (255, 196, 92), (232, 92, 96)
INK = (236, 238, 248)
BLOCKS = 7

Color = tuple[int, int, int]


def gradient(size: tuple[int, int], first: Color, last: Color) -> Image.Image:
    """Return a gradient from the top left to the bottom right."""
    width, height = size
    share = np.add.outer(np.linspace(0, 0.5, height), np.linspace(0, 0.5, width))[..., None]
    pixels = np.array(first) * (1 - share) + np.array(last) * share
    return Image.fromarray(pixels.round().astype(np.uint8))


def disc(side: int) -> Image.Image:
    """Return the disc, RGBA: the left half in coarse blocks, the right half smooth."""
    smooth = gradient((side, side), SUN, GLOW).convert("RGBA")
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, side - 1, side - 1), fill=255)
    smooth.putalpha(mask)
    few = smooth.resize((BLOCKS, BLOCKS), Image.Resampling.BOX)
    sharp = few.getchannel("A").point(lambda alpha: 255 if alpha >= 110 else 0)
    few.putalpha(sharp)
    block = side // BLOCKS + 1
    coarse = few.resize((block * BLOCKS, block * BLOCKS), Image.Resampling.NEAREST)
    coarse = coarse.resize((side, side), Image.Resampling.NEAREST)
    whole = smooth.copy()
    half = (BLOCKS // 2) * side // BLOCKS
    whole.paste(coarse.crop((0, 0, half, side)), (0, 0))
    return whole


def mark(side: int) -> Image.Image:
    """Return the logo, RGBA and square: the disc, and three lines of text below it."""
    sign = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    across = round(side * 0.62)
    sign.alpha_composite(disc(across), ((side - across) // 2, round(side * 0.02)))
    draw = ImageDraw.Draw(sign)
    thick = round(side * 0.055)
    for line, length in enumerate((0.86, 0.86, 0.5)):
        top = round(side * (0.72 + 0.1 * line))
        left = round(side * 0.07)
        draw.rounded_rectangle(
            (left, top, left + round(side * length), top + thick), thick // 2, fill=INK
        )
    return sign


def icon(side: int = 400) -> Image.Image:
    """Return the icon: the logo on a rounded square."""
    large = side * FINER
    ground = gradient((large, large), NIGHT, DUSK).convert("RGBA")
    corners = Image.new("L", (large, large), 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, large - 1, large - 1), large // 6, fill=255)
    ground.putalpha(corners)
    inner = round(large * 0.72)
    ground.alpha_composite(mark(inner), ((large - inner) // 2, round(large * 0.15)))
    return ground.resize((side, side), Image.Resampling.LANCZOS)


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    """Return the banner: a coarse disc on the left, lines of text, a fine disc on the right."""
    wide, high = width * 2, height * 2
    ground = gradient((wide, high), NIGHT, DUSK).convert("RGBA")
    across = round(high * 0.62)
    top = (high - across) // 2
    few = gradient((across, across), SUN, GLOW).convert("RGBA")
    mask = Image.new("L", (across, across), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, across - 1, across - 1), fill=255)
    few.putalpha(mask)
    right = few.copy()
    few = few.resize((BLOCKS, BLOCKS), Image.Resampling.BOX)
    few.putalpha(few.getchannel("A").point(lambda alpha: 255 if alpha >= 110 else 0))
    step = across // BLOCKS
    left = few.resize((step * BLOCKS, step * BLOCKS), Image.Resampling.NEAREST)
    margin = round(wide * 0.07)
    ground.alpha_composite(left, (margin, top))
    ground.alpha_composite(right, (wide - margin - across, top))
    draw = ImageDraw.Draw(ground)
    begin, end = margin + across + margin // 2, wide - margin - across - margin // 2
    thick = round(high * 0.05)
    for line, share in enumerate((1.0, 0.82, 0.94, 0.55)):
        y = round(high * (0.31 + 0.115 * line))
        length = round((end - begin) * share)
        draw.rounded_rectangle((begin, y, begin + length, y + thick), thick // 2, fill=INK)
    return ground.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, image in (("icon", icon()), ("banner", banner())):
        path = FOLDER / f"{name}.png"
        image.save(path, optimize=True)
        print(path.relative_to(ROOT), image.size, path.stat().st_size)


if __name__ == "__main__":
    main()
