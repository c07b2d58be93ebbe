"""`image-refinery demo`: a picture to words, and refined, with the best that this machine has."""

from __future__ import annotations

import sys
import textwrap
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .._backends import open_backend
from .._program import pull
from ..captioning.job import Result
from ..llm.choice import able
from ..llm.errors import LLMError, NoModel, ServerConfigError, capital
from ..llm.llamacpp.installed import why_unavailable
from ..llm.servers import EMBEDDED, find_server
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
    server = _best_server()
    job = make_job(instructions=INSTRUCTIONS)
    assert job.text is not None
    steady = dict(job.text.options) | {"temperature": _TEXT_TEMPERATURE, "num_predict": 160}
    job = replace(job, text=replace(job.text, options=steady))
    (caption,) = run_on_files([path], job, server=server)
    if caption.refined and isinstance(caption.refined.error, NoModel):
        print(f"Nothing is rewritten: {message(caption.refined.error)}", file=sys.stderr)
        caption = replace(caption, refined=None)
    texts = [(f"Description, by {_model(caption.description)}", caption.description)]
    if caption.refined is not None:
        texts.append((f"Rewritten by {_model(caption.refined)}", caption.refined))
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


def _best_server() -> str:
    """The default server where one answers and has a vision model, else the embedded engine."""
    try:
        with closing(open_backend(find_server())) as backend:
            title = backend.server.title
            models = [backend.show(model) for model in backend.list()]
        if able(models, "vision"):
            print(f"{capital(title)} answers.", file=sys.stderr)
            return ""
        reason = f"{capital(title)} has no vision model."
    except LLMError as error:
        reason = message(error)
    if missing := why_unavailable():
        raise ServerConfigError(f"{reason} {missing}")
    print(
        f"{reason}\nThe demo uses the embedded engine. For a real vision model run: "
        f"{pull('smolvlm')}",
        file=sys.stderr,
    )
    return EMBEDDED


def _model(result: Result) -> str:
    return result.answer.model if result.answer else "no model"


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
