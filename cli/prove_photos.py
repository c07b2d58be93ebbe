"""The photographs of `image-refinery prove`, and their damaged copies."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .._program import install
from ..files import open_image, with_8_bits
from .compare import opaque

_EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

MAX_SIDE_PX = 1024
DAMAGE = (
    "reduced to half the size and enlarged again (bicubic), noise of standard deviation 6 of 255, "
    "saved as JPEG at quality 40"
)
_NOISE = 6.0
_QUALITY = 40
_GRAY = ("1", "L", "LA")

PHOTOS = {
    "photo.jpg": "public domain, by way of scipy.datasets",
    "coffee.jpg": "CC0, by Rachel Michetti",
    "astronaut.png": "public domain, NASA",
    "chelsea.png": "CC0, by Stefan van der Walt",
    "rocket.jpg": "public domain, SpaceX",
    "hubble_deep_field.jpg": "public domain, NASA",
    "retina.jpg": "CC0, by Mikael H\u00e4ggstr\u00f6m",
    "camera.png": "CC0, by Lav Varshney",
    "grass.png": "CC0, by linolafett",
    "gravel.png": "CC0, by CC0Textures",
}
"""The default photographs and their licenses: two are in `examples`, the others come with the
package scikit-image, whose `skimage.data` names their sources."""


@dataclass(frozen=True)
class Photo:
    """A photograph; `license` is "" for one of the user's own."""

    path: Path
    license: str = ""

    def original(self) -> Image.Image:
        """Return it in mode L or RGB, opaque, with sides of at most `MAX_SIDE_PX`.

        Raises:
            UnreadableImage: the file cannot be read.
        """
        image = with_8_bits(open_image(self.path))
        plain = opaque(image).convert("L" if image.mode in _GRAY else "RGB")
        plain.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
        return plain


def default_photos() -> tuple[list[Photo], str]:
    """Return the default photographs that are here, and a sentence on those that are not."""
    folders = [_EXAMPLES]
    found = importlib.util.find_spec("skimage")  # not imported, as that takes seconds
    if found and found.origin:
        folders.append(Path(found.origin).parent / "data")
    photos = [
        Photo(folder / name, license)
        for name, license in PHOTOS.items()
        for folder in folders
        if (folder / name).is_file()
    ]
    if len(photos) >= len(PHOTOS):
        return photos, ""
    return photos, (
        f"{len(PHOTOS) - len(photos)} of the {len(PHOTOS)} photographs are not here: install the "
        f"package that has them ({install('scikit-image')}), or name photographs of your own."
    )


def damaged(image: Image.Image) -> Image.Image:
    """Return a copy that is damaged as `DAMAGE` says, the same each time."""
    half = (max(1, image.width // 2), max(1, image.height // 2))
    blurred = image.resize(half, Image.Resampling.BICUBIC)
    blurred = blurred.resize(image.size, Image.Resampling.BICUBIC)
    pixels = np.asarray(blurred, np.float32)
    noise = np.random.default_rng(0).standard_normal(pixels.shape, np.float32) * _NOISE
    noisy = Image.fromarray(np.clip(pixels + noise, 0, 255).round().astype(np.uint8))
    file = io.BytesIO()
    noisy.save(file, "JPEG", quality=_QUALITY)
    with Image.open(file) as saved:
        saved.load()
        return saved
