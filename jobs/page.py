"""`report.html`: the counts of a job, its failures, suspicious texts and a sample, with images.

One file without anything external, at most `MAX_BYTES`, whatever the size of the job.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from ..files.images import normalized, opened, with_8_bits
from ..files.whole import written_whole
from ..texts.characters import whole_characters
from .directory import read_fingerprint
from .flags import MEANINGS, hashed
from .items import Item
from .rows import DONE, FAILED, Row, Rows, text_of

FILE = "report.html"
MAX_BYTES = 20_000_000
SAMPLE = 500
MAX_SEARCHED = 20_000
"""Rows of each kind that can be in the page at all."""
MAX_THUMBNAILS_S = 30.0
"""A run ends with this page: large images on a slow disk must not keep it for an hour."""

THUMBNAIL_PX = 128
_JPEG_QUALITY = 70
_THUMBNAIL_BYTES = 5_000
"""About what one takes in the page."""
_REST_BYTES = 30_000
"""For the script, headings and sentences."""
_CARDS_BYTES = 7_000_000
"""For cards without their thumbnails."""
_SEARCHED_BYTES = 6_000_000
"""What texts to search have at least; what no thumbnail needs is theirs, too."""
_MAX_TEXT_CHARS = 3_000
_AT_A_TIME = 64

STYLE, _SCRIPT = (
    Path(__file__).with_name(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
)
_FLAGGED, _OTHERS = "flagged", "others"
_TITLES = {FAILED: "Failed", _FLAGGED: "Flagged", _OTHERS: "Sample of the others"}


class Selection:
    """The rows that a page can show: of each kind those whose ids have the lowest hashes.

    So a sample has images of all folders, is the same in the next run, and needs the same memory
    for a job of any size.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._kept: dict[str, list[tuple[int, str, Sequence[str]]]] = {one: [] for one in _TITLES}

    def add(self, row: Row, flags: Sequence[str]) -> None:
        """Note a row and its flags."""
        kind = FAILED if row["status"] != DONE else _FLAGGED if flags else _OTHERS
        self.counts[kind] += 1
        kept, entry = self._kept[kind], (-hashed(row["id"]), row["id"], flags)
        if len(kept) < MAX_SEARCHED:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)

    def of(self, kind: str) -> list[tuple[str, Sequence[str]]]:
        """Return the ids of a kind with their flags, the lowest hash first."""
        return [(id, flags) for _, id, flags in sorted(self._kept[kind], reverse=True)]


@dataclass
class _Card:
    """An image of the page, its marks (flags, or the error's code), and its text or error."""

    item: Item
    link: str
    marks: Sequence[str]
    text: str
    thumbnail: str = ""

    def html(self) -> str:
        name = escaped(self.item.id)
        href = f' href="{escape(self.link)}"' if self.link else ""
        marks = "".join(f"<li>{escaped(one)}</li>" for one in self.marks)
        return (
            f'<article class="card">{self.thumbnail or self.placeholder("No thumbnail")}<div>'
            f"<h3><a{href}><bdi>{name}</bdi></a></h3>"
            f'{f"<ul>{marks}</ul>" if marks else ""}<p dir="auto">{escaped(self.text)}</p></div>'
            "</article>\n"
        )

    def placeholder(self, says: str) -> str:
        return f'<span class="none" role="img" aria-label="{escaped(self.text)}">{says}</span>'

    def image(self, jpeg: bytes) -> str:
        data = base64.b64encode(jpeg).decode("ascii")
        return f'<img src="data:image/jpeg;base64,{data}" alt="{escaped(self.text)}">'


