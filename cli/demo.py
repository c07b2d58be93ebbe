"""`image-refinery demo`: a picture to words, and refined, with the best that this machine has."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .._program import pull
from ..captioning.job import Result
from ..llm import llamacpp
from ..llm.errors import LLMError, ModelNotFound, ServerConfigError
from ..llm.servers import EMBEDDED, Server, find_server
from ..ollama_client import OllamaClient
from ..refine import RefineError
from .describe import make_job, run_on_files, source
from .refine_demo import refine_demo
from .terminal import message

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "scene.png"
INSTRUCTIONS = "Rewrite this description as one vivid sentence of a story."

_TEXT_TEMPERATURE = 0.2
"""Below the usual 0.7: the stand-in has 135 million parameters and wanders off easily."""
_WIDTH_PX = 1100
_MARGIN_PX = 24
_PICTURE_PX = 420
_LINE_CHARACTERS = 72


def demo(image: Path | None, output: Path) -> int:
    """Describe, rewrite and refine one picture; leave what became of it in `output`."""
    path = image or EXAMPLE
    picture = source(path)()
    with _best_client() as client:
        try:
            job = make_job(client, instructions=INSTRUCTIONS)
        except ModelNotFound as error:
            print(f"Nothing is rewritten: {message(error)}", file=sys.stderr)
            job = make_job(client)
        if job.text is not None:
            steady = dict(job.text.options) | {"temperature": _TEXT_TEMPERATURE, "num_predict": 160}
            job = replace(job, text=replace(job.text, options=steady))
        (caption,) = run_on_files(client, [path], job)
    texts = [(f"Description, by {job.vision.model}", caption.description)]
    if job.text is not None:
        texts.append((f"Rewritten by {job.text.model}", caption.final))
    output.mkdir(parents=True, exist_ok=True)
    lines = [f"{heading}:\n{_words(result)}\n" for heading, result in texts]
    (output / "demo.txt").write_text(
        "\n".join([f"Instructions: {INSTRUCTIONS}\n", *lines]), "utf-8"
    )
    _draw(picture, texts).save(output / "demo.png")
    print("\n".join(lines))
    written = [output / "demo.png", output / "demo.txt"]
    failed = any(result.error for _, result in texts)
    try:
        written += refine_demo(picture, output, is_example=image is None)
    except RefineError as error:
        print(f"Error: {error}", file=sys.stderr)
        failed = True
    print("Written:", *(f"  {file}" for file in written), sep="\n")
    return 1 if failed else 0


def _best_client() -> OllamaClient:
    """Ollama where one answers and has a model that can see, else the embedded engine."""
    try:
        client = OllamaClient(find_server())
        models = [client.show(model) for model in client.list()]
        if any(not model.lacks("vision") for model in models):
            kind = "The embedded engine" if client.server.is_embedded else "Ollama"
            print(f"{kind} answers at {client.url}.", file=sys.stderr)
            return client
        reason = f"Ollama at {client.url} has no vision model (ollama pull llava)."
        client.close()
    except LLMError as error:
        reason = message(error)
    if not llamacpp.available():
        raise ServerConfigError(f"{reason} {llamacpp.why_unavailable()}")
    print(
        f"{reason}\nThe demo uses the embedded engine and its stand-in, which knows drawn shapes "
        "and colors only.\nFor real models: install Ollama and run `ollama pull llava` and "
        f"`ollama pull llama3.2`, or run `{pull('smolvlm')}`.",
        file=sys.stderr,
    )
    return OllamaClient(Server(url=EMBEDDED))


def _words(result: Result) -> str:
    return f"Error: {message(result.error)}" if result.error else result.text


def _draw(picture: Image.Image, texts: list[tuple[str, Result]]) -> Image.Image:
    """The picture on the left, the texts beside it."""
    small = picture.convert("RGB")
    small.thumbnail((_PICTURE_PX, _PICTURE_PX))
    heading_font, text_font = ImageFont.load_default(20), ImageFont.load_default(17)
    x, y = _PICTURE_PX + 2 * _MARGIN_PX, _MARGIN_PX
    pieces: list[tuple[int, str, ImageFont.FreeTypeFont | ImageFont.ImageFont, str]] = []
    for heading, result in texts:
        body = "\n".join(
            textwrap.fill(line, _LINE_CHARACTERS) for line in _words(result).splitlines()
        )
        for words, font, color in (
            (heading, heading_font, "#2a6f97"),
            (body, text_font, "#222222"),
        ):
            pieces.append((y, words, font, color))
            y += round(sum(font.getbbox("Ag")[3] * 1.35 for _ in words.splitlines())) + 10
        y += 16
    sheet = Image.new("RGB", (_WIDTH_PX, max(y, small.height + 2 * _MARGIN_PX)), "white")
    sheet.paste(small, (_MARGIN_PX, _MARGIN_PX))
    draw = ImageDraw.Draw(sheet)
    for top, words, font, color in pieces:
        draw.multiline_text((x, top), words, fill=color, font=font, spacing=6)
    return sheet
