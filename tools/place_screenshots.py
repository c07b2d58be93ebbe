"""Reduce screenshots and copy them into the docs.

    SCREENSHOTS=FOLDER make test ARGS="-m browser"
    python tools/place_screenshots.py FOLDER

Three of fault-*.png go to docs/quality/images, and help-*.png to web/docs/images, where the link
`images/NAME.png` of a help page works both in ComfyUI and on GitHub. Needs Pillow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDEST_PX = 1600
HELP_MOST_BYTES = 60_000
FAULTS_SHOWN = ("fault-refused.png", "fault-oom.png", "fault-busy-second-try.png")
"""The screenshots of faults that docs/quality/faults.md shows."""


def place(source: Path) -> Path | None:
    """Write a screenshot to its folder and return its path, None if no folder takes it."""
    if source.name in FAULTS_SHOWN:
        target = ROOT / "docs" / "quality" / "images" / source.name
    elif source.stem.startswith("help-"):
        target = ROOT / "web" / "docs" / "images" / f"{source.stem.removeprefix('help-')}.png"
    else:
        return None
    with Image.open(source) as file:
        image = file.convert("RGB")
    if image.width > WIDEST_PX:
        height = round(image.height * WIDEST_PX / image.width)
        image = image.resize((WIDEST_PX, height), Image.Resampling.LANCZOS)
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
