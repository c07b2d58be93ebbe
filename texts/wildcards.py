"""Expand wildcards and choices in a text; docs/wildcards.md documents the syntax.

    __name__  __folder/name__  __colour*__     one random line of a file, or of several
    {a|b|c}  {2::a|b}                          one of these; the first twice as likely
    {2$$a|b|c}  {1-2$$ and $$a|b|c}            some of these, joined
    {2$$__name__}  {all$$__name__}             some lines, or all in their order
    \\{  \\}  \\__  and in braces \\|  \\$$  \\::    these characters themselves

Everything else stays unchanged: the texts come from language models as often as from users.
Forms of other wildcard nodes that are not known here stay whole, too, and are reported.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from .wildcard_files import (
    COMMENT_MARKS,
    HASH_LINE,
    Line,
    WildcardFiles,
    split_weight,
    without_hash_lines,
)
from .wildcard_foreign import TOKEN, foreign_form, sampler

DEEPEST = 40
"""The most levels of nested choices and files."""
_MOST_STEPS = 10_000
_MOST_CHARACTERS = 1_000_000
"""Limits of one text: a line of a file may refer to the file itself twice."""
_MOST_JSON_TRIES = 100
_MOST_QUOTED = 60
_SEPARATOR = ", "

_TOKEN = re.compile(rf"\\(?:[{{}}]|__)|\{{|__|{TOKEN}")
_CHOICE_TOKEN = re.compile(rf"\\(?:[{{}}|]|__|\$\$|::)|\{{|__|{TOKEN}")
_NAME = re.compile(r"__(?![\s_])(?P<name>(?:(?!__)[^{}|\r\n]){1,200}(?<![\s\\]))__")
_ONLY_NAME = re.compile(rf"\s*{_NAME.pattern}\s*")
_COUNT = re.compile(
    r"\s*(?P<count>all|\d+-\d+|\d+-|-\d+|\d+)\s*\$\$"
    # a bar separates only among other marks: {2$$a|b$$c} has two choices
    r"(?:(?P<between>(?:(?!\$\$)(?:\\[{}|]|[^{}|]))*|[^\w{}$]*)\$\$)?"
)
_ESCAPED = re.compile(r"\\([{}|])")
# a bar in a comment divides nothing
_SPLIT = re.compile(rf"\\[{{}}|]|[{{|]|{HASH_LINE}")
_JSON_BEGINS = re.compile(r"\{\s*[\"}]")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Expanded:
    """A text with its wildcards and choices replaced.

    Attributes:
        text: the result.
        problems: one sentence for each part that could not be replaced.
    """

    text: str
    problems: tuple[str, ...] = ()


def expand(text: str, files: WildcardFiles, seed: int) -> Expanded:
    """Replace wildcards and choices; the same text, files and seed give the same result.

    No line of a file is used twice while it has unused lines. Nesting and the length of the
    inserted text are limited.
    """
    expander = _Expander(files, random.Random(seed))
    result = expander.expand(_Source.of(text), 0, len(text), 0)
    return Expanded(result, tuple(dict.fromkeys([*expander.problems, *files.problems])))


def without_comments(text: str) -> str:
    """Return a text without its lines that begin with `#`, `//` or `;`.

    >>> without_comments("# colors\\nred // not here\\n  ; nor blue\\ngreen")
    'red // not here\\ngreen'
    """
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.lstrip().startswith(COMMENT_MARKS))


@dataclass(frozen=True)
class _Source:
    """A text, and the position of each closing brace by that of the opening one."""

    text: str
    closing: dict[int, int]

    @classmethod
    def of(cls, text: str) -> _Source:
        closing: dict[int, int] = {}
        opened: list[int] = []
        for found in re.finditer(r"\\[{}]|[{}]", text):
            if found[0] == "{":
                opened.append(found.start())
            elif found[0] == "}" and opened:
                closing[opened.pop()] = found.start()
        return cls(text, closing)


@dataclass
class _Expander:
    """The state of one text."""

    files: WildcardFiles
    rng: random.Random
    problems: list[str] = field(default_factory=list[str])
    used: set[Line] = field(default_factory=set[Line])
    steps: int = 0
    characters: int = 0
    json_tries: int = 0
    foreign: set[str] = field(default_factory=set[str])

    def expand(self, source: _Source, start: int, end: int, depth: int) -> str:
        token = _CHOICE_TOKEN if depth else _TOKEN
        pieces: list[str] = []
        while found := token.search(source.text, start, end):
            at = found.start()
            pieces.append(source.text[start:at])
            piece, start = self._token(source, found, end, depth)
            pieces.append(piece)
        pieces.append(source.text[start:end])
        return "".join(pieces)

    def _token(
        self, source: _Source, found: re.Match[str], end: int, depth: int
    ) -> tuple[str, int]:
        """Return the replacement of a token, and the position after it."""
        at = found.start()
        if found[0].startswith("\\"):
            return found[0][1:], found.end()
        if found[0] != "{":
            if foreign := foreign_form(source.text, at, end, source.closing):
                return self._stays(source.text[at : foreign.end], foreign.why), foreign.end
            if found[0] != "__":
                return found[0], found.end()
            return self._reference(source.text, at, end, depth)
        if json_end := self._json_end(source.text, at, end):
            return self._json(source.text[at:json_end], depth), json_end
        close = source.closing.get(at, end)
        if close >= end:
            return "{", at + 1
        return self._braces(source, at, close, depth), close + 1

    def _stays(self, form: str, why: str) -> str:
        """Report a form, the first of its kind only, and return it."""
        if why not in self.foreign:
            self.foreign.add(why)
            quoted = form if len(form) <= _MOST_QUOTED else f"{form[:_MOST_QUOTED]}..."
            self.problems.append(f"{quoted} stays as it is: {why}.")
        return form

    def _reference(self, text: str, at: int, end: int, depth: int) -> tuple[str, int]:
        found = _NAME.match(text, at, end)
        if found is None:
            return "_", at + 1
        lines = self._lines(found["name"])
        # an unknown name ends before its closing marks: they may open the next name
        if not lines or not self._may(found[0], depth):
            return found[0][:-2], found.end() - 2
        return self._line(self._draw_line(lines), depth), found.end()

    def _lines(self, name: str) -> tuple[Line, ...]:
        try:
            lines = self.files.lines(name)
        except OSError as error:
            self.problems.append(f"__{name}__ cannot be read ({error.strerror or error}).")
            return ()
        if not lines:
            self.problems.append(f"There is no wildcard file with lines for __{name}__.")
        return lines

    def _draw_line(self, lines: Sequence[Line]) -> Line:
        left = [line for line in lines if line not in self.used]
        if not left:
            self.used.difference_update(lines)
            left = list(lines)
        line = left[self._draw([line.weight for line in left])]
        self.used.add(line)
        return line

    def _line(self, line: Line, depth: int) -> str:
        self.characters += len(line.text)
        return self.expand(_Source.of(line.text), 0, len(line.text), depth + 1)

    def _braces(self, source: _Source, at: int, close: int, depth: int) -> str:
        count = _COUNT.match(source.text, at + 1, close)
        start = at + 1 if count is None else count.end()
        parts = _split(source, start, close)
        if count is None and (why := sampler(source.text, parts)):
            return self._stays(source.text[at : close + 1], why)
        if count is None and len(parts) == 1:
            if depth >= DEEPEST:
                return source.text[at : close + 1]
            return "{" + self.expand(source, start, close, depth + 1) + "}"
        if not self._may("a choice in braces", depth):
            return source.text[at : close + 1]
        if count is None:
            weighed = [_weighed(source, part) for part in parts]
            chosen = self._draw([weight for weight, _ in weighed])
            return self._choice(source, parts[chosen][1], weighed[chosen][1], depth)
        return self._several(source, parts, count, depth)

    def _several(
        self, source: _Source, parts: list[tuple[int, int]], count: re.Match[str], depth: int
    ) -> str:
        between = _SEPARATOR
        if count["between"] is not None:
            between = _ESCAPED.sub(r"\1", count["between"])
        only = _ONLY_NAME.fullmatch(source.text, *parts[0]) if len(parts) == 1 else None
        if only is not None:
            lines = self._lines(only["name"])
            if not lines:
                return source.text[count.start() - 1 : parts[-1][1] + 1]
            if count["count"] == "all":
                chosen_lines = list(lines)
            else:
                number = self._number(count["count"], len(lines))
                chosen_lines = [self._draw_line(lines) for _ in range(number)]
            return between.join(self._line(line, depth) for line in chosen_lines)
        if len(parts) == 1:
            foreign = foreign_form(source.text, *parts[0], source.closing)
            if foreign is not None and foreign.end == parts[0][1]:
                return self._stays(source.text[count.start() - 1 : foreign.end + 1], foreign.why)
        weighed = [(last, *_weighed(source, (first, last))) for first, last in parts]
        if count["count"] != "all":
            number = self._number(count["count"], len(weighed))
            weighed = self._draw_several(weighed, number, lambda item: item[1])
        return between.join(self._choice(source, last, text, depth) for last, _, text in weighed)

    def _choice(self, source: _Source, last: int, text: str, depth: int) -> str:
        """Expand a choice that ends at `last`, less its weight and comments."""
        if source.text.endswith(text, 0, last):
            return self.expand(source, last - len(text), last, depth + 1)
        return self.expand(_Source.of(text), 0, len(text), depth + 1)

    def _number(self, count: str, most: int) -> int:
        first, dash, last = count.partition("-")
        low = int(first) if first else 1
        high = (int(last) if last else most) if dash else low
        low, high = min(low, high, most), min(max(low, high), most)
        return low + int(self.rng.random() * (high - low + 1))

    def _draw_several(
        self, items: Sequence[Item], number: int, weight: Callable[[Item], float]
    ) -> list[Item]:
        left, drawn = list(items), list[Item]()
        for _ in range(number):
            drawn.append(left.pop(self._draw([weight(item) for item in left])))
        return drawn

    def _draw(self, weights: Sequence[float]) -> int:
        # only random(): its numbers are the same in every release of Python
        total = sum(weights)
        if total <= 0:
            return int(self.rng.random() * len(weights))
        point = self.rng.random() * total
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return max(index for index, weight in enumerate(weights) if weight > 0)

    def _may(self, what: str, depth: int) -> bool:
        """Return whether one more replacement is within the limits."""
        self.steps += 1
        if depth < DEEPEST and self.steps <= _MOST_STEPS and self.characters <= _MOST_CHARACTERS:
            return True
        self.problems.append(
            f"{what} was not replaced: the text has more than {DEEPEST} levels, or becomes too "
            "long."
        )
        return False

    def _json_end(self, text: str, at: int, end: int) -> int | None:
        """Return the end of the JSON object that begins here, or None."""
        if _JSON_BEGINS.match(text, at, end) is None or self.json_tries >= _MOST_JSON_TRIES:
            return None
        try:
            _, json_end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            self.json_tries += 1
            return None
        return json_end if json_end <= end else None

    def _json(self, text: str, depth: int) -> str:
        """Replace only inside the strings of a JSON object, so that it stays valid."""

        def string(found: re.Match[str]) -> str:
            value = json.loads(found[0], strict=False)
            if depth >= DEEPEST:
                return found[0]
            result = self.expand(_Source.of(value), 0, len(value), depth)
            return found[0] if result == value else json.dumps(result, ensure_ascii=False)

        return _JSON_STRING.sub(string, text)


def _weighed(source: _Source, part: tuple[int, int]) -> tuple[float, str]:
    """Return the weight of a choice, and its text without lines that are comments."""
    return split_weight(without_hash_lines(source.text[slice(*part)]))


def _split(source: _Source, start: int, end: int) -> list[tuple[int, int]]:
    """Return the positions of the choices between `|`, ignoring inner braces."""
    parts: list[tuple[int, int]] = []
    first = at = start
    while found := _SPLIT.search(source.text, at, end):
        at = found.end()
        if found[0] == "|":
            parts.append((first, found.start()))
            first = at
        elif found[0] == "{":
            at = source.closing.get(found.start(), found.start()) + 1
    return [*parts, (first, end)]
