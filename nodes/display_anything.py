"""Display Anything: show a value and pass it through, or output an edited text instead."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
from comfy_api.latest import io

from ..texts.shown import is_tensor, shown
from . import host
from .host import convert

if TYPE_CHECKING:
    import torch

_NOT_CONNECTED = "Nothing is connected to value."
_MAX_THUMBNAILS = 16
_THUMBNAIL_PX = 512


class DisplayAnything(io.ComfyNode):
    """(value, text): the value as it came, and what is shown. web/js/display_anything.js shows it.

    The page puts the shown text into `held_text`, where it can be edited. While `hold` is on, the
    node outputs that text, and nodes that feed `value` are skipped.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A value, and the text that can replace it."""
        return host.schema(
            node_id="RefineryDisplayAnything",
            display_name="Display Anything",
            category="Image Refinery/Utilities",
            description=(
                "Shows any value: text, numbers, JSON, lists, tensors, images. You can edit the "
                "text and output it instead of the value."
            ),
            search_aliases=["show text", "preview any", "debug", "view", "print", "inspect"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.AnyType.Input(
                    "value",
                    optional=True,
                    lazy=True,
                    tooltip="Value to show. If nothing is connected, the node outputs the text "
                    "below.",
                ),
                io.Boolean.Input(
                    "hold",
                    display_name="use edited text",
                    default=False,
                    tooltip="On: output the edited text. Nodes that feed value do not run.",
                ),
                io.String.Input(
                    "held_text",
                    display_name="text",
                    multiline=True,
                    placeholder="Shows the value after a run.",
                    default="",
                    dynamic_prompts=False,
                    tooltip="The value as text, after a run. Edit it and turn on use edited text "
                    "to output it.",
                ),
            ],
            outputs=[
                io.AnyType.Output(
                    display_name="value",
                    is_output_list=True,
                    tooltip="The value, or the edited text.",
                ),
                io.String.Output(display_name="text", tooltip="The text that is shown."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def check_lazy_status(
        cls, hold: list[bool], held_text: list[str], value: Any = None
    ) -> list[str]:
        """Ask for the value only where it is connected and no text is held."""
        # Not connected: None. Connected, but not computed yet: (None,).
        return [] if any(hold) or value is None else ["value"]

    @classmethod
    def execute(
        cls, hold: list[bool], held_text: list[str], value: list[Any] | None = None
    ) -> io.NodeOutput:
        """Pass the value through, or output the edited text."""
        if any(hold):
            return io.NodeOutput(held_text, held_text[0], ui={"text": held_text})
        if value is None:
            # No `ui`: the page would put it into the text box, over what the user typed.
            host.show(host.node_id(cls), _NOT_CONNECTED)
            return io.NodeOutput(held_text, held_text[0])
        text = shown(value)
        ui: dict[str, Any] = {"text": [text]}
        if thumbnails := _thumbnails(value):
            ui["images"] = thumbnails
        return io.NodeOutput(value, text, ui=ui)


def _thumbnails(values: list[Any]) -> list[dict[str, str]]:
    """Write thumbnails of the first images and masks into ComfyUI's temp folder."""
    from PIL import Image

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, str]] = []
    images = (image for value in values for image in _images(value))
    for shown_image, _ in zip(images, range(_MAX_THUMBNAILS), strict=False):
        pixels = convert.pixels(shown_image)()
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        name = f"refinery_display_{uuid.uuid4().hex}.png"
        image.save(folder / name, compress_level=1)
        written.append({"filename": name, "subfolder": "", "type": "temp"})
    return written


def _images(value: Any) -> list[torch.Tensor]:
    """The images (B, H, W, C) or masks (B, H, W) in a value, as batches of one with channels."""
    if not is_tensor(value) or not getattr(value, "is_floating_point", bool)() or not value.numel():
        return []
    if value.ndim == 4 and value.shape[-1] in (3, 4):
        return convert.single_images([value])[:_MAX_THUMBNAILS]
    if value.ndim == 3 and min(value.shape[1:]) > 4:
        return convert.single_images([value[..., None]])[:_MAX_THUMBNAILS]
    return []
