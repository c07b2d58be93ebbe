"""Coverage-guided fuzzing of the code that parses text from outside, with atheris.

    pip install atheris
    python tools/fuzz/fuzz.py stream   [seconds]     answers of a server, as chunks of bytes
    python tools/fuzz/fuzz.py wildcard [seconds]     texts with wildcards, and a wildcard file
    python tools/fuzz/fuzz.py address  [seconds]     addresses of servers
    python tools/fuzz/fuzz.py clean    [seconds]     the cleanup of answers

Exits with status 1 at the first undocumented exception and leaves the input in a file crash-... .
tests/ollama_client/test_properties.py has earlier findings as examples.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import atheris

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
LONGEST_BYTES = 4096


def _load_package() -> None:
    """Import the checkout as `image_refinery`; the checkout must not be on sys.path."""
    spec = importlib.util.spec_from_file_location(
        "image_refinery", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["image_refinery"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load_package()
with atheris.instrument_imports(include=["image_refinery"]):
    from image_refinery.captioning import prompts
    from image_refinery.captioning.options import StageOptions
    from image_refinery.llm import errors, servers
    from image_refinery.llm.answers import stream_answer
    from image_refinery.llm.backend import collect
    from image_refinery.llm.http import Json, json_object, split_lines
    from image_refinery.ollama_client import Server, client
    from image_refinery.texts import WildcardFiles, expand


class _Body:
    """A response whose body arrives in the given chunks."""

    def __init__(self, pieces: list[bytes], chunked: bool) -> None:
        self.headers = {"Transfer-Encoding": "chunked"} if chunked else {}
        self._pieces = pieces

    def iter_content(self, size: int) -> Iterator[bytes]:
        yield from self._pieces


def stream(data: bytes) -> None:
    """Decode a stream like the client, and build an answer from it."""
    source = atheris.FuzzedDataProvider(data)
    chunked = source.ConsumeBool()
    pieces = []
    while source.remaining_bytes():
        pieces.append(source.ConsumeBytes(source.ConsumeIntInRange(1, 64)))
    response: Any = _Body(pieces, chunked)
    server = Server(url="http://127.0.0.1:9")
    options = {"num_predict": 50, "num_ctx": 4096}

    def objects() -> Generator[Json, None, None]:
        for lines in split_lines(response, server):
            for line in lines:
                yield json_object(line, server)

    try:
        chat = stream_answer(
            client._pieces(objects()), model="m", server=server, options=options, num_ctx=4096
        )
        answer = collect(chat)
    except errors.LLMError as error:
        assert "\n" not in str(error), "a message is one line"
        return
    assert answer.text == answer.text.strip() != ""


_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz_wildcards_"))


def wildcard(data: bytes) -> None:
    """Expand wildcards in an arbitrary text, with files of arbitrary bytes."""
    source = atheris.FuzzedDataProvider(data)
    content = source.ConsumeBytes(200)
    for name in ("a.txt", "b.yaml", "c.json"):
        (_FOLDER / name).write_bytes(content)
    text = source.ConsumeUnicode(400)
    first = expand(text, WildcardFiles([_FOLDER]), 7)
    assert first == expand(text, WildcardFiles([_FOLDER]), 7), "the same seed, another text"


def address(data: bytes) -> None:
    """Parse an arbitrary text as a server's address."""
    text = atheris.FuzzedDataProvider(data).ConsumeUnicode(200)
    try:
        url = servers.parse_host(text)
        servers.parse_login(text)
    except errors.ServerConfigError:
        return
    assert servers.parse_host(url) == url
    Server(url=url).is_loopback  # noqa: B018


def clean(data: bytes) -> None:
    """Clean up an arbitrary answer, and wrap an arbitrary text as material."""
    text = atheris.FuzzedDataProvider(data).ConsumeUnicode(1000)
    tidied = prompts.clean(text)
    assert len(tidied) <= len(text)
    message = prompts.rewrite_messages(text, "Shorten it.")[1]["content"]
    assert message.lower().count("<material>") == message.lower().count("</material>") == 1
    assert StageOptions().parallel == 1


TARGETS: dict[str, Callable[[bytes], None]] = {
    "stream": stream,
    "wildcard": wildcard,
    "address": address,
    "clean": clean,
}


def main() -> None:
    """Fuzz one target for some seconds, starting from the seeds beside this file."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    name = sys.argv[1]
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else SECONDS
    seeds = Path(__file__).parent / "seeds" / name
    found = tempfile.mkdtemp(prefix="fuzz_corpus_")
    arguments = [sys.argv[0], found, str(seeds)]
    arguments += [f"-max_total_time={seconds}", f"-max_len={LONGEST_BYTES}", "-timeout=10"]
    atheris.Setup([*arguments, "-print_final_stats=1"], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