def write_page(
    folder: Path,
    counts: Mapping[str, Any],
    sentences: Mapping[str, str],
    selection: Selection,
    rows: Rows,
    items: Mapping[str, Item],
) -> None:
    """Write `report.html` into a job's directory.

    Args:
        counts: what `report.json` has.
        sentences: an example of each error, by its name in `counts`.
        selection: of all rows that count.

    Raises:
        OSError: it cannot be written.
    """
    cards, bytes_of_cards = _cards(folder, selection, rows, items)
    shown = [card for kind in (_OTHERS, FAILED, _FLAGGED) for card in cards[kind]]
    head = "".join(_head(folder, counts, sentences))
    room = MAX_BYTES - _size(head) - _REST_BYTES - bytes_of_cards
    searched, bytes_of_texts = _texts(
        folder,
        selection.of(_OTHERS)[len(cards[_OTHERS]) :],
        rows,
        items,
        max(_SEARCHED_BYTES, room - len(shown) * _THUMBNAIL_BYTES),
    )
    without = _add_thumbnails(shown, room - bytes_of_texts)
    left_out = sum(selection.counts[kind] - len(cards[kind]) for kind in (FAILED, _FLAGGED))
    with written_whole(folder / FILE) as text:
        text.write(head)
        if without or left_out:
            text.write(
                f'<p class="note">This page is limited to {MAX_BYTES // 10**6} MB and '
                f"{MAX_THUMBNAILS_S:.0f} seconds of reading images, so {without:,} rows have no "
                f"thumbnail and {left_out:,} failed or flagged rows are left out, which "
                "<code>report.json</code> counts and <code>rows/*.jsonl</code> has.</p>\n"
            )
        all_rows = sum(selection.counts.values())
        text.write(
            '<search hidden><label for="words">Search</label><input id="words" type="search" '
            f'autocomplete="off"><p id="found" role="status">In {len(shown) + len(searched):,} of '
            f'{all_rows:,} rows.</p></search>\n<section id="hits" class="cards" hidden></section>\n'
        )
        for kind, title in _TITLES.items():
            if not cards[kind]:
                continue
            total = selection.counts[kind]
            part = (
                f"{len(cards[kind]):,} of {total:,}" if len(cards[kind]) < total else f"{total:,}"
            )
            text.write(f'<section class="rows"><h2>{title} <small>{part}</small></h2>\n')
            text.write('<div class="cards">\n')
            alike = sorted(cards[kind], key=lambda one: ([*one.marks], one.item.id))
            text.writelines(one.html() for one in alike)
            text.write("</div></section>\n")
        text.write('</main>\n<script type="application/json" id="texts">[\n')
        text.write(",\n".join(searched))
        text.write(f"\n]</script>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n")


def _cards(
    folder: Path, selection: Selection, rows: Rows, items: Mapping[str, Item]
) -> tuple[dict[str, list[_Card]], int]:
    """Return the cards of each kind, still without thumbnails, and their bytes."""
    cards: dict[str, list[_Card]] = {}
    used = 0
    # Failures leave half of what the sample leaves to flagged rows.
    for kind, share in ((_OTHERS, 1.0), (FAILED, 0.5), (_FLAGGED, 1.0)):
        until = used + share * (_CARDS_BYTES - used)
        cards[kind] = []
        for id, flags in selection.of(kind)[: SAMPLE if kind == _OTHERS else None]:
            row = rows.get(id)
            marks = flags
            if kind == FAILED:
                marks = [f"{row['error']['code']} {row['error']['kind']}"]
            card = _Card(items[id], _link(folder, items[id]), marks, _shown(row))
            size = _size(card.html())
            if used + size > until:
                break
            used += size
            cards[kind].append(card)
    return cards, used


def _texts(
    folder: Path,
    ids: Sequence[tuple[str, Sequence[str]]],
    rows: Rows,
    items: Mapping[str, Item],
    room: int,
) -> tuple[list[str], int]:
    """Return rows as JSON for the script, as many as there is room for, and their bytes."""
    texts: list[str] = []
    used = 0
    for id, _ in ids:
        item = items[id]
        entry = [whole_characters(item.id), _link(folder, item), _shown(rows.get(id))]
        # "</script>" or "<!--" in a text would end the script.
        text = json.dumps(entry, ensure_ascii=False).replace("<", "\\u003c")
        size = _size(text) + 2
        if used + size > room:
            break
        used += size
        texts.append(text)
    return texts, used


def _add_thumbnails(cards: Sequence[_Card], room: int) -> int:
    """Add thumbnails to cards while there is room and time; return how many have none."""
    until = time.monotonic() + MAX_THUMBNAILS_S
    done = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        while done < len(cards) and time.monotonic() < until:
            batch = cards[done : done + _AT_A_TIME]
            for card, jpeg in zip(batch, threads.map(_thumbnail, batch), strict=True):
                if jpeg is None:
                    card.thumbnail = card.placeholder("Can't be opened")
                    done += 1
                    continue
                thumbnail = card.image(jpeg)
                room -= _size(thumbnail)
                if room < 0:
                    return len(cards) - done
                card.thumbnail = thumbnail
                done += 1
    return len(cards) - done


