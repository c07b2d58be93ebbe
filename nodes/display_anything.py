"""Display Anything: show a value on the node, pass it on, or hold an edited text in its place."""

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
_MOST_THUMBNAILS = 16
_THUMBNAIL_PX = 512


class DisplayAnything(io.ComfyNode):
    """(value, text): the value as it came, and what is shown. web/js/display_anything.js shows it.

    The page puts the shown text into `held_text`, where it can be edited. While `hold` is on, that
    text goes out and nothing before this node runs for it.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A value, and the text that can take its place."""
        return host.schema(
            node_id="RefineryDisplayAnything",
            display_name="Display Anything",
            category="refinery",
            description=(
                "Shows any value: texts, numbers, JSON, lists, tensors, images. The text can be "
                "edited; with hold on it goes out instead of the value, and what is before this "
                "node does not run."
            ),
            search_aliases=["show text", "preview any", "debug", "view", "print", "inspect"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.AnyType.Input(
                    "value",
                    optional=True,
                    lazy=True,
                    tooltip="Anything. Without a link, the text below goes out.",
                ),
                io.Boolean.Input(
                    "hold",
                    default=False,
                    tooltip="On: the text below goes out, as you edited it, and is kept. What is "
                    "linked to value is not even run.",
                ),
                io.String.Input(
                    "held_text",
                    multiline=True,
                    default="",
                    dynamic_prompts=False,
                    tooltip="What was shown last. Edit it and switch hold on to keep it.",
                ),
            ],
            outputs=[
                io.AnyType.Output(
                    display_name="value",
                    is_output_list=True,
                    tooltip="The value as it came; with hold on, the text.",
                ),
                io.String.Output(display_name="text", tooltip="What is shown, as one text."),
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
        """Pass the value on, or the text that is held in its place."""
        if any(hold):
            return io.NodeOutput(held_text, held_text[0], ui={"text": held_text})
        if value is None:
            # No `ui`: the page would put it into the text box, over what somebody typed.
            host.show(host.node_id(cls), _NOT_CONNECTED)
            return io.NodeOutput(held_text, held_text[0])
        text = shown(value)
        ui: dict[str, Any] = {"text": [text]}
        if thumbnails := _thumbnails(value):
            ui["images"] = thumbnails
        return io.NodeOutput(value, text, ui=ui)


def _thumbnails(values: list[Any]) -> list[dict[str, str]]:
    """Write small pictures of the first images and masks into ComfyUI's temp folder."""
    from PIL import Image

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, str]] = []
    pictures = (picture for value in values for picture in _pictures(value))
    for picture, _ in zip(pictures, range(_MOST_THUMBNAILS), strict=False):
        pixels = convert.pixels(picture)()
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        name = f"refinery_display_{uuid.uuid4().hex}.png"
        image.save(folder / name, compress_level=1)
        written.append({"filename": name, "subfolder": "", "type": "temp"})
    return written


def _pictures(value: Any) -> list[torch.Tensor]:
    """The images (B, H, W, C) or masks (B, H, W) in a value, as batches of one with channels."""
    if not is_tensor(value) or not getattr(value, "is_floating_point", bool)() or not value.numel():
        return []
    if value.ndim == 4 and value.shape[-1] in (3, 4):
        return convert.single_images([value])[:_MOST_THUMBNAILS]
    if value.ndim == 3 and min(value.shape[1:]) > 4:
        return convert.single_images([value[..., None]])[:_MOST_THUMBNAILS]
    return []
