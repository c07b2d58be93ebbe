"""Make screenshots small and put them where they belong.

    SCREENSHOTS=FOLDER make test ARGS="-m browser"
    python tools/place_pictures.py FOLDER

A picture with the name of a workflow goes beside it (JPEG, the only kind that ComfyUI's template
browser shows); node-*.png go to docs/pictures, three of fault-*.png to docs/quality/images, and
help-*.png to web/docs/pictures: a help page finds `pictures/NAME.png` there in ComfyUI and on a
code host alike. Needs Pillow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDEST_PX = 1600
MOST_BYTES = 200_000
HELP_MOST_BYTES = 60_000
FAULTS_SHOWN = ("fault-refused.png", "fault-oom.png", "fault-busy-second-try.png")
"""The images of faults that docs/quality/faults.md shows."""


def place(source: Path) -> Path | None:
    """Write a picture to its place, or return None where it has none."""
    beside = ROOT / "example_workflows" / f"{source.stem}.json"
    if beside.is_file():
        target = beside.with_suffix(".jpg")
    elif source.name in FAULTS_SHOWN:
        target = ROOT / "docs" / "quality" / "images" / source.name
    elif source.stem.startswith("node-"):
        target = ROOT / "docs" / "pictures" / f"{source.stem}.png"
    elif source.stem.startswith("help-"):
        target = ROOT / "web" / "docs" / "pictures" / f"{source.stem.removeprefix('help-')}.png"
    else:
        return None
    with Image.open(source) as file:
        picture = file.convert("RGB")
    if picture.width > WIDEST_PX:
        height = round(picture.height * WIDEST_PX / picture.width)
        picture = picture.resize((WIDEST_PX, height), Image.Resampling.LANCZOS)
    if target.suffix == ".png":
        picture.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
        if source.stem.startswith("help-") and target.stat().st_size >= HELP_MOST_BYTES:
            sys.exit(f"{target} has more than {HELP_MOST_BYTES} bytes")
        return target
    for quality in (85, 80, 75, 70):
        picture.save(target, quality=quality, progressive=True, optimize=True)
        if target.stat().st_size < MOST_BYTES:
            return target
    sys.exit(f"{target} has more than {MOST_BYTES} bytes")


def main() -> None:
    for source in sorted(Path(sys.argv[1]).glob("*.png")):
        if target := place(source):
            print(target.relative_to(ROOT), target.stat().st_size)


if __name__ == "__main__":
    main()
