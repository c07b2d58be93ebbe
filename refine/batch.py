"""Split a caller's list of images into single images with prompt, mask and seed, and join them.

This is the only module that splits and joins batches. The rest of the package works on single
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import blend
from .errors import ImageError, RefineError, SettingsError
from .geometry import Size, scaled_size
from .pixels import (
    Pixels,
    Planes,
    check_values,
    count_images,
    from_planes,
    read_image,
    read_mask,
    to_planes,
)
from .plan import Region, TilePrompts, joined, plan_regions
from .prompts import weights_advice
from .settings import SEEDS, RefineSettings
from .work import Upscaler

ImageErrorCallback = Callable[[int, RefineError], None]
"""Called with the number (from 0) of an image that could not be refined, and the error."""


class Item(NamedTuple):
    """One image to refine.

    Attributes:
        number: Which image of the whole batch, counted from 0.
        pixels: (1, H, W, C), as the caller passed them; checked.
        mask: (1, 1, h, w) of the size after `scale`, 0 to 1, or None: refine everything.
        seed: The seed of this image.
        size: Its size after `scale`.
        regions: What to refine, in reading order; nothing with strength 0, or if the mask marks
            nothing.
        prompts: One for each tile, by region.
    """

    number: int
    pixels: Tensor
    mask: Tensor | None
    seed: int
    size: Size
    regions: list[Region]
    prompts: list[list[str]]

    @property
    def tiles(self) -> int:
        """The number of tiles of all regions."""
        return sum(len(region.tiles) for region in self.regions)


class _Entry(NamedTuple):
    """An entry of the caller's list: the object, its images, their numbers.

    Attributes:
        image: The object that the caller passed.
        pixels: Its pixels; None if they could not be read or need not be.
        numbers: The numbers of its images.
    """

    image: Any
    pixels: Pixels | None
    numbers: range


class Batch:
    """Images, paired with prompts, masks and seeds, and checked. Each is read once, here.

    Args:
        images: As `ImageRefiner.refine_batch` takes them.
        settings: How to refine them. With strength 0 and scale 1 nothing is read, and `items` is
            empty.
        prompts: One per entry of `images`, or None: the prompt of the settings. An entry of several
            images may have a list of as many prompts.
        masks: One (or None) per entry, or None.
        tile_prompts: One (or None) per entry, or None. An entry of several images may have a list.
            Each text joins the prompt of its image: in place of {tile}, else after it.
        upscaler: Enlarges an image for `scale`, (1, H, W, 3), 0 to 1: to any size, as it is scaled
            to the right one. None: Lanczos.
        on_image_error: Called for each image that cannot be refined; the image is then returned
            unchanged. None: raise.

    Attributes:
        settings: As passed.
        items: The images that can be refined.
        count: The number of images, refinable or not.
        upscaler: As passed.
        on_image_error: As passed.

    Raises:
        SettingsError: prompts, masks or tile prompts cannot be paired with the images.
        ImageError: an image or mask cannot be refined.
    """

    def __init__(
        self,
        images: Sequence[Any],
        settings: RefineSettings,
        *,
        prompts: Sequence[str | Sequence[str]] | None = None,
        masks: Sequence[Any] | None = None,
        tile_prompts: Sequence[TilePrompts | Sequence[TilePrompts] | None] | None = None,
        upscaler: Upscaler | None = None,
        on_image_error: ImageErrorCallback | None = None,
    ) -> None:
        paired = {"prompts": prompts, "masks": masks, "tile prompts": tile_prompts}
        for name, others in paired.items():
            if others is not None and len(others) != len(images):
                raise SettingsError(
                    f"There are {len(images)} images, but {len(others)} {name}: pass one for each."
                )
        self.settings = settings
        self.items: list[Item] = []
        self.count = 0
        self.upscaler = upscaler
        self.on_image_error = on_image_error
        reads = settings.strength > 0 or settings.scale > 1
        self._entries: list[_Entry] = []
        for index, image in enumerate(images):
            numbers = range(self.count, self.count + count_images(image))
            texts = _texts(settings.prompt if prompts is None else prompts[index], len(numbers))
            tiles = _tile_prompts(tile_prompts[index] if tile_prompts else None, len(numbers))
            mask = None if masks is None else masks[index]
            pixels = self._read(image, mask, texts, tiles, numbers) if reads else None
            self._entries.append(_Entry(image, pixels, numbers))
            self.count = numbers.stop

    @property
    def needs_model(self) -> bool:
        """Whether any image has something to refine; else it is only enlarged, if at all."""
        return any(item.regions for item in self.items)

    @property
    def advice(self) -> str:
        """One sentence about the prompts for their author, or ""."""
        if self.settings.prompt_syntax != "plain text":
            return ""
        return weights_advice(
            [
                *(text for item in self.items for texts in item.prompts for text in texts),
                self.settings.negative_prompt,
            ]
        )

    def join(self, refined: dict[int, Tensor]) -> list[Any]:
        """Return one object per entry, of the entry's type.

        Args:
            refined: The images (1, h, w, C) that were refined, by their numbers. The others stay
                unchanged; if no image of an entry was refined, the same object is returned.
        """
        results: list[Any] = []
        for entry in self._entries:
            done = [refined[number] for number in entry.numbers if number in refined]
            if entry.pixels is None or not done:
                results.append(entry.image)
                continue
            rows = zip(entry.numbers, entry.pixels.rows, strict=True)
            size = Size(*done[0].shape[1:3])
            joined = [refined[n] if n in refined else _resized(row, size) for n, row in rows]
            results.append(entry.pixels.join(joined))
        return results

    def _read(
        self,
        image: Any,
        mask: Any,
        prompts: list[str],
        tile_prompts: list[TilePrompts | None],
        numbers: range,
    ) -> Pixels | None:
        """Read one entry, and add its images to the items."""
        if not numbers:
            return None
        try:
            pixels = read_image(image)
            height, width = pixels.rows[0].shape[1:3]
            marks = None if mask is None else read_mask(mask, len(numbers), height, width)
        except ImageError as error:
            self._report(numbers, error)
            return None
        size = scaled_size(height, width, self.settings.scale)
        # One plan for all images without a mask.
        whole = self._plan(size, None)
        for row, (number, values) in enumerate(zip(numbers, pixels.rows, strict=True)):
            own = None if marks is None else marks[row : row + 1]
            texts = None
            try:
                check_values(values)
                if (given := tile_prompts[row]) is not None:
                    alone = None if own is None else own[:, 0]
                    texts = given.for_image((height, width), self.settings, alone)
            except (ImageError, SettingsError) as error:
                self._report([number], error)
                continue
            own = None if own is None else blend.resize_mask(own, size)
            regions = whole if own is None else self._plan(size, own)
            self.items.append(
                Item(
                    number=number,
                    pixels=values,
                    mask=own,
                    seed=(self.settings.seed + number) % SEEDS,
                    size=size,
                    regions=regions,
                    prompts=[[prompts[row]] * len(region.tiles) for region in regions]
                    if texts is None
                    else [[joined(prompts[row], text) for text in some] for some in texts],
                )
            )
        return pixels

    def _plan(self, size: Size, mask: Tensor | None) -> list[Region]:
        return plan_regions(size, mask, self.settings) if self.settings.strength > 0 else []

    def _report(self, numbers: Sequence[int], error: RefineError) -> None:
        if self.on_image_error is None:
            raise error
        for number in numbers:
            self.on_image_error(number, error)


def _texts(prompt: str | Sequence[str], count: int) -> list[str]:
    """Return one prompt for each of an entry's images."""
    texts = [prompt] * count if isinstance(prompt, str) else prompt
    if not isinstance(texts, Sequence) or any(not isinstance(text, str) for text in texts):
        raise SettingsError("A prompt must be a text.")
    if len(texts) != count:
        raise SettingsError(
            f"A batch of {count} images has {len(texts)} prompts: pass one, or one for each image."
        )
    return list(texts)


def _tile_prompts(
    given: TilePrompts | Sequence[TilePrompts] | None, count: int
) -> list[TilePrompts | None]:
    """Return one value for each of an entry's images."""
    if given is None or isinstance(given, TilePrompts):
        return [given] * count
    if len(given) != count:
        raise SettingsError(
            f"A batch of {count} images has {len(given)} tile prompts: pass one, or one for each "
            "image."
        )
    return [*given]


def _resized(pixels: Tensor, size: Size) -> Tensor:
    """Return an image that was not refined, (1, H, W, C), at the size of those that were."""
    if pixels.shape[1:3] == size:
        return pixels
    planes = to_planes(pixels)
    alpha = None if planes.alpha is None else blend.resize(planes.alpha, size)
    return from_planes(Planes(blend.resize(planes.rgb, size), alpha), pixels, None)
