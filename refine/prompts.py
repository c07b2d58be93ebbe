"""Encode prompts of any length to conditioning, 75 tokens at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .components import Components
from .settings import PromptSyntax

CHUNK = 75
"""A text encoder reads 77 tokens; two of them mark the beginning and the end."""

_KEPT_WHOLE = 8
_OPEN, _CLOSED = "\0\1", "\0\2"
"""Parentheses that are text, while the others are counted."""
_WEIGHT = re.compile(r"(?<!\\)\((?!\d+:)(?:[^()\\]|\\.)+:\s*[-+]?(?:\d?\.\d+|\d\.?)\s*\)")
"""ComfyUI's syntax for a weight (`token_weights` in its comfy/sd1_clip.py). Parentheses behind a
backslash are text, and so is what is a ratio or a time rather than a weight: (16:9), (at 10:30)."""


@dataclass(frozen=True)
class Conditioning:
    """The UNet's conditioning, with diffusers' names.

    Attributes:
        prompt_embeds: (1, 77 n, width).
        pooled_prompt_embeds: (1, projection width).
        negative_prompt_embeds: As prompt_embeds; None without guidance.
        negative_pooled_prompt_embeds: As pooled_prompt_embeds; None without guidance.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Return the tensors by name, moved, to pass on as keywords."""
        return {
            name: None if tensor is None else tensor.to(device, dtype)
            for name, tensor in vars(self).items()
        }


def split_tokens(tokenizer: Any, text: str) -> list[list[int]]:
    """Return a text's tokens in rows of 77, each with begin token, end token and padding.

    A text of up to 75 tokens is one row, the same as in diffusers' own call. A longer text is not
    cut off, but continues in further rows.
    """
    tokens = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    chunks = [tokens[start : start + CHUNK] for start in range(0, len(tokens), CHUNK)] or [[]]
    return [_complete(tokenizer, chunk) for chunk in chunks]


def weights_advice(prompts: Iterable[str]) -> str:
    """Return one sentence if a prompt contains weights, else "".

    >>> weights_advice(["a (cat:1.3)"])
    'Weights such as (word:1.3) are read as plain text: set prompt_syntax to ComfyUI weights.'
    >>> weights_advice([r"a cat (16:9), 10:30, \\(asleep:1.3\\)"])
    ''
    """
    if any(_WEIGHT.search(prompt) for prompt in prompts):
        return (
            "Weights such as (word:1.3) are read as plain text: set prompt_syntax to ComfyUI "
            "weights."
        )
    return ""


def weighted(text: str) -> list[tuple[str, float]]:
    """Return the segments of a text with their weights, as ComfyUI reads them.

    (word) weighs 1.1 times what is around it, (word:1.3) weighs 1.3, and \\( is a parenthesis.

    >>> weighted(r"a (red:1.3) ((cat)) \\(asleep\\)")
    [('a ', 1.0), ('red', 1.3), (' ', 1.0), ('cat', 1.2100000000000002), (' (asleep)', 1.0)]
    """
    hidden = text.replace("\\(", _OPEN).replace("\\)", _CLOSED)
    return [
        (segment.replace(_OPEN, "(").replace(_CLOSED, ")"), weight)
        for segment, weight in _segments(hidden, 1.0)
        if segment
    ]


def _segments(text: str, weight: float) -> Iterator[tuple[str, float]]:
    depth = start = 0
    for found in re.finditer("[()]", text):
        opens = found[0] == "("
        if opens and depth == 0:
            yield text[start : found.start()], weight
            start = found.start()
        depth += 1 if opens else -1
        if not opens and depth == 0:
            yield from _group(text[start : found.end()], weight)
            start = found.end()
    rest = text[start:]
    # ComfyUI also takes the rest for a group if its outer parenthesis is not closed: "((cat)".
    if len(rest) > 1 and rest[0] == "(" and rest[-1] == ")":
        yield from _group(rest, weight)
    else:
        yield rest, weight


def _group(text: str, weight: float) -> Iterator[tuple[str, float]]:
    """Yield the segments of a text in parentheses."""
    inner, colon, number = text[1:-1].rpartition(":")
    try:
        own = float(number) if inner else math.nan
    except ValueError:
        own = math.nan
    if math.isfinite(own):
        return _segments(inner, own)
    return _segments(inner + colon + number, 1.1 * weight)


def split_weighted(tokenizer: Any, text: str) -> tuple[list[list[int]], list[list[float]]]:
    """Return a text's tokens in rows of 77, as `split_tokens`, and the weight of each.

    As in ComfyUI, a segment of fewer than 8 tokens is not cut in two.
    """
    rows: list[list[tuple[int, float]]] = [[]]
    for segment, weight in weighted(text):
        tokens = tokenizer(segment, add_special_tokens=False, verbose=False).input_ids
        if len(tokens) < _KEPT_WHOLE and len(tokens) > CHUNK - len(rows[-1]):
            rows.append([])
        for token in tokens:
            if len(rows[-1]) == CHUNK:
                rows.append([])
            rows[-1].append((token, weight))
    weights = [[1.0, *(weight for _, weight in row), 1.0] for row in rows]
    return (
        [_complete(tokenizer, [token for token, _ in row]) for row in rows],
        [row + [1.0] * (CHUNK + 2 - len(row)) for row in weights],
    )


def encode_prompts(
    components: Components,
    device: torch.device,
    prompt: str,
    negative_prompt: str | None,
    syntax: PromptSyntax = "plain text",
) -> Conditioning:
    """Encode a prompt and, if it is not None, a negative prompt.

    Both get the same length, since the UNet takes them as one batch: their rows are repeated up
    to the common multiple, which does not change the attention over them. With an empty negative
    prompt, SDXL base uses zeros, as in diffusers. The text encoders must be ready on `device`.
    """
    pairs = _encoders(components)
    encode = _encode if syntax == "plain text" else _encode_weighted
    embeds, pooled = encode(pairs, prompt, device)
    if negative_prompt is None:
        return Conditioning(embeds, pooled)
    if not negative_prompt and components.force_zeros_for_empty_prompt:
        return Conditioning(embeds, pooled, torch.zeros_like(embeds), torch.zeros_like(pooled))
    negative, negative_pooled = encode(pairs, negative_prompt, device)
    length = math.lcm(embeds.shape[1], negative.shape[1])
    embeds, negative = (some.repeat(1, length // some.shape[1], 1) for some in (embeds, negative))
    return Conditioning(embeds, pooled, negative, negative_pooled)


def _encoders(components: Components) -> list[tuple[Any, Any]]:
    both = [
        (components.tokenizer, components.text_encoder),
        (components.tokenizer_2, components.text_encoder_2),
    ]
    return [(tokenizer, encoder) for tokenizer, encoder in both if encoder is not None]


def _complete(tokenizer: Any, chunk: list[int]) -> list[int]:
    padding = [tokenizer.pad_token_id] * (CHUNK - len(chunk))
    return [tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id, *padding]


def _encode(pairs: list[tuple[Any, Any]], text: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the embeddings (encoders side by side, rows in sequence) and the pooled embedding."""
    outputs = [
        encoder(
            torch.tensor(split_tokens(tokenizer, text), device=device), output_hidden_states=True
        )
        for tokenizer, encoder in pairs
    ]
    # SDXL was trained on the last but one layer. The pooled embedding is that of the last encoder's
    # first row.
    embeds = [output.hidden_states[-2].flatten(0, 1)[None] for output in outputs]
    return torch.cat(embeds, dim=-1), outputs[-1][0][:1]


def _encode_weighted(
    pairs: list[tuple[Any, Any]], text: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the same as `_encode`, with the weights of the text.

    A weight moves a token's embedding away from that of an empty prompt, or towards it
    (`encode_token_weights` in ComfyUI's comfy/sd1_clip.py). The pooled embedding has no weights.
    """
    embeds: list[Tensor] = []
    pooled = torch.empty(0)
    for tokenizer, encoder in pairs:
        rows, numbers = split_weighted(tokenizer, text)
        tokens = torch.tensor([*rows, _complete(tokenizer, [])], device=device)
        output = encoder(tokens, output_hidden_states=True)
        hidden, empty = output.hidden_states[-2][:-1].float(), output.hidden_states[-2][-1:].float()
        weights = torch.tensor(numbers, device=device)[..., None]
        # Where the weight is 1 nothing is rounded.
        own = torch.where(weights == 1, hidden, empty + (hidden - empty) * weights)
        embeds.append(own.to(output.hidden_states[-2].dtype).flatten(0, 1)[None])
        pooled = output[0][:1]
    return torch.cat(embeds, dim=-1), pooled
