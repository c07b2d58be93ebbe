"""The settings of one refinement, checked once, before any weight is loaded."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, cast, get_args

from .errors import SettingsError

T = TypeVar("T")

WorkingSize = Literal["auto", "keep size"]
OutputSize = Literal["original", "working"]
Regions = Literal["separate", "one box"]
PromptSyntax = Literal["plain text", "ComfyUI weights"]
MemoryMode = Literal["auto", "gpu", "offload", "low_vram"]

MAX_STEPS = 1000
MAX_SCALE = 4.0
MIN_TILE_PX, MAX_TILE_PX = 256, 4096
SEEDS = 2**64
"""Seeds run from 0 to one less than this."""


def count_steps(num_inference_steps: int, strength: float) -> int:
    """Return how many steps run: `int(steps * strength)`, truncated exactly as diffusers does.

    >>> count_steps(20, 0.3), count_steps(100, 0.29), count_steps(20, 1.0)
    (6, 28, 20)
    """
    return min(int(num_inference_steps * strength), num_inference_steps)


def _takes_old_names(settings: type[T]) -> type[T]:
    """Let a settings class take the names and values of version 0.1 as well."""
    made = settings.__init__

    @functools.wraps(made)
    def init(self: T, **given: Any) -> None:
        made(self, **_renamed(given))

    settings.__init__ = init
    return settings


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    named = {"keep_colors" if name == "keep_colours" else name: given[name] for name in given}
    if named.get("working_size") == "as it is":
        named["working_size"] = "keep size"
    return named


@_takes_old_names
@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """The settings of a refinement, with diffusers' names if it has them.

    Attributes:
        strength: 0 to 1; how much noise is added and removed again. 0 returns the input.
        guidance_scale: 0 to 100; how closely to follow the prompt. 1 or less turns guidance off and
            halves the work.
        num_inference_steps: 1 to 1000; `int(num_inference_steps * strength)` of them run.
        prompt: What the image shows, of any length. May be empty.
        negative_prompt: What the image should not look like. Empty means none.
        aesthetic_score: 0 to 10; the quality to aim for (refiner checkpoints only).
        negative_aesthetic_score: 0 to 10; the quality to avoid (refiner checkpoints only).
        seed: 0 to 2**64 - 1; image i of a batch uses `seed + i`.
        guidance_end: 0 to 1; the share of the steps that are guided, counted from the first.
        working_size: "auto" enlarges small images to about one megapixel before the refinement;
            "keep size" keeps the image's own size.
        output_size: "original", or "working" to get the enlarged image.
        keep_colors: Keep the input's low frequencies (its colors) in the output.
        scale: 1 to 4; the image is enlarged by this factor first, and comes out at that size.
        regions: "separate" works on each connected part of a mask by itself, "one box" on the
            smallest box around all of them.
        prompt_syntax: "plain text" reads prompts as they are; "ComfyUI weights" reads (word:1.3)
            and (word) as ComfyUI does.
        tile_size: 256 to 4096 pixels; the longest side of a tile, and the side to which
            working_size "auto" enlarges. 0: one tile up to two megapixels, then tiles of 1024.

    Raises:
        SettingsError: a value is of the wrong type or out of range, or no step would run.
    """

    strength: float = 0.3
    guidance_scale: float = 7.5
    num_inference_steps: int = 20
    prompt: str = ""
    negative_prompt: str = ""
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    seed: int = 0
    guidance_end: float = 1.0
    working_size: WorkingSize = "auto"
    output_size: OutputSize = "original"
    keep_colors: bool = True
    scale: float = 1.0
    regions: Regions = "separate"
    prompt_syntax: PromptSyntax = "plain text"
    tile_size: int = 0

    def __post_init__(self) -> None:
        _check_number("strength", self.strength, 0.0, 1.0)
        _check_number("guidance_scale", self.guidance_scale, 0.0, 100.0)
        _check_whole("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        _check_number("aesthetic_score", self.aesthetic_score, 0.0, 10.0)
        _check_number("negative_aesthetic_score", self.negative_aesthetic_score, 0.0, 10.0)
        _check_whole("seed", self.seed, 0, SEEDS - 1)
        _check_number("guidance_end", self.guidance_end, 0.0, 1.0)
        check_choice("working_size", self.working_size, get_args(WorkingSize))
        check_choice("output_size", self.output_size, get_args(OutputSize))
        _check_number("scale", self.scale, 1.0, MAX_SCALE)
        check_choice("regions", self.regions, get_args(Regions))
        check_choice("prompt_syntax", self.prompt_syntax, get_args(PromptSyntax))
        _check_tile_size(self.tile_size)
        if not isinstance(self.keep_colors, bool):
            raise SettingsError(f"keep_colors must be True or False, not {self.keep_colors!r}.")
        if self.strength > 0 and self.steps == 0:
            raise SettingsError(_no_step_message(self.num_inference_steps, self.strength))

    @property
    def keep_colours(self) -> bool:
        """The name of `keep_colors` in version 0.1."""
        return self.keep_colors

    @property
    def steps(self) -> int:
        """The number of steps that run."""
        return count_steps(self.num_inference_steps, self.strength)

    @property
    def guided_steps(self) -> int:
        """The number of steps that run with the prompt's guidance; the others cost half."""
        if self.guidance_scale <= 1:
            return 0
        # The small subtraction keeps 10 * 0.3 (3.0000000000000004) from becoming four.
        return math.ceil(self.steps * self.guidance_end - 1e-9)

    @property
    def formula(self) -> str:
        """Where the number of steps comes from, such as "20 x 0.3"."""
        return f"{self.num_inference_steps} x {self.strength:g}"

    def describe(self) -> dict[str, str | int | float | bool]:
        """Return all settings by name, for a log line or an image's metadata."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def settings_from(more: Mapping[str, Any], **values: Any) -> RefineSettings:
    """Return settings made of `values` and of a caller's further keywords.

    Raises:
        SettingsError: as in RefineSettings.
        TypeError: a name in `more` is not a setting, or is also in `values`.
    """
    names = [field.name for field in fields(RefineSettings) if field.name not in values]
    for name in _renamed(more):
        if name not in names:
            raise TypeError(f"{name} is not a setting. The settings are {', '.join(names)}.")
    return RefineSettings(**values, **more)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise SettingsError unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise SettingsError(f"{name} must be one of {known}, not {value!r}.")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    # NaN fails the comparison too.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise SettingsError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}.")


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")


def _check_tile_size(side: object) -> None:
    _check_whole("tile_size", side, 0, MAX_TILE_PX)
    if 0 < cast(int, side) < MIN_TILE_PX:
        raise SettingsError(
            f"tile_size is {side}. Use {MIN_TILE_PX} or more, or 0 for the tiles of SDXL Refiner."
        )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be a text, not {type(value).__name__}.")


def _no_step_message(steps: int, strength: float) -> str:
    # Rounded up to thousandths: 1 / 49 itself still truncates to zero steps.
    least_strength = math.ceil(1000 / steps) / 1000
    while count_steps(steps, least_strength) == 0:
        least_strength = round(least_strength + 0.001, 3)
    message = (
        f"{steps} steps at strength {strength:g} leave no step to run "
        f"(int({steps} x {strength:g}) = 0): raise strength to {least_strength:g}"
    )
    enough = [n for n in range(steps, MAX_STEPS + 1) if count_steps(n, strength) > 0]
    if enough:
        message += f" or the number of steps to {enough[0]}"
    return message + "."
