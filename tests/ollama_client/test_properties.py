"""What must hold for any input: addresses, streams in any pieces, options."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_refinery.captioning.options import StageOptions, fold_seed
from image_refinery.llm import errors
from image_refinery.llm.http import split_lines
from image_refinery.llm.runaway import LONGEST_PHRASE, WINDOW, repeats
from image_refinery.llm.servers import parse_login
from image_refinery.llm.thinking import ThinkSplitter
from image_refinery.ollama_client import parse_host

HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z]{2,5})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
SECRETS = st.from_regex(r"[A-Za-z0-9]{9,20}", fullmatch=True).map("pw".__add__)


@settings(deadline=None)
@given(st.text(max_size=60))
@example("http://[::1")
@example("http://host:99999")
@example("//host:")
@example("http://[v1.x]")
@example("http://\u2100")
@example("host:0")
@example("host/a /")
@example("host/a'/")
@example("host/\x01")
def test_any_text_is_an_address_or_one_clear_error(text: str) -> None:
    try:
        url = parse_host(text)
    except errors.ServerConfigError as error:
        assert "OLLAMA_BASE_URL" in str(error)
        return
    parts = urlsplit(url)
    assert parts.scheme in ("http", "https")
    assert parts.hostname and parts.port is not None and 0 < parts.port < 65536
    assert "@" not in parts.netloc
    assert not url.endswith("/")
    assert parse_host(url) == url


@settings(deadline=None)
@given(
    st.sampled_from(["", "http://", "https://"]),
    HOSTS,
    st.one_of(st.none(), st.integers(1, 65535)),
    SECRETS,
)
def test_an_address_is_taken_apart_and_its_password_kept_out(
    scheme: str, host: str, port: int | None, secret: str
) -> None:
    tail = host if port is None else f"{host}:{port}"
    url = parse_host(f"{scheme}me:{secret}@{tail}")
    assert secret not in url
    assert url == parse_host(scheme + tail)
    assert port is None or urlsplit(url).port == port
    assert parse_login(f"{scheme}me:{secret}@{tail}") == ("me", secret)


@settings(deadline=None)
@given(SECRETS, st.sampled_from(["ftp://me:{}@host", "http://me:{}@host:99999", "me:{}@a b"]))
def test_no_error_repeats_a_password(secret: str, form: str) -> None:
    with pytest.raises(errors.ServerConfigError) as caught:
        parse_host(form.format(secret))
    assert secret not in str(caught.value)


class Body:
    """What the decoder needs of a response: headers, and the body in the given pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.headers = {"Transfer-Encoding": "chunked"}
        self._pieces = pieces

    def iter_content(self, size: int) -> Iterator[bytes]:
        yield from self._pieces


def cut(data: bytes | str, places: list[int]) -> list[Any]:
    """Cut at these places, wherever they fall."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def decoded(pieces: list[bytes]) -> list[bytes]:
    response: Any = Body(pieces)
    return [line for lines in split_lines(response, _server()) for line in lines]


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=9), st.text(max_size=30), max_size=3)),
       st.lists(st.integers(0, 10_000), max_size=40))  # fmt: skip
def test_a_stream_is_the_same_in_any_pieces(
    values: list[dict[str, str]], places: list[int]
) -> None:
    lines = [json.dumps(value, ensure_ascii=False).encode() for value in values]
    stream = b"\n".join(lines) + b"\n" * bool(places)
    assert decoded(cut(stream, places)) == lines
    assert [json.loads(line) for line in decoded(cut(stream, places))] == values


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=20))
def test_any_bytes_are_decoded_alike_in_any_pieces(data: bytes, places: list[int]) -> None:
    assert decoded(cut(data, places)) == [line for line in data.split(b"\n") if line.strip()]


THOUGHTS = st.sampled_from(["", "<think>", "</think>", "<thi", " ", "\n", "a", "think>", "<"])


@settings(deadline=None)
@given(st.lists(THOUGHTS, max_size=12).map("".join), st.lists(st.integers(0, 60), max_size=20))
@example("<think>", [])
@example("<think>a</think>", [3])
def test_thinking_is_split_off_alike_in_any_pieces(text: str, places: list[int]) -> None:
    def split(pieces: list[str]) -> tuple[str, str]:
        splitter = ThinkSplitter()
        out = "".join(map(splitter.feed, pieces)) + splitter.finish()
        return out.strip(), splitter.thinking

    assert split(cut(text, places)) == split([text])
    answer, thinking = split([text])
    assert len(answer) + len(thinking) <= len(text), "nothing is made up"


@settings(deadline=None)
@given(st.text(min_size=1, max_size=LONGEST_PHRASE - 1))
def test_every_short_phrase_that_fills_the_window_is_a_loop(phrase: str) -> None:
    assert repeats((phrase * WINDOW)[:WINDOW])


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1))
def test_every_seed_fits(seed: int) -> None:
    assert 0 <= fold_seed(seed) < 2**31


ANYTHING = st.one_of(st.integers(-5, 9000), st.floats(), st.text(max_size=8), st.none())


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "think": st.sampled_from(["off", "on", "low", "max", ""]),
            "free_memory": st.sampled_from(["always", "never", "Always", ""]),
            "format": st.one_of(st.none(), st.sampled_from(["json", "yaml", ""])),
            "max_image_side": st.integers(-5, 9000),
            "timeout_s": st.one_of(st.none(), st.floats()),
            "parallel": st.integers(-3, 99),
        },
    )
)
def test_settings_are_right_or_named(given: dict[str, Any]) -> None:
    try:
        options = StageOptions(**given)
    except ValueError as error:
        assert any(str(error).startswith(name) for name in given), error
        return
    assert options.think in ("off", "on", "low")
    assert options.free_memory in ("always", "never")
    assert options.format in (None, "json")
    assert options.max_image_side >= 32
    assert options.timeout_s is None or options.timeout_s > 0
    assert 1 <= options.parallel <= 64


@settings(deadline=None)
@given(ANYTHING, ANYTHING)
def test_what_a_server_says_is_never_trusted(status: Any, said: Any) -> None:
    """Odd values in an answer's last line neither break it nor reach the counts."""
    from image_refinery.llm.answers import stream_answer
    from image_refinery.llm.backend import collect
    from image_refinery.ollama_client.client import _pieces

    lines = [
        {"message": {"content": "A ball.", "thinking": said}},
        {"done": True, "done_reason": status, "eval_count": said, "total_duration": said},
    ]
    with suppress(errors.LLMError):
        pieces = _pieces(line for line in lines)
        answer = collect(
            stream_answer(pieces, model="m", server=_server(), options={}, num_ctx=None)
        )
        assert answer.text == "A ball."
        assert answer.answer_tokens is None or isinstance(answer.answer_tokens, int)
        assert answer.total_s is None or isinstance(answer.total_s, float)


def _server() -> Any:
    from image_refinery.ollama_client import Server

    return Server(url="http://127.0.0.1:9")
