"""What every other node pack does that was looked at: a whole picture as PNG, and one plain chat.

Through the `ollama` package where it is installed, else through requests.
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

Ask = Callable[..., str]
"""ask(model, content, images, **fields): the answer's text; the fields go into the request."""


def as_base64(picture: Image.Image) -> str:
    """PNG with PIL's defaults, base64."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("utf-8")


def asking(url: str) -> Ask:
    """Return how the server at this URL is asked."""
    return with_package(url) if CLIENT == "ollama" else with_requests(url)


def with_package(url: str) -> Ask:
    """Ask through the `ollama` package."""
    import ollama

    client: Any = ollama.Client(host=url)

    def ask(model: str, content: str, images: list[str], **fields: Any) -> str:
        messages = [message(content, images)]
        return str(client.chat(model=model, messages=messages, **fields)["message"]["content"])

    return ask


def with_requests(url: str) -> Ask:
    """Ask with a plain POST."""

    def ask(model: str, content: str, images: list[str], **fields: Any) -> str:
        body = {"model": model, "messages": [message(content, images)], "stream": False, **fields}
        response = requests.post(f"{url}/api/chat", json=body, timeout=60)
        return str(response.json()["message"]["content"])

    return ask


def message(content: str, images: list[str]) -> dict[str, Any]:
    """One turn of the user; without pictures it has no field for them."""
    return {"role": "user", "content": content} | ({"images": images} if images else {})
