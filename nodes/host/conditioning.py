"""What is in a CONDITIONING beside words, and what becomes of it in a tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...refine.blend import resize
from ...refine.work import Place
from .inputs import BadInput

if TYPE_CHECKING:
    from ...refine import Batch

Conditioning = list[list[Any]]
"""ComfyUI's CONDITIONING: [tensor, {name: value}] each."""

_BOUND_TO_PLACE = {
    "area": "an area",
    "mask": "a mask",
    "gligen": "GLIGEN boxes",
    "concat_latent_image": "an image to inpaint",
    "reference_latents": "a reference image",
}
"""Values of a conditioning that mean something else in a tile than in the image."""


def check_places(model: Any, conditionings: dict[str, Conditioning | None], batch: Batch) -> None:
    """Refuse what belongs to a place in the image and cannot be cut into tiles.

    Args:
        model: MODEL.
        conditionings: By the name of the input.
        batch: What is to be refined.

    Raises:
        BadInput: a conditioning or the model holds something of that kind.
    """
    is_whole = all(place.is_whole for place in _places(batch))
    if is_whole and batch.count == 1:
        return
    controls = {
        name: [
            control for _, values in conditioning or () for control in _chain(values.get("control"))
        ]
        for name, conditioning in conditionings.items()
    }
    for name, chain in controls.items():
        for control in chain:
            _check_hint(name, control, batch)
    if is_whole:
        return
    for name, conditioning in conditionings.items():
        for _, values in conditioning or ():
            for key in values.keys() & _BOUND_TO_PLACE.keys():
                raise BadInput(
                    f"{name} has {_BOUND_TO_PLACE[key]}, which is for the whole image and not for "
                    "its tiles. Remove it, or refine the image as one tile without a mask."
                )
    patches = model.model_options.get("transformer_options", {}).get("patches", {})
    if any(
        isinstance(getattr(one, "image", None), Tensor) for some in patches.values() for one in some
    ):
        raise BadInput(
            "The model has a ControlNet patch, whose image is for the whole image and not for its "
            "tiles. Remove it, or refine the image as one tile without a mask."
        )


def for_tile(conditionings: Sequence[Conditioning], place: Place) -> list[Conditioning]:
    """Return conditionings with a tile's part of the images of their ControlNets.

    One ControlNet stays one for both prompts: ComfyUI runs it once for both then.
    """
    cut: dict[int, Any] = {}

    def control_of(control: Any) -> Any:
        if control is None:
            return None
        if id(control) not in cut:
            cut[id(control)] = _cut_control(control, place, control_of(control.previous_controlnet))
        return cut[id(control)]

    return [
        [
            [words, values | {"control": control_of(values["control"])}]
            if values.get("control") is not None
            else [words, values]
            for words, values in conditioning
        ]
        for conditioning in conditionings
    ]


def _places(batch: Batch) -> Iterator[Place]:
    for item in batch.items:
        for region in item.regions:
            for box in region.tiles:
                yield Place(item.number, item.size, region, box)


def _chain(control: Any) -> Iterator[Any]:
    """Yield a ControlNet and those before it."""
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def _check_hint(name: str, control: Any, batch: Batch) -> None:
    hint = getattr(control, "cond_hint_original", None)
    if not isinstance(hint, Tensor) or hint.ndim != 4:
        raise BadInput(
            f"{name} has a ControlNet whose image cannot be cut into tiles. Use one of ComfyUI's "
            "own, or remove it."
        )
    count, _, height, width = hint.shape
    if count not in (1, batch.count):
        raise BadInput(
            f"{name} has a ControlNet with {count} images, but there are {batch.count} to refine. "
            "Give it one, or one for each."
        )
    for item in batch.items:
        # Whole pixels: a hint of 341 x 512 belongs to an image of 683 x 1024.
        if abs(width * item.size.height / height - item.size.width) > 1 + item.size.width / width:
            raise BadInput(
                f"{name} has a ControlNet with an image of {width} x {height} px, but the image "
                f"to refine is {item.size.width} x {item.size.height} px. Give it an image of the "
                "same proportions."
            )


def _cut_control(control: Any, place: Place, previous: Any) -> Any:
    """Return a copy of a ControlNet with a tile's part of its image and masks."""

    def part(pixels: Tensor) -> Tensor:
        own = pixels[place.image : place.image + 1] if len(pixels) > 1 else pixels
        return own if place.is_whole else place.cut(resize(own, place.size))

    copy = control.copy()
    copy.cond_hint_original = part(control.cond_hint_original)
    copy.extra_concat_orig = [part(one) for one in control.extra_concat_orig]
    copy.set_previous_controlnet(previous)
    return copy