def _thumbnail(card: _Card) -> bytes | None:
    """Return a small JPEG file of an image; None if it cannot be opened."""
    try:
        item = card.item
        with opened(item.path if item.source is None else io.BytesIO(item.read())) as file:
            file.draft("RGB", (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))  # a JPEG decodes smaller
            image = with_8_bits(normalized(file))
            if image.mode in ("1", "P"):  # would be reduced without smoothing
                image = image.convert("RGBA")
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            small = io.BytesIO()
            image.convert("RGB").save(small, "JPEG", quality=_JPEG_QUALITY)
            return small.getvalue()
    except Exception:  # noqa: BLE001 - damaged files raise anything, and the page must be written
        return None


def _head(folder: Path, counts: Mapping[str, Any], sentences: Mapping[str, str]) -> Iterator[str]:
    """Yield the beginning of the page: what the job is, and its counts."""
    about = read_fingerprint(folder)
    name = escaped(folder.absolute().name)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode("ascii")
    # Nothing in a text can load or run anything, should it ever be taken for markup.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    facts = {
        "Task": about.get("task"),
        "Vision model": about.get("vision_model"),
        "Text model": about.get("text_model"),
        "Checkpoint": about.get("checkpoint"),
        "Written": time.strftime("%Y-%m-%d %H:%M"),
    }
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{name}: report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1><bdi>{name}</bdi></h1>\n<dl>"
    )
    for title, value in facts.items():
        if value:
            yield f"<div><dt>{title}</dt><dd>{escaped(str(value))}</dd></div>"
    yield '</dl>\n</header>\n<main>\n<dl class="numbers">'
    for title in ("images", DONE, FAILED, "left"):
        yield f"<div><dt>{title}</dt><dd>{counts[title]:,}</dd></div>"
    yield '</dl>\n<div class="counts">\n'
    meanings = {
        flag: says.format(max_tokens=counts["max_tokens"]) for flag, says in MEANINGS.items()
    }
    yield _table("Flags", counts["flags"], meanings)
    yield _table("Errors, with an example", counts["errors"], sentences)
    yield _table("Devices" if "checkpoint" in about else "Servers", counts["by"], {})
    yield "</div>\n"


def _table(title: str, counts: Mapping[str, int], says: Mapping[str, str]) -> str:
    """Return a table of counts by name, the highest first; "" if there are none."""
    if not counts:
        return ""

    def meaning(name: str) -> str:
        return f'<td dir="auto">{escaped(_short(says[name]))}</td>' if name in says else ""

    lines = "".join(
        f"<tr><td>{count:,}</td><th scope=row><bdi>{escaped(name)}</bdi></th>{meaning(name)}</tr>\n"
        for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    )
    return f"<table><caption>{title}</caption>\n{lines}</table>\n"


def _shown(row: Row) -> str:
    return _short(text_of(row) if row["status"] == DONE else row["error"]["message"])


def _short(text: str) -> str:
    text = whole_characters(text.strip())
    return text if len(text) <= _MAX_TEXT_CHARS else f"{text[:_MAX_TEXT_CHARS]}..."


def _link(folder: Path, item: Item) -> str:
    """Return the address of an image: relative to the page if both are below one folder.

    "" for an image that is no file.

    >>> _link(Path("/work/jobs/cats"), Item("a b/#1.png", "/work/sets"))
    '../../sets/a%20b/%231.png'
    >>> _link(Path("/jobs/cats"), Item("a.png", "/sets"))
    'file:///sets/a.png'
    """
    if item.source is not None:
        return ""
    here, path = str(folder.absolute()), os.path.normpath(os.path.join(item.root, item.id))
    try:
        shared = os.path.commonpath([here, path])
    except ValueError:  # two drives
        shared = ""
    try:
        if os.path.dirname(shared) == shared:  # only the root of the disk
            return Path(path).as_uri()
        return quote(os.fsencode(os.path.relpath(path, here).replace(os.sep, "/")))
    except UnicodeError:  # half of a surrogate pair, which no address can hold
        return ""


def escaped(text: str) -> str:
    """Return a text as HTML, of characters that can be encoded."""
    return escape(whole_characters(text))


def _size(text: str) -> int:
    return len(text.encode())
