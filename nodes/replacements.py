"""Nodes of other packs that nodes of this pack replace where the other pack is missing.

ComfyUI 0.14 and newer swaps them: in prompts that it queues, and on the page when the user asks for
it. docs/how-to/coming-from-other-packs.md tells users what becomes of each setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from comfy_api.latest import io
from server import PromptServer

from .llm_inputs import BATCH_MODES, ON_ERROR

_CONTROL = "control_after_generate"
"""The page's own widget below a seed. It is no input: prompts do not have it."""

# Ollama's own defaults, for nodes that sent no sampling options.
_OLLAMA_SAMPLING = {"temperature": 0.8, "top_p": 0.9}


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What becomes of one node. What is in neither `inputs` nor `values` gets our default.

    ComfyUI answers with an error 500 if a prompt lacks an input that is mapped, so `inputs` has
    only those that the old node always sends.

    Attributes:
        old: id of the other pack's node.
        new: id of our node.
        widgets: the old node's widgets, in the order in which workflow files hold their values.
        inputs: {our input: the old input that it takes its value or link from}.
        values: {our input: a fixed value}.
        outputs: {old output's index: our output's index}.
    """

    old: str
    new: str
    widgets: Sequence[str] = ()
    inputs: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    outputs: Mapping[int, int]

    def input_mapping(self) -> list[dict[str, Any]]:
        """The inputs and values as ComfyUI takes them."""
        taken = [{"new_id": new, "old_id": old} for new, old in self.inputs.items()]
        # ComfyUI looks for a link by its old name when the node it comes from is replaced after
        # this one, and fails if that name is gone. Our nodes ignore the extra input.
        kept = [{"new_id": old, "old_id": old} for new, old in self.inputs.items() if new != old]
        fixed = [{"new_id": new, "set_value": value} for new, value in self.values.items()]
        return [*taken, *kept, *fixed]

    def output_mapping(self) -> list[dict[str, int]]:
        """The outputs as ComfyUI takes them. Without them the page drops the links."""
        return [{"old_idx": old, "new_idx": new} for old, new in self.outputs.items()]


BASIFY = (
    Replacement(
        old="BasifyImageRefine",
        new="RefineryLLMImageRefine",
        widgets=(
            *("vision_model", "vision_prompt", "text_model", "text_instructions"),
            *("vision_temperature", "vision_top_p", "vision_top_k"),
            *("text_temperature", "text_presence_penalty", "text_frequency_penalty"),
            *("text_top_p", "text_top_k"),
        ),
        inputs={
            "image": "image",
            "vision_model": "vision_model",
            "custom_vision_prompt": "vision_prompt",
            "text_model": "text_model",
            "user_instructions": "text_instructions",
            "vision_temperature": "vision_temperature",
            "vision_top_p": "vision_top_p",
            "vision_top_k": "vision_top_k",
            "text_temperature": "text_temperature",
            "text_presence_penalty": "text_presence_penalty",
            "text_frequency_penalty": "text_frequency_penalty",
            "text_top_p": "text_top_p",
            "text_top_k": "text_top_k",
        },
        values={"clean_output": False},
        outputs={0: 0, 1: 1, 2: 2},
    ),
    Replacement(
        old="BasifyDescribeImage",
        new="RefineryLLMDescribe",
        widgets=("model", "server_url", "temperature", "max_tokens"),
        inputs={"image": "image", "vision_model": "model", "temperature": "temperature"},
        # The old node asks for one sentence, in a prompt that it does not show.
        values={
            "custom_vision_prompt": "Describe this image in detail, in one sentence.",
            "top_p": _OLLAMA_SAMPLING["top_p"],
        },
        outputs={0: 0, 1: 1},
    ),
    Replacement(
        old="BasifyDisplayAnythingAsText",
        new="RefineryDisplayAnything",
        inputs={"value": "value"},
        values={"hold": False, "held_text": ""},
        outputs={0: 0},
    ),
    Replacement(
        old="BasifyWildcardProcessor",
        new="RefineryWildcardProcessor",
        widgets=(
            *("text", "prompt_file_path", "enable_wildcards", "wildcard_directory"),
            *("force_refresh", "iterator_completed"),
        ),
        inputs={"text": "text"},
        # The old node removes comments always, and draws new words in each run.
        values={"strip_comments": True, _CONTROL: "randomize"},
        outputs={0: 0, 1: 1},
    ),
)

COMFYUI_OLLAMA = (
    Replacement(
        old="OllamaVision",
        new="RefineryLLMDescribe",
        widgets=(
            *("query", "debug", "url", "model", "keep_alive", "format"),
            *("seed", _CONTROL),
        ),
        inputs={
            "image": "images",
            "vision_model": "model",
            "custom_vision_prompt": "query",
            "seed": "seed",
        },
        values=_OLLAMA_SAMPLING | {"batch_mode": BATCH_MODES[1], "on_error": ON_ERROR[1]},
        outputs={0: 1},
    ),
    Replacement(
        old="OllamaGenerate",
        new="RefineryOllamaProcess",
        widgets=("prompt", "debug", "url", "model", "keep_alive", "format", "filter_thinking"),
        inputs={"text": "prompt", "text_model": "model"},
        values=_OLLAMA_SAMPLING
        | {"instructions": "", "on_error": ON_ERROR[1], "clean_output": False},
        outputs={0: 0},
    ),
    Replacement(
        old="OllamaGenerateAdvance",
        new="RefineryOllamaProcess",
        widgets=(
            *("prompt", "debug", "url", "model", "system", "seed", _CONTROL),
            *("top_k", "top_p", "temperature", "num_predict", "tfs_z"),
            *("keep_alive", "keep_context", "format", "filter_thinking"),
        ),
        inputs={
            "text": "prompt",
            "instructions": "system",
            "text_model": "model",
            "seed": "seed",
            "top_k": "top_k",
            "top_p": "top_p",
            "temperature": "temperature",
        },
        values={"on_error": ON_ERROR[1], "clean_output": False},
        outputs={0: 0},
    ),
)

REPLACEMENTS = (*BASIFY, *COMFYUI_OLLAMA)


async def register_replacements() -> None:
    """Tell ComfyUI about the replacements. Before 0.14 it cannot replace nodes: nothing happens."""
    server = getattr(PromptServer, "instance", None)  # None: another program reads the schemas
    if not hasattr(server, "node_replace_manager"):
        return
    from comfy_api.latest import ComfyAPI  # pyright: ignore[reportAttributeAccessIssue]

    api: Any = ComfyAPI()
    for row in REPLACEMENTS:
        await api.node_replacement.register(
            io.NodeReplace(  # pyright: ignore[reportAttributeAccessIssue]
                new_node_id=row.new,
                old_node_id=row.old,
                old_widget_ids=list(row.widgets),
                input_mapping=row.input_mapping(),
                output_mapping=row.output_mapping(),
            )
        )
