"""Ollama's chat in llama.cpp's terms."""

from __future__ import annotations

from typing import Any

from .library import Model
from .wire import ChatRequest, Message, bad_request


def check_capabilities(request: ChatRequest, model: Model) -> None:
    """See that the model can do what is asked.

    Raises:
        ApiError: 400, with Ollama's text where it has one.
    """
    abilities = model.capabilities
    if "completion" not in abilities:
        raise bad_request(f'"{request.model}" does not support chat')
    if model.is_toy and request.messages and not request.has_images:
        raise bad_request(
            f"{request.model} is a toy that describes drawn pictures and writes nothing else: "
            "choose a text model, such as smolvlm:256m"
        )
    if request.think and "thinking" not in abilities:
        raise bad_request(f'"{request.model}" does not support thinking')
    if request.has_images and "vision" not in abilities:
        # Ollama hands the image to the model all the same; old releases then described nothing.
        raise bad_request(
            f'"{request.model}" does not support images: it has no vision (no mmproj file beside '
            f"{model.path.name})"
        )


def chat_body(request: ChatRequest, model: Model) -> dict[str, Any]:
    """Return llama.cpp's body for a chat request."""
    body = {
        **request.sampling,
        "messages": [_message(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
    }
    if request.response_format:
        body["response_format"] = request.response_format
    if "thinking" in model.capabilities:
        # As in Ollama: a model that can think does, unless it is told not to.
        body["reasoning_format"] = "deepseek"
        settings: dict[str, Any] = {"enable_thinking": request.think is not False}
        if isinstance(request.think, str):
            settings["reasoning_effort"] = request.think
        body["chat_template_kwargs"] = settings
    else:
        body["reasoning_format"] = "none"
    return body


def answer_fields(text: str, thinking: str) -> dict[str, str]:
    """Return the `message` of an answer, or of a piece of one."""
    message = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    return message


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.content}
    # Images before the text, as Ollama puts them.
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": image}} for image in message.images
    ]
    return {"role": message.role, "content": [*parts, {"type": "text", "text": message.content}]}
