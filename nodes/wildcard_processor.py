"""Wildcard Processor: random lines of files, and choices in braces, put into a text."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..texts import WildcardFiles
from . import host, stage_inputs

log = logging.getLogger(__name__)

_WILDCARDS = "wildcards"


class WildcardProcessor(io.ComfyNode):
    """(processed text, original text), one of each for every text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A text, a seed, and whether comments go."""
        return host.schema(
            node_id="RefineryWildcardProcessor",
            display_name="Wildcard Processor",
            category="refinery",
            description=(
                "Puts random lines of wildcard files (__colour__) and choices in braces into a "
                "text. All other text stays as it is. The same seed gives the same result."
            ),
            search_aliases=["wildcards", "dynamic prompts", "random prompt", "variants"],
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    dynamic_prompts=False,
                    tooltip="__name__ becomes a random line of name.txt, and choices in braces "
                    "one of them. All other text stays as it is. Every form stands in this "
                    "node's help.",
                ),
                stage_inputs.seed_input(
                    "The same seed, text and files give the same result. In a list of texts each "
                    "takes the next seed."
                ),
                io.Boolean.Input(
                    "strip_comments",
                    default=False,
                    optional=True,
                    tooltip="Leave out lines of the text that begin with #, // or ;. In wildcard "
                    "files such lines are always skipped.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="processed text",
                    is_output_list=True,
                    tooltip="The text with its wildcards and choices replaced.",
                ),
                io.String.Output(
                    display_name="original text",
                    is_output_list=True,
                    tooltip="The text as it came.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> int:
        """Changes when a wildcard file does."""
        return hash(_files().stamp())

    @classmethod
    def execute(cls, text: list[str], **inputs: list[Any]) -> io.NodeOutput:
        """Replace; what could not be is said on the node and in the log."""
        from ..texts import expand, without_comments

        files = _files()
        strip = bool(stage_inputs.one(inputs, "strip_comments", False))
        seeds = [int(seed) for seed in inputs.get("seed") or [0]]
        processed: list[str] = []
        problems: dict[str, None] = {}
        for index, original in enumerate(text):
            seed = seeds[index] if index < len(seeds) else seeds[-1] + index - len(seeds) + 1
            result = expand(without_comments(original) if strip else original, files, seed)
            processed.append(result.text)
            problems |= dict.fromkeys(result.problems)
        for problem in problems:
            log.warning("Wildcard Processor: %s", problem)
        if problems:
            host.show(host.node_id(cls), *problems)
        ui = {"text": processed, "problems": list(problems)}
        return io.NodeOutput(processed, list(text), ui=ui)


def _files() -> WildcardFiles:
    """The user's own files come before those of ComfyUI's models folder, and ours last."""
    registered = folder_paths.folder_names_and_paths.get(_WILDCARDS, ([], set()))[0]
    return WildcardFiles(
        [
            host.own_folder(_WILDCARDS),
            *map(Path, registered),
            Path(folder_paths.models_dir) / _WILDCARDS,
            host.PACK_FOLDER / _WILDCARDS,
        ]
    )
