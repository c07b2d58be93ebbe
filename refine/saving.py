"""Write a refined image, with its settings in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .._version import __version__
from .settings import RefineSettings

METADATA_KEY = "image-refinery"
"""The PNG text chunk that holds the settings, as JSON. In JPEG and WebP, the EXIF tag
ImageDescription begins with it and a colon, as ComfyUI writes its own."""

FORMATS = ("png", "jpg", "webp")
_DESCRIPTION = 0x010E


def save_refined(
    image: Image.Image,
    file: Path | IO[bytes],
    settings: RefineSettings,
    model: str,
    *,
    format: str = "png",
    quality: int = 95,
) -> None:
    """Write an image with its settings and its color profile.

    Args:
        model: the checkpoint, as `ImageRefiner.model` names it.
        format: of `FORMATS`. JPEG has no transparency: what is transparent becomes white.
        quality: 1 to 100, of JPEG and WebP.

    Raises:
        OSError, ValueError: it cannot be written.
    """
    about = {"software": f"image-refinery {__version__}", "model": Path(model).name}
    if "/" in model and not Path(model).exists():
        about["model"] = model  # a Hugging Face id; of a path, which may be private, the name
    about |= settings.describe()
    profile = image.info.get("icc_profile")
    if format == "png":
        chunk = PngInfo()
        chunk.add_itxt(METADATA_KEY, json.dumps(about, ensure_ascii=False))
        image.save(file, "PNG", pnginfo=chunk, icc_profile=profile)
        return
    if format == "jpg" and image.has_transparency_data:
        alpha = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), alpha)
    if format == "jpg" and image.mode != "L":
        image = image.convert("RGB")
    exif = Image.Exif()
    exif[_DESCRIPTION] = f"{METADATA_KEY}:{json.dumps(about)}"  # EXIF texts are ASCII
    image.save(
        file,
        "JPEG" if format == "jpg" else "WEBP",
        exif=exif,
        icc_profile=profile,
        quality=quality,
        # JPEG's usual half resolution of colors would undo much of such a quality.
        **({"subsampling": 0} if format == "jpg" and quality >= 95 else {}),
    )
