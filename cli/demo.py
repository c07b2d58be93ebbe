"""`image-refinery demo`: describe, rewrite and refine an image with the best models here."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .._advice import advice
from .._backends import open_backend, open_backends
from ..captioning.images import file_source
from ..captioning.job import Result, Stage, TextJob
from ..captioning.options import TEXT_SAMPLING, StageOptions, text_options
from ..captioning.run import process
from ..llm.choice import AUTO, able
from ..llm.errors import LLMError, NoModel, ServerConfigError, capital
from ..llm.llamacpp.installed import why_unavailable
from ..llm.servers import EMBEDDED, find_server
from ..memory import StageMemory
from ..refine import RefineError
from ..texts import ready_instructions
from .describe import make_job, run_on_files
from .progress import watching
from .refine_demo import refine_demo
from .terminal import TERMINAL, failed, message

if TYPE_CHECKING:
    from ..llm.backend import Model

_ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = _ROOT / "examples" / "scene.png"
INSTRUCTIONS = ready_instructions([_ROOT / "instructions"])["Keyword extraction"]
OPTIONS = {"temperature": 0, "repeat_penalty": 1.0, "num_predict": 160}
"""The most likely word each time, and no penalty for the words of the description."""

_STAND_IN = "a stand-in model that describes drawn shapes and colors only"
_LIMITED = (
    "it could use only the words of the description, because so small a model makes things up"
)
_WIDTH_PX = 1100
_MARGIN_PX = 24
_IMAGE_PX = 420
_LINE_CHARACTERS = 72
_REMARK_CHARACTERS = 88


class _Text(NamedTuple):
    heading: str
    result: Result
    remark: str


def demo(path: Path | None, output: Path) -> int:
    """Describe, rewrite and refine one image; write the results into `output`."""
    file = path or EXAMPLE
    image = file_source(file)()
    server, models = best_server()
    stand_ins = {model.name for model in models if model.note}
    if path is not None and len(stand_ins) == len(models):
        print(
            f"Expect a wrong description of {path.name} unless it shows drawn shapes: the vision "
            f"model here is {_STAND_IN}.",
            file=sys.stderr,
        )
    (caption,) = run_on_files([file], make_job(), server=server)
    described = caption.description
    model = _model(described)
    is_stand_in = model in stand_ins
    remark = f"{model} is {_STAND_IN}." if is_stand_in else ""
    texts = [_Text(f"Description, by {model}", described, remark)]
    if described.answer and (rewritten := _rewrite(described.text, server, limited=is_stand_in)):
        remark = f"With a JSON schema {_LIMITED}." if is_stand_in else ""
        texts.append(_Text(f"Rewritten by {_model(rewritten)}", rewritten, remark))
    output.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{text.heading}:\n{_words(text.result)}\n" + (f"({text.remark})\n" if text.remark else "")
        for text in texts
    ]
    (output / "demo.txt").write_text(
        "\n".join([f"Instructions: {INSTRUCTIONS}\n", *lines]), "utf-8"
    )
    _draw(image, texts).save(output / "demo.png")
    print("\n".join(lines))
    written = [output / "demo.png", output / "demo.txt"]
    wrong = any(text.result.error for text in texts)
    try:
        written += refine_demo(image, output, is_example=path is None)
    except RefineError as error:
        failed(error)
        wrong = True
    print("Written:", *(f"  {name}" for name in written), sep="\n")
    return 1 if wrong else 0


def text_job(description: str, *, limited: bool) -> TextJob:
    """Return the job that rewrites a description.

    Args:
        limited: only with the words of the description, in any order, and no longer than that.
    """
    settings = StageOptions(format=words_schema(description) if limited else None)
    options = text_options(TEXT_SAMPLING, 0, settings) | OPTIONS
    stage = Stage(model=AUTO, options=options, settings=settings)
    return TextJob(stage=stage, texts=[description], instructions=[INSTRUCTIONS])


def words_schema(description: str) -> dict[str, Any]:
    """Return a JSON schema for a text of the description's words, in any order, and no longer.

    >>> words_schema("A red star, a red circle.")["pattern"]
    '^(A|red|star|a|circle)(,? (A|red|star|a|circle)){0,5}\\\\.?$'
    """
    found = re.findall(r"\w+", description)
    words = "|".join(dict.fromkeys(found))
    return {"type": "string", "pattern": f"^({words})(,? ({words})){{0,{len(found) - 1}}}\\.?$"}


def _rewrite(description: str, server: str, *, limited: bool) -> Result | None:
    """Return the rewritten description; None where there is no text model, with the reason."""
    with watching() as watcher, open_backends(server, AUTO, cancelled=watcher.cancelled) as opened:
        (result,) = process(
            opened[0],
            text_job(description, limited=limited),
            memory=StageMemory(),
            watcher=watcher,
        )
    if isinstance(result.error, NoModel):
        print(f"Nothing is rewritten: {message(result.error)}", file=sys.stderr)
        return None
    if limited and result.answer:  # JSON: a string in quotes, whose end may be cut off
        answer = replace(result.answer, text=result.text.strip().strip('"'))
        return replace(result, answer=answer)
    return result


def best_server(who: str = "The demo") -> tuple[str, Sequence[Model]]:
    """Return a server that has a vision model, and all its vision models.

    It is the default server if that answers and has a vision model, else the embedded engine.

    Args:
        who: needs it, for the message.

    Raises:
        ServerConfigError: neither can be used.
    """
    try:
        title, models = vision_models("")
        if models:
            print(f"{title} answers.", file=sys.stderr)
            return "", models
        reason = f"{title} has no vision model."
    except LLMError as error:
        reason = f"{error} {advice(error, TERMINAL)}"
    if missing := why_unavailable():
        raise ServerConfigError(f"{reason} {missing}")
    print(f"{reason}\n{who} uses the embedded engine.", file=sys.stderr)
    return EMBEDDED, vision_models(EMBEDDED)[1]


def vision_models(server: str) -> tuple[str, Sequence[Model]]:
    """Return a server's title, to begin a sentence with, and its vision models."""
    with closing(open_backend(find_server(server))) as backend:
        models = [backend.show(model) for model in backend.list()]
        return capital(backend.server.title), able(models, "vision")


