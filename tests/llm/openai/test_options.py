"""Ollama's options in the words of each kind of server, and what of them is named as left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from image_refinery.llm.backend import collect
from image_refinery.llm.openai.options import LLAMA_CPP_DEFAULTS

QUESTION: Any = [{"role": "user", "content": "Say something."}]
OPTIONS = {
    "num_predict": 99,
    "num_ctx": 4096,
    "temperature": 0.5,
    "top_p": 0.7,
    "top_k": 20,
    "min_p": 0.1,
    "typical_p": 0.9,
    "repeat_penalty": 1.2,
    "repeat_last_n": 32,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.4,
    "seed": 7,
    "stop": ["END"],
    "mirostat": 1,
}
COMMON = {
    "max_tokens": 99,
    "temperature": 0.5,
    "top_p": 0.7,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.4,
    "seed": 7,
    "stop": ["END"],
}
LLAMA_CPP = {
    **COMMON,
    "top_k": 20,
    "min_p": 0.1,
    "typical_p": 0.9,
    "repeat_penalty": 1.2,
    "repeat_last_n": 32,
    "cache_prompt": False,
    "chat_template_kwargs": {"enable_thinking": False},
}
SENT = {
    "openai": COMMON,
    "router": LLAMA_CPP,
    "llama-server": LLAMA_CPP,
    "llama-swap": LLAMA_CPP,
    "lmstudio": {**COMMON, "top_k": 20, "repeat_penalty": 1.2},
    "vllm": {
        **COMMON,
        "top_k": 20,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "chat_template_kwargs": {"enable_thinking": False},
    },
}
LLAMA_CPP_LEFT_OUT = ["mirostat", "num_ctx"]
LEFT_OUT = {
    "openai": [
        *("min_p", "mirostat", "num_ctx", "repeat_last_n", "repeat_penalty", "think", "top_k"),
        "typical_p",
    ],
    "router": LLAMA_CPP_LEFT_OUT,
    "llama-server": LLAMA_CPP_LEFT_OUT,
    "llama-swap": LLAMA_CPP_LEFT_OUT,
    "lmstudio": ["min_p", "mirostat", "repeat_last_n", "think", "typical_p"],
    "vllm": ["mirostat", "num_ctx", "repeat_last_n", "typical_p"],
}
FRAME = ("model", "messages", "stream", "stream_options")


def sent(open_kind: Callable[..., Any], kind: str, options: Any, **more: Any) -> dict[str, Any]:
    """The fields of a chat beside the model and the messages; the server knows each of them."""
    client, server = open_kind(kind)
    collect(client.chat(next(iter(server.models)), QUESTION, options=options, **more))
    (chat,) = server.of("chat")
    assert chat.ignored == {}, "nothing is sent that this kind of server does not know"
    assert chat.fields["stream_options"] == {"include_usage": True}
    return {name: value for name, value in chat.fields.items() if name not in FRAME}


@pytest.mark.parametrize("kind", SENT)
def test_each_kind_gets_the_options_that_it_takes(open_kind: Any, kind: str) -> None:
    assert sent(open_kind, kind, OPTIONS) == SENT[kind]


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_the_others_are_named(open_kind: Any, kind: str) -> None:
    client, _ = open_kind(kind)
    assert client.ignored({**OPTIONS, "think": "on"}) == LEFT_OUT[kind]
    assert client.ignored({"temperature": 0.5}) == []


@pytest.mark.parametrize("kind", ["router", "llama-server", "llama-swap"])
def test_llama_cpp_gets_ollamas_defaults(open_kind: Any, kind: str) -> None:
    fields = sent(open_kind, kind, {})
    template = fields.pop("chat_template_kwargs")
    assert template == {"enable_thinking": False}
    assert fields == LLAMA_CPP_DEFAULTS
    assert fields["min_p"] == 0.0, "llama.cpp's own is 0.05"


@pytest.mark.parametrize("kind", ["openai", "lmstudio"])
def test_other_servers_keep_their_own_defaults(open_kind: Any, kind: str) -> None:
    assert sent(open_kind, kind, {}) == {}


@pytest.mark.parametrize("num_predict", [-1, -2, 0, None])
def test_an_answer_without_a_limit_has_no_max_tokens(open_kind: Any, num_predict: Any) -> None:
    assert sent(open_kind, "openai", {"num_predict": num_predict}) == {}


@pytest.mark.parametrize("kind", ["llama-server", "vllm"])
@pytest.mark.parametrize(
    ("think", "template"),
    [
        (None, {"enable_thinking": False}),
        (False, {"enable_thinking": False}),
        (True, {"enable_thinking": True}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
    ],
)
def test_thinking_is_switched_in_the_chat_template(
    open_kind: Any, kind: str, think: Any, template: Any
) -> None:
    assert sent(open_kind, kind, {}, think=think)["chat_template_kwargs"] == template


@pytest.mark.parametrize("kind", SENT)
@pytest.mark.parametrize("asked", ["json", {"type": "object", "properties": {}}])
def test_a_format_is_a_json_schema(open_kind: Any, kind: str, asked: Any) -> None:
    """LM Studio refuses OpenAI's json_object."""
    wanted = {"type": "object"} if asked == "json" else asked
    fields = sent(open_kind, kind, {}, format=asked)
    assert fields["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": wanted},
    }


def test_a_strict_server_gets_nothing_that_it_refuses(open_kind: Any) -> None:
    client, server = open_kind("openai", strict=True)
    assert collect(client.chat("llama-3.2", QUESTION, options=OPTIONS, think=True)).text
    assert len(server.of("chat")) == 1


def test_a_vllm_whose_tokenizer_refuses_the_switch_gets_the_request_without_it(
    open_kind: Any,
) -> None:
    from scripted_servers import Reply

    client, server = open_kind("vllm")
    said = "chat_template is not supported for Mistral tokenizers."
    server.script("chat", Reply(status=400, error=said))
    answer = collect(client.chat("Qwen/Qwen2.5-VL-7B-Instruct", QUESTION, options={"seed": 7}))
    assert answer.text == "It is a test."
    first, second = server.of("chat")
    assert "chat_template_kwargs" in first.fields
    assert second.fields == {k: v for k, v in first.fields.items() if k != "chat_template_kwargs"}
