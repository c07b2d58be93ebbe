"""Wildcard Processor: replaces wildcards with random lines of files, and choices with one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..texts import WildcardFiles
from . import host

log = logging.getLogger(__name__)

_WILDCARDS = "wildcards"


@dataclass(kw_only=True, eq=False, repr=False)
class Inputs:
    """The inputs, in their order."""

    text: list[str] = host.widget(
        lambda id: io.String.Input(
            id,
            multiline=True,
            default="",
            dynamic_prompts=False,
            tooltip="Text with wildcards: __name__ becomes a random line of name.txt, and choices "
            "in braces become one of them. See this node's help for all forms.",
        ),
        default_factory=lambda: [""],
    )
    seed: list[int] = host.widget(
        lambda id: io.Int.Input(
            id,
            default=0,
            min=0,
            max=0xFFFF_FFFF_FFFF_FFFF,
            control_after_generate=True,
            optional=True,
            tooltip="Same seed, text and files give the same result. In a list, each text uses "
            "the next seed.",
        ),
        default_factory=lambda: [0],
    )
    strip_comments: bool = host.widget(
        lambda id: io.Boolean.Input(
            id,
            default=False,
            optional=True,
            tooltip="Remove comment lines from the text. Comment lines in wildcard files are "
            "always skipped.",
        ),
        default=False,
    )


class WildcardProcessor(io.ComfyNode):
    """(processed text, original text), one of each for every text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A text, a seed, and whether to remove comments."""
        return host.schema(
            node_id="RefineryWildcardProcessor",
            display_name="Wildcard Processor",
            category="Image Refinery/Utilities",
            description=(
                "Replaces wildcards such as __color__ with random lines of files, and choices in "
                "braces with one of them. All other text stays unchanged."
            ),
            search_aliases=["wildcards", "dynamic prompts", "random prompt", "variants"],
            is_input_list=True,
            inputs=host.widgets(Inputs),
            outputs=[
                io.String.Output(
                    display_name="processed text",
                    is_output_list=True,
                    tooltip="The text with wildcards and choices replaced.",
                ),
                io.String.Output(
                    display_name="original text",
                    is_output_list=True,
                    tooltip="The text, unchanged.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes when a wildcard file does."""
        return hash(_files().stamp())

    @classmethod
    def execute(cls, **values: list[Any]) -> io.NodeOutput:
        """Replace; problems are shown on the node and in the log."""
        from ..texts import expand, without_comments

        files = _files()
        given, problem = host.read(Inputs, values)
        if problem:
            raise problem
        seeds = given.seed or [0]
        processed: list[str] = []
        problems: dict[str, None] = {}
        for index, original in enumerate(given.text):
            seed = seeds[index] if index < len(seeds) else seeds[-1] + index - len(seeds) + 1
            result = expand(
                without_comments(original) if given.strip_comments else original, files, seed
            )
            processed.append(result.text)
            problems |= dict.fromkeys(result.problems)
        for problem in problems:
            log.warning("Wildcard Processor: %s", problem)
        if problems:
            host.show(host.node_id(cls), *problems)
        ui = {"text": processed, "problems": list(problems)}
        return io.NodeOutput(processed, given.text, ui=ui)


def _files() -> WildcardFiles:
    """The user's files come first, then those of ComfyUI's models folder, then the pack's."""
    registered = folder_paths.folder_names_and_paths.get(_WILDCARDS, ([], set()))[0]
    return WildcardFiles(
        [
            host.own_folder(_WILDCARDS),
            *map(Path, registered),
            Path(folder_paths.models_dir) / _WILDCARDS,
            host.PACK_FOLDER / _WILDCARDS,
        ]
    )
