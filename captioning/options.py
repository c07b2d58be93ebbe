"""Options of one stage: Ollama's own, and those of this pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..texts.instructions import PresetError
from .images import MAX_SIDE_PX, MIN_SIDE_PX
from .json_schema import check_schema

if TYPE_CHECKING:
    from ..texts import Preset

FREE_MEMORY = ("always", "when needed", "never")
SEED_MASK = 0x7FFF_FFFF
THINK_LEVELS = ("off", "on", "low", "medium", "high")

VISION_SAMPLING = {"temperature": 0.3, "top_p": 0.95, "top_k": 40}
TEXT_SAMPLING = {"temperature": 0.7, "top_p": 0.95, "top_k": 40}
"""The defaults of the node and of the command line."""

DEFAULT_INSTRUCTIONS = (
    "Rewrite this description as a vivid, detailed prompt for an image generator: subject first, "
    "then setting, composition, light, colours and style. One paragraph."
)
"""The default of the node's user_instructions."""

_VISION_DEFAULTS: dict[str, Any] = {"num_predict": 512, "repeat_penalty": 1.1}
DEFAULT_NUM_PREDICT = 1024
"""The default limit of an answer, in tokens: without one a model may never stop."""
_TEXT_DEFAULTS: dict[str, Any] = {"num_predict": DEFAULT_NUM_PREDICT, "repeat_penalty": 1.1}

MAX_PARALLEL = 64
"""Most requests at a time."""

_CTX_STEP = 2048
_MIN_CTX = 4096
_IMAGE_TOKENS = 2600
"""1344 x 1344 px in patches of 28 px are 2304 tokens; LLaVA 1.6 takes up to 2880 for one image."""
_CHARACTERS_PER_TOKEN = 2
"""A cautious value: English has about 4, Chinese and Japanese have between 1 and 2."""


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """The settings of Ollama Options for a stage. Unset: the pack's default, else the server's.

    Attributes:
        model_options: sent as `options`, by Ollama's own names.
        think: "off", "on", "low", "medium" or "high".
        format: "json", or a JSON schema as a dict; None: free text.
        max_image_side: longest side sent, in px.
        lossless: PNG instead of JPEG.
        free_memory: when ComfyUI's models make room: "always", "when needed" or "never".
        timeout_s: how long the first byte of an answer may take, in seconds; None: the client's.
        parallel: requests at a time; the server must allow as many.
        must, must_not: words or phrases that an answer must or must not contain. An answer that
            breaks this is sent back once, to be corrected.

    Raises:
        ValueError: a value is out of range.
    """

    model_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    think: str = "off"
    format: str | dict[str, Any] | None = None
    max_image_side: int = MAX_SIDE_PX
    lossless: bool = False
    free_memory: str = "always"
    timeout_s: float | None = None
    parallel: int = 1
    must: Sequence[str] = ()
    must_not: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.think not in THINK_LEVELS:
            raise ValueError(f'think is "{self.think}", but must be one of {list(THINK_LEVELS)}.')
        if self.free_memory not in FREE_MEMORY:
            raise ValueError(
                f'free_memory is "{self.free_memory}", but must be one of {list(FREE_MEMORY)}.'
            )
        if isinstance(self.format, str) and self.format != "json":
            raise ValueError('format must be "json", or a JSON schema.')
        if isinstance(self.format, dict):
            check_schema(self.format)
        if self.max_image_side < MIN_SIDE_PX:
            raise ValueError(
                f"max_image_side is {self.max_image_side}, but must be at least {MIN_SIDE_PX} px."
            )
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}, but must be above 0 seconds.")
        if not 1 <= self.parallel <= MAX_PARALLEL:
            raise ValueError(f"parallel is {self.parallel}, but must be from 1 to {MAX_PARALLEL}.")

    @property
    def think_value(self) -> bool | str:
        """`think` as the API takes it."""
        return {"off": False, "on": True}.get(self.think, self.think)


def with_preset(options: StageOptions, preset: Preset) -> StageOptions:
    """Return the options. What they leave unset comes from a preset.

    Raises:
        PresetError: the preset's header cannot be used.
    """
    if preset.problem:
        raise PresetError(preset.problem)
    limit = {} if preset.num_predict is None else {"num_predict": preset.num_predict}
    format = preset.format if options.format is None else options.format
    try:
        return replace(options, model_options=limit | dict(options.model_options), format=format)
    except ValueError as error:
        raise PresetError(
            f'The header of the preset "{preset.name}" cannot be used: {error}'
        ) from None


def vision_options(sampling: Mapping[str, Any], seed: int, stage: StageOptions) -> dict[str, Any]:
    """Return the `options` of a vision request: pack's defaults, widgets, then Ollama Options."""
    return _VISION_DEFAULTS | dict(sampling) | {"seed": fold_seed(seed)} | dict(stage.model_options)


def text_options(sampling: Mapping[str, Any], seed: int, stage: StageOptions) -> dict[str, Any]:
    """Return the `options` of a text request: pack's defaults, widgets, then Ollama Options."""
    return _TEXT_DEFAULTS | dict(sampling) | {"seed": fold_seed(seed)} | dict(stage.model_options)


def fold_seed(seed: int) -> int:
    """Return a seed of 31 bits, which Ollama stores exactly, from ComfyUI's 64 bits.

    A negative seed counts as its 64 bits in two's complement.

    >>> fold_seed(2**31 - 1), fold_seed(2**64 - 1) < 2**31, fold_seed(2**40) == fold_seed(0)
    (2147483647, True, False)
    >>> fold_seed(-1) == fold_seed(2**64 - 1)
    True
    """
    seed &= 2**64 - 1
    high = seed >> 31
    folded = seed & SEED_MASK
    while high:
        folded, high = (folded ^ (high & SEED_MASK)), high >> 31
    return folded


def context_size(*, characters: int, images: int, num_predict: int, longest: int | None) -> int:
    """Return the num_ctx that a request needs, in tokens, rounded up so that it seldom changes.

    Args:
        characters: length of all text in the request.
        images: number of images in the request.
        num_predict: limit of the answer in tokens; negative: no limit.
        longest: the model's own limit, if known.

    >>> context_size(characters=400, images=1, num_predict=512, longest=None)
    4096
    >>> context_size(characters=400, images=8, num_predict=512, longest=131072)
    22528
    >>> context_size(characters=400, images=8, num_predict=512, longest=8192)
    8192
    """
    need = characters // _CHARACTERS_PER_TOKEN + images * _IMAGE_TOKENS + max(num_predict, 1024)
    size = max(_MIN_CTX, -(-need // _CTX_STEP) * _CTX_STEP)
    return size if longest is None else min(size, longest)
