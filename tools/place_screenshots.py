"""Reduce screenshots and copy them into the docs.

    SCREENSHOTS=FOLDER make test ARGS="-m browser"
    python tools/place_screenshots.py FOLDER

Three of fault-*.png go to docs/quality/images, help-*.png to web/docs/images, where the link
`images/NAME.png` of a help page works both in ComfyUI and on GitHub, and node-*.png and
template-*.png as WebP to docs/images/gallery, for docs/gallery.md. Needs Pillow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDEST_PX = 1600
GALLERY = ROOT / "docs" / "images" / "gallery"
GALLERY_WIDEST_PX = 1000
HELP_MOST_BYTES = 60_000
FAULTS_SHOWN = ("fault-refused.png", "fault-oom.png", "fault-busy-second-try.png")
"""The screenshots of faults that docs/quality/faults.md shows."""


def place(source: Path) -> Path | None:
    """Write a screenshot to its folder and return its path, None if no folder takes it."""
    if source.name in FAULTS_SHOWN:
        target = ROOT / "docs" / "quality" / "images" / source.name
    elif source.stem.startswith("help-"):
        target = ROOT / "web" / "docs" / "images" / f"{source.stem.removeprefix('help-')}.png"
    elif source.stem.startswith(("node-", "template-")):
        name = source.stem.removeprefix("node-").removeprefix("template-")
        target = GALLERY / f"{name.replace(' ', '-').replace(',', '')}.webp"
    else:
        return None
    widest_px = GALLERY_WIDEST_PX if target.parent == GALLERY else WIDEST_PX
    with Image.open(source) as file:
        image = file.convert("RGB")
    if image.width > widest_px:
        height = round(image.height * widest_px / image.width)
        image = image.resize((widest_px, height), Image.Resampling.LANCZOS)
    if target.parent == GALLERY:
        image.save(target, quality=80, method=6)
        return target
    image.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    if source.stem.startswith("help-") and target.stat().st_size >= HELP_MOST_BYTES:
        sys.exit(f"{target} has more than {HELP_MOST_BYTES} bytes")
    return target


def main() -> None:
    """Place every screenshot of a folder."""
    for source in sorted(Path(sys.argv[1]).glob("*.png")):
        if target := place(source):
            print(target.relative_to(ROOT), target.stat().st_size)


if __name__ == "__main__":
    main()