def _model(result: Result) -> str:
    return result.answer.model if result.answer else "no model"


def _words(result: Result) -> str:
    return f"Error: {message(result.error)}" if result.error else result.text


def _draw(image: Image.Image, texts: Sequence[_Text]) -> Image.Image:
    """Return a sheet with the image on the left and, beside it, each text with its remark."""
    small = image.convert("RGB")
    small.thumbnail((_IMAGE_PX, _IMAGE_PX))
    heading_font, text_font, remark_font = (ImageFont.load_default(size) for size in (20, 17, 14))
    x, y = _IMAGE_PX + 2 * _MARGIN_PX, _MARGIN_PX
    pieces: list[tuple[int, str, ImageFont.FreeTypeFont | ImageFont.ImageFont, str]] = []
    for text in texts:
        body = "\n".join(
            textwrap.fill(line, _LINE_CHARACTERS) for line in _words(text.result).splitlines()
        )
        for words, font, color in (
            (text.heading, heading_font, "#2a6f97"),
            (body, text_font, "#222222"),
            (textwrap.fill(text.remark, _REMARK_CHARACTERS), remark_font, "#777777"),
        ):
            pieces.append((y, words, font, color))
            lines = words.splitlines()
            y += round(sum(font.getbbox("Ag")[3] * 1.35 for _ in lines)) + (10 if lines else 0)
        y += 16
    sheet = Image.new("RGB", (_WIDTH_PX, max(y, small.height + 2 * _MARGIN_PX)), "white")
    sheet.paste(small, (_MARGIN_PX, _MARGIN_PX))
    draw = ImageDraw.Draw(sheet)
    for top, words, font, color in pieces:
        draw.multiline_text((x, top), words, fill=color, font=font, spacing=6)
    return sheet
