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
from .geometry import Size
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
from .prompts import weights_advice
from .settings import SEEDS, RefineSettings
from .work import Plan, plan_work

ImageErrorCallback = Callable[[int, RefineError], None]
"""Called with the number (from 0) of an image that could not be refined, and the error."""


class Item(NamedTuple):
    """One image to refine.

    Attributes:
        number: Which image of the whole batch, counted from 0.
        pixels: (1, H, W, C), as the caller passed them; checked.
        mask: (1, 1, H, W), 0 to 1, or None: refine everything.
        prompt: What the image shows.
        seed: The seed of this image.
        plan: The region and size to refine; None if the mask marks nothing.
    """

    number: int
    pixels: Tensor
    mask: Tensor | None
    prompt: str
    seed: int
    plan: Plan | None


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
        settings: How to refine them. With strength 0 nothing is read, and `items` is empty.
        prompts: One per entry of `images`, or None: the prompt of the settings. An entry of several
            images may have a list of as many prompts.
        masks: One (or None) per entry, or None.
        on_image_error: Called for each image that cannot be refined; the image is then returned
            unchanged. None: raise.

    Attributes:
        settings: As passed.
        items: The images that can be refined.
        count: The number of images, refinable or not.
        on_image_error: As passed.

    Raises:
        SettingsError: prompts or masks cannot be paired with the images.
        ImageError: an image or mask cannot be refined.
    """

    def __init__(
        self,
        images: Sequence[Any],
        settings: RefineSettings,
        *,
        prompts: Sequence[str | Sequence[str]] | None = None,
        masks: Sequence[Any] | None = None,
        on_image_error: ImageErrorCallback | None = None,
    ) -> None:
        for name, others in (("prompts", prompts), ("masks", masks)):
            if others is not None and len(others) != len(images):
                raise SettingsError(
                    f"There are {len(images)} images, but {len(others)} {name}: pass one for each."
                )
        self.settings = settings
        self.items: list[Item] = []
        self.count = 0
        self.on_image_error = on_image_error
        self._entries: list[_Entry] = []
        for index, image in enumerate(images):
            numbers = range(self.count, self.count + count_images(image))
            texts = _texts(settings.prompt if prompts is None else prompts[index], len(numbers))
            mask = None if masks is None else masks[index]
            pixels = self._read(image, mask, texts, numbers) if settings.strength > 0 else None
            self._entries.append(_Entry(image, pixels, numbers))
            self.count = numbers.stop

    @property
    def advice(self) -> str:
        """One sentence about the prompts for their author, or ""."""
        return weights_advice(
            [*(item.prompt for item in self.items), self.settings.negative_prompt]
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

    def _read(self, image: Any, mask: Any, prompts: list[str], numbers: range) -> Pixels | None:
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
        # One plan for all images without a mask.
        whole = plan_work(height, width, None, self.settings)
        for row, (number, values) in enumerate(zip(numbers, pixels.rows, strict=True)):
            try:
                check_values(values)
            except ImageError as error:
                self._report([number], error)
                continue
            own = None if marks is None else marks[row : row + 1]
            plan = whole if own is None else plan_work(height, width, own, self.settings)
            seed = (self.settings.seed + number) % SEEDS
            self.items.append(Item(number, values, own, prompts[row], seed, plan))
        return pixels

    def _report(self, numbers: Sequence[int], error: ImageError) -> None:
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


def _resized(pixels: Tensor, size: Size) -> Tensor:
    """Return an image that was not refined, (1, H, W, C), at the size of those that were."""
    if pixels.shape[1:3] == size:
        return pixels
    planes = to_planes(pixels)
    alpha = None if planes.alpha is None else blend.resize(planes.alpha, size)
    return from_planes(Planes(blend.resize(planes.rgb, size), alpha), pixels, None)
