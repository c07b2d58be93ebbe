"""Wildcards and choices: every form, what passes unharmed, bounds, and the same seed twice."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_refinery.texts import WildcardFiles, expand, without_comments


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("wildcards")
    files = {
        "colour": "red\ngreen\nblue\n",
        "weighed": "9::often\n1::seldom\n0::never\n",
        "scene": "a __colour__ {house|hut}\n",
        "quote": 'say "hi"\n',
        "self": "x __self__",
        "twice": "__twice__ __twice__",
        "big": "\n".join(f"{'y' * 500} __big__" for _ in range(500)),
        **{f"level{n}": f"{n} __level{n + 1}__" for n in range(10)},
        "level10": "bottom",
        "tool/axe": "axe",
    }
    for name, text in files.items():
        path = top / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    return top


@pytest.fixture
def files(folder: Path) -> WildcardFiles:
    return WildcardFiles([folder])


def results(text: str, files: WildcardFiles, count: int = 300) -> Counter[str]:
    return Counter(expand(text, files, seed).text for seed in range(count))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a __colour__ b", {"a red b", "a green b", "a blue b"}),
        ("{a|b}", {"a", "b"}),
        ("{a|}", {"a", ""}),
        ("{ a | b }", {" a ", " b "}),
        ("{a|{b|{c|d}}}", {"a", "b", "c", "d"}),
        ("{a|__tool/axe__}", {"a", "axe"}),
        ("{2$$a|b}", {"a, b", "b, a"}),
        ("{2$$ and $$a|b}", {"a and b", "b and a"}),
        ("{2$$$$a|b}", {"ab", "ba"}),
        ("{1-2$$/$$a|b}", {"a", "b", "a/b", "b/a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{2-$$+$$a|b}", {"a+b", "b+a"}),
        ("{0-1$$a|b}", {"", "a", "b"}),
        ("{7$$/$$a|b}", {"a/b", "b/a"}),
        ("{all$$a|b|c}", {"a, b, c"}),
        ("{all$$ / $$__colour__}", {"red / green / blue"}),
        ("{3$$ $$__colour__}", {"red green blue", "red blue green", "green red blue",
                               "green blue red", "blue red green", "blue green red"}),
        ("{0::a|1::b}", {"b"}),
        ("__weighed__", {"often", "seldom"}),
        ("__COLOUR__", {"red", "green", "blue"}),
        ("__axe__ __too*__", {"axe axe"}),
    ],
)  # fmt: skip
def test_every_form_gives_just_these(text: str, wanted: set[str], files: WildcardFiles) -> None:
    assert set(results(text, files)) == wanted


def test_weights_are_kept_within_chance(files: WildcardFiles) -> None:
    drawn = results("{3::a|b}", files, 4000)
    # 3000 expected; five standard deviations are 137
    assert 2863 < drawn["a"] < 3137
    assert 3420 < results("__weighed__", files, 4000)["often"] < 3780


def test_no_line_comes_twice_while_lines_last(files: WildcardFiles) -> None:
    for seed in range(50):
        words = expand("__colour__ __colour__ __col*__ __colour__", files, seed).text.split()
        assert sorted(words[:3]) == ["blue", "green", "red"]
        assert words[3] in {"red", "green", "blue"}
        first, second = expand("__colour__ {2$$ $$__colour__}", files, seed).text.split()[::2]
        assert first != second


def test_what_a_line_holds_is_replaced_too(files: WildcardFiles) -> None:
    colours, houses = ("red", "green", "blue"), ("house", "hut")
    assert set(results("__scene__", files)) == {f"a {c} {h}" for c in colours for h in houses}


HARMLESS = [
    "# Heading\n\ncolour #ff0000; // not a comment\n; ini\n// c",
    '{"a": "x|y", "b": [1, {"c": "|"}], "d": "}|{"}',
    '{\n  "prompt": "a $$ b",\n  "n": {}\n}',
    "{}",
    "body { color: red } a || b | c",
    "{single}",
    "snake__case and __init__.py and __bold text__",
    "a { b | c",
    "a | b } c",
    "__ __ ____ ___x __ x__",
    "100% $$ {x} \\n \\( C:\\new {dir} \\textbf{x}",
    "| a | b |\n|---|---|",
    "",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_passes_unharmed(text: str, files: WildcardFiles) -> None:
    for seed in range(20):
        assert expand(text, files, seed).text == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\\{a|b\\}", "{a|b}"),
        ("\\__colour__", "__colour__"),
        ("{a \\| b \\{c\\}|a \\| b \\{c\\}}", "a | b {c}"),
        ("{2\\$$a|2\\$$a}", "2$$a"),
        ("{2\\::a|2\\::a}", "2::a"),
        ("\\| \\$$ \\::", "\\| \\$$ \\::"),
    ],
)
def test_escapes(text: str, wanted: str, files: WildcardFiles) -> None:
    assert expand(text, files, 1).text == wanted


def test_json_stays_json_and_its_strings_are_replaced(files: WildcardFiles) -> None:
    text = 'Here: {"a": "{x|x} __tool/axe__", "q": "__quote__", "__tool/axe__": "p|q"}'
    result = expand(text, files, 0).text.removeprefix("Here: ")
    assert json.loads(result) == {"a": "x axe", "q": 'say "hi"', "axe": "p|q"}


def test_missing_names_stay_and_are_reported_once(files: WildcardFiles) -> None:
    result = expand("__nope__ __tool/axe__ __nope__ {2$$__nope__}", files, 0)
    assert result.text == "__nope__ axe __nope__ {2$$__nope__}"
    assert result.problems == ("There is no wildcard file with lines for __nope__.",)


def test_ten_levels_are_reached(files: WildcardFiles) -> None:
    result = expand("__level0__", files, 0)
    assert result.text == "0 1 2 3 4 5 6 7 8 9 bottom" and not result.problems


@pytest.mark.parametrize(
    "text",
    [
        "__self__",
        "__twice__",
        "__big__ {all$$__big__}",
        "{" * 3000 + "a|b" + "}" * 3000,
        "{" * 100_000,
        '{"a":' * 20_000,
        "__" * 50_000,
        "{a|b} " * 20_000,
    ],
    ids=["self", "twice", "big", "braces", "open", "json", "marks", "many"],
)
def test_everything_ends_at_once(text: str, files: WildcardFiles) -> None:
    begun = time.monotonic()
    result = expand(text, files, 0)
    assert time.monotonic() - begun < 5.0
    assert len(result.text) < 3_000_000


def test_a_file_that_names_itself_is_reported(files: WildcardFiles) -> None:
    result = expand("__self__", files, 0)
    assert result.text == "x " * 40 + "__self__"
    assert "more than 40 levels" in result.problems[0]


PIECES = [
    *("{", "}", "|", "__", "colour", "self", "2$$", "all$$", "$$", "3::", "::", "\\", " ", "#"),
    *('"', ":", "a", "\n", "*", "/", "..", "\0", "1-2", "\u00e9", "\U0001f600"),
    *("__scene__", "{a|b}", "{2$$", "__col*__", "__colour__", "|x}"),
]


def test_a_thousand_random_texts_give_the_same_twice(folder: Path) -> None:
    rng = random.Random(20261121)
    changed = 0
    for seed in range(1000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(40)))
        first = expand(text, WildcardFiles([folder]), seed)
        again = expand(text, WildcardFiles([folder]), seed)
        assert first == again, text
        changed += first.text != text
    assert changed > 500, "the texts must hold things to replace"


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('{}|_$:\\" a2colur#\n'), max_size=80), st.integers(0, 2**64 - 1))
def test_no_text_raises(folder: Path, text: str, seed: int) -> None:
    files = WildcardFiles([folder])
    assert expand(text, files, seed) == expand(text, files, seed)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text('{}|a_$\\"', max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text("{}|a_:", max_size=5), inner, max_size=3)
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_every_json_object_stays_one(folder: Path, value: dict[str, object]) -> None:
    result = expand(json.dumps(value), WildcardFiles([folder]), 7).text
    assert isinstance(json.loads(result), dict)


def test_the_results_of_a_seed_are_the_same_in_every_release(files: WildcardFiles) -> None:
    given_seed = [expand("{a|b|c|d} __colour__ {2$$1|2|3|4}", files, s).text for s in (0, 1, 2**63)]
    assert given_seed == SAME_FOR_EVER


SAME_FOR_EVER = ["d blue 2, 3", "a blue 2, 3", "c blue 4, 1"]


def test_comments_go_only_where_asked() -> None:
    text = "# a\nb # kept\n   // c\n;d\n\n#ff0000, red\nend"
    assert without_comments(text) == "b # kept\n\nend"
    assert without_comments("") == ""
