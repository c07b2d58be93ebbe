"""What all the other node packs that we examined do: send the whole image as PNG in one plain chat.

Uses the `ollama` package if it is installed, else requests.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import requests
from PIL import Image

CLIENT = "ollama" if importlib.util.find_spec("ollama") else "requests"

Chat = Callable[..., str]
"""chat(model, content, images, **fields) returns the answer; the request includes the fields."""


def to_base64(image: Image.Image) -> str:
    """Return base64 of a PNG with PIL's default settings."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("utf-8")


def chat_function(url: str) -> Chat:
    """Return a function that sends one chat to the server at this URL."""
    return chat_with_package(url) if CLIENT == "ollama" else chat_with_requests(url)


def chat_with_package(url: str) -> Chat:
    """Return a function that chats through the `ollama` package."""
    import ollama

    client: Any = ollama.Client(host=url)

    def chat(model: str, content: str, images: list[str], **fields: Any) -> str:
        messages = [message(content, images)]
        return str(client.chat(model=model, messages=messages, **fields)["message"]["content"])

    return chat


def chat_with_requests(url: str) -> Chat:
    """Return a function that chats with a plain POST."""

    def chat(model: str, content: str, images: list[str], **fields: Any) -> str:
        body = {"model": model, "messages": [message(content, images)], "stream": False, **fields}
        response = requests.post(f"{url}/api/chat", json=body, timeout=60)
        return str(response.json()["message"]["content"])

    return chat


def message(content: str, images: list[str]) -> dict[str, Any]:
    """Return one user message; the field `images` is missing if there are none."""
    return {"role": "user", "content": content} | ({"images": images} if images else {})
