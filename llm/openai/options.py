"""Translate Ollama's options to those of other servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

OptionNames: TypeAlias = Mapping[str, str]
"""Ollama's name of each option that a server supports, and the server's own name for it."""

OPENAI_NAMES: OptionNames = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
}
LLAMA_CPP_NAMES: OptionNames = {
    **OPENAI_NAMES,
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
}
LMSTUDIO_NAMES: OptionNames = {**OPENAI_NAMES, "top_k": "top_k", "repeat_penalty": "repeat_penalty"}
VLLM_NAMES: OptionNames = {
    **OPENAI_NAMES,
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}

LLAMA_CPP_DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "cache_prompt": False,
}
"""Ollama's defaults where llama.cpp's differ, such as its min_p of 0.05. cache_prompt is off: a
partly cached prompt is computed in other batches, so that the same seed could give a different
text."""


def translate(options: Mapping[str, Any], names: OptionNames) -> dict[str, Any]:
    """Return the request fields for Ollama's options, without unsupported ones.

    >>> translate({"num_predict": 99, "top_k": 40, "num_ctx": 4096}, OPENAI_NAMES)
    {'max_tokens': 99}
    >>> translate({"num_predict": -1, "repeat_penalty": 1.1}, VLLM_NAMES)
    {'repetition_penalty': 1.1}
    """
    num_predict = options.get("num_predict")
    is_unlimited = isinstance(num_predict, int) and num_predict <= 0
    return {
        names[name]: value
        for name, value in options.items()
        if name in names and value is not None and not (name == "num_predict" and is_unlimited)
    }


def left_out(options: Mapping[str, Any], names: OptionNames) -> Sequence[str]:
    """Return the options that a server does not support, by Ollama's names.

    >>> left_out({"num_predict": 99, "top_k": 40, "mirostat": 1}, OPENAI_NAMES)
    ['mirostat', 'top_k']
    """
    return sorted(
        name for name, value in options.items() if name not in names and value is not None
    )
