"""The report of a job: what its page shows, how it stays small, and that no text becomes markup."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from image_refinery import jobs
from image_refinery.jobs import flags, page
from image_refinery.jobs.report import write_report
from PIL import Image

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "<!-- <script> \" ' > & &amp; `",
    '" onload="alert(1)',
    "A cat \U0001f408 and half a one \ud83d here.",
    "\u05d7\u05ea\u05d5\u05dc \u202eright to left\u202c",
    "\x00 control \x1b[31m",
]


class Page(HTMLParser):
    """What a browser would find: tags with attributes, texts of cards, and the script's rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[str] = []
        self.texts: list[list[str]] = []
        self._within: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._within.append(tag)
        if tag == "article":
            self.cards.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._within.pop() == tag

    def handle_data(self, data: str) -> None:
        if "article" in self._within:
            self.cards[-1] += data
        if self._within[-1:] == ["script"] and not self.texts and data.startswith("["):
            self.texts = json.loads(data)

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> dict[str, Image.Image]:
        """The thumbnails by their alternative texts."""
        found: dict[str, Image.Image] = {}
        for one in self.of("img"):
            data = one["src"].removeprefix("data:image/jpeg;base64,")
            found[one["alt"]] = Image.open(io.BytesIO(base64.b64decode(data)))
        return found


Rows = list[dict[str, Any]]


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., tuple[Page, dict[str, Any]]]:
    """Write the report of some rows; return its page and its counts."""

    def write(rows: Rows, **options: Any) -> tuple[Page, dict[str, Any]]:
        log = jobs.RowLog(tmp_path / "job", "default")
        for row in rows:
            log.write({"by": "default", **row})
        log.close()
        items = {row["id"]: jobs.Item(row["id"], str(tmp_path / "set")) for row in rows}
        counts = write_report(tmp_path / "job", jobs.Rows(tmp_path / "job"), items, **options)
        return Page((tmp_path / "job" / "report.html").read_bytes().decode("utf-8")), counts

    return write


def done(id: str, text: str, *flags: str) -> dict[str, Any]:
    return {"id": id, "status": "done", "text": text, "flags": list(flags)}


def failed(id: str, message: str) -> dict[str, Any]:
    error = {"kind": "UnusableImage", "code": "R302", "message": message}
    return {"id": id, "status": "failed", "error": error}


def save(folder: Path, name: str, image: Image.Image | None = None, **options: Any) -> None:
    file = folder / "set" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (300, 200), "teal")).save(file, **options)


def test_twenty_images(report: Any, tmp_path: Path) -> None:
    for number in range(20):
        save(tmp_path, f"{number:02}.png")
    rows = [done(f"{number:02}.png", f"Text {number} of an image.") for number in range(18)]
    rows[3]["flags"] = ["opening"]
    rows += [failed("18.png", "It is damaged."), failed("19.png", "It is empty.")]
    manifest = {"task": "describe", "vision_model": "llava:<b>"}
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "manifest.json").write_text(
        json.dumps({"version": "1", "fingerprint": manifest})
    )
    page, counts = report(rows)
    assert json.loads((tmp_path / "job" / "report.json").read_text()) == counts
    assert counts["done"] == 18 and counts["failed"] == 2 and counts["flags"] == {"opening": 1}
    html = (tmp_path / "job" / "report.html").read_text("utf-8")
    assert "<title>job: report</title>" in html and '<html lang="en">' in html
    assert "<dd>describe</dd>" in html and "<dd>llava:&lt;b&gt;</dd>" in html
    assert len(page.cards) == 20 == len(page.pictures()), "all are shown"
    assert page.cards[0] == "18.pngR302 UnusableImageIt is damaged."
    assert page.cards[2] == "03.pngopeningText 3 of an image."
    assert {one.size for one in page.pictures().values()} == {(128, 85)}
    assert page.of("a")[0]["href"] == "../set/18.png"
    assert "limited to" not in html
    assert not list(tmp_path.rglob("*.new"))
    assert not re.search(r"(?:src|href)=.?(?:https?:)?//", html), "nothing external"


@pytest.mark.parametrize(("count", "every"), [(20, 10), (2000, 20)])
def test_all_failures_and_flagged_rows_and_a_sample(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, every: int
) -> None:
    monkeypatch.setattr(page, "SAMPLE", 100)
    save(tmp_path, "0000.jpg")
    for number in range(1, count):
        os.link(tmp_path / "set" / "0000.jpg", tmp_path / "set" / f"{number:04}.jpg")
    rows = [done(f"{number:04}.jpg", f"Number {number} is here. " * 20) for number in range(count)]
    for number in range(0, count, every):
        rows[number]["flags"] = ["refusal"]
        rows[number + 1] = failed(f"{number + 1:04}.jpg", f"Image {number + 1} failed.")
    began = time.monotonic()
    found, _ = report(rows)
    assert time.monotonic() - began < 30
    assert (tmp_path / "job" / "report.html").stat().st_size < page.MAX_BYTES
    marked = {card[:8] for card in found.cards if "refusal" in card or "R302" in card}
    assert marked == {f"{number:04}.jpg" for number in range(count) if number % every < 2}
    others = count - len(marked)
    assert len(found.cards) == len(marked) + min(100, others) == len(found.of("img"))
    names = {card[:8] for card in found.cards} | {name for name, _, _ in found.texts}
    assert len(names) == count, "each text can be searched"
    again, _ = report(rows)
    assert again.cards == found.cards, "the sample is the same"
    first, second = (sum(card[:8] < f"{count // 2:04}" for card in found.cards), len(found.cards))
    assert 0.4 < first / second < 0.6, "and from the whole job"


def test_a_page_stops_before_its_limit(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MAX_BYTES", 400_000)
    monkeypatch.setattr(page, "_CARDS_BYTES", 60_000)
    monkeypatch.setattr(page, "_SEARCHED_BYTES", 20_000)
    noise = Image.effect_noise((200, 200), 90)
    for number in range(300):
        save(tmp_path, f"{number:03}.jpg", noise)
    rows = [
        done(f"{number:03}.jpg", f"Number {number}. " * 20, "cut") if number % 2
        else failed(f"{number:03}.jpg", f"Number {number}. " * 20)
        for number in range(300)
    ]  # fmt: skip
    found, _ = report(rows)
    file = tmp_path / "job" / "report.html"
    assert 300_000 < file.stat().st_size < 400_000
    (note,) = re.findall(
        r"so ([\d,]+) rows have no thumbnail and ([\d,]+) failed", file.read_text()
    )
    shown = len(found.cards)
    assert int(note[0]) == shown - len(found.of("img")) > 0
    assert int(note[1]) == 300 - shown > 0
    kinds = ["R302" in card for card in found.cards]
    assert 0 < sum(kinds) < shown, "neither kind takes all"


def test_texts_stay_texts(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SAMPLE", 2)
    rows: Rows = []
    for number, text in enumerate(HOSTILE):
        rows.append(done(f"{number}-{text}-a.png", text))
        rows.append(done(f"{number}-{text}-b.png", f"{text} flagged", text))
        rows.append(failed(f"{number}-{text}-c.png", text))
    save(tmp_path, "x.png")
    monkeypatch.setattr(page, "_thumbnail", lambda card: (tmp_path / "set/x.png").read_bytes())
    found, counts = report(rows)
    assert counts["images"] == 21 and counts["failed"] == 7
    assert [one.get("type") for one in found.of("script")] == ["application/json", None]
    assert all(set(one) == {"src", "alt"} for one in found.of("img"))
    assert all(set(one) <= {"href"} for one in found.of("a"))
    assert len(found.texts) == 5 and len(found.cards) == 16
    everything = "".join(found.cards) + "".join(text for _, _, text in found.texts)
    for text in HOSTILE:
        assert text.replace("\ud83d", "\ufffd").strip() in everything


def test_images_that_cannot_be_opened(report: Any, tmp_path: Path) -> None:
    save(tmp_path, "big.png", Image.new("1", (20_000, 20_000)))
    (tmp_path / "set" / "text.png").write_text("no image")
    rows = [done(name, f"About {name}.") for name in ("missing.png", "big.png", "text.png")]
    found, _ = report(rows)
    assert not found.of("img")
    assert len(found.cards) == 3
    assert all(card.startswith("Can't be opened") for card in found.cards)
    labels = {one["aria-label"] for one in found.of("span")}
    assert labels == {row["text"] for row in rows}


def test_thumbnails_are_upright_and_opaque(report: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.new("RGB", (1200, 600), "red")
    photo.paste("blue", (0, 0, 600, 600))
    save(tmp_path, "turned.jpg", photo, exif=exif)
    save(tmp_path, "clear.png", Image.new("RGBA", (300, 300)))
    save(tmp_path, "gray.png", Image.new("I;16", (300, 100), 65535))
    palette = Image.new("P", (64, 32))
    save(tmp_path, "palette.gif", palette)
    names = ("turned.jpg", "clear.png", "gray.png", "palette.gif")
    found, _ = report([done(name, f"A view of {name}.") for name in names])
    pictures = {alt.split()[-1].strip("."): one for alt, one in found.pictures().items()}
    turned = pictures["turned.jpg"].convert("RGB")
    assert turned.size == (64, 128)
    top, bottom = turned.getpixel((32, 10)), turned.getpixel((32, 118))
    assert top[2] > 200 > top[0] + 100 and bottom[0] > 200 > bottom[2] + 100  # type: ignore[index]
    assert pictures["clear.png"].getpixel((5, 5)) == (255, 255, 255)
    assert pictures["gray.png"].size == (128, 43)
    assert pictures["gray.png"].getpixel((5, 5)) == (255, 255, 255)
    assert pictures["palette.gif"].size == (64, 32), "none is enlarged"


def test_time_is_limited_too(report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_THUMBNAILS_S", 0.0)
    save(tmp_path, "a.png")
    found, _ = report([done("a.png", "A wall of teal.")])
    assert found.cards == ["No thumbnaila.pngA wall of teal."]
    assert "so 1 rows have no thumbnail" in (tmp_path / "job" / "report.html").read_text()


def test_an_image_that_is_no_file(tmp_path: Path) -> None:
    class Archive:
        def read(self, id: str) -> bytes:
            file = io.BytesIO()
            Image.new("RGB", (300, 200), "teal").save(file, "PNG")
            return file.getvalue()

        def caption(self, id: str) -> bytes:
            return b""

    log = jobs.RowLog(tmp_path, "default")
    log.write({"by": "default", **done("a.png", "A wall of teal.")})
    log.close()
    items = {"a.png": jobs.Item("a.png", "shard.tar", Archive())}
    write_report(tmp_path, jobs.Rows(tmp_path), items)
    found = Page((tmp_path / "report.html").read_text("utf-8"))
    assert len(found.of("img")) == 1 and found.of("a") == [{}]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf_8(report: Any, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 #1.png")
    save(tmp_path, name)
    found, _ = report([done(name, "A wall of teal.")])
    assert len(found.of("img")) == 1
    assert found.of("a")[0]["href"] == "../set/caf%E9%20%231.png"


def test_a_text_of_several_images_is_a_duplicate(report: Any) -> None:
    rows = [
        done("a.png", "A red  ball\non snow."),
        done("b.png", "a RED ball on snow. "),
        done("c.png", "A red ball on the snow."),
        failed("d.png", "A red ball on snow."),
        done("e.png", "I cannot.", "refusal"),
        done("f.png", "I cannot.", "refusal"),
    ]
    found, counts = report(rows)
    assert counts["flags"] == {"duplicate": 4, "refusal": 2}
    assert counts["done"] == 5
    marked = {re.findall(r"(.\.png)", card)[0] for card in found.cards if "duplicate" in card}
    assert marked == {"a.png", "b.png", "e.png", "f.png"}


def test_the_quick_count_is_never_below_the_exact_one() -> None:
    chance = random.Random(0)
    signs = "aZ \n\u00a09'\u2019s_-,.&;\u00e9\u0301\u00b2\U0001f408\u732b\ufb2c"
    for _ in range(3000):
        text = "".join(chance.choices(signs, k=chance.randrange(40)))
        assert flags.least_tokens(text) <= flags._most_pieces(text)


def test_long_texts_are_flagged(report: Any) -> None:
    rows = [done("a.png", "word " * 225), done("b.png", "word, " * 113), done("c.png", "x" * 999)]
    assert report(rows)[1]["flags"] == {"long": 1}
    assert report(rows, max_tokens=224)[1]["flags"] == {"long": 2}
    assert report(rows, max_tokens=300)[1] | {"by": {}} == {
        "images": 3,
        "done": 3,
        "failed": 0,
        "left": 0,
        "flags": {},
        "errors": {},
        "by": {},
        "max_tokens": 300,
    }


def test_the_default_of_the_command_is_that_of_the_report(capsys: Any) -> None:
    from image_refinery.cli.main import main

    with pytest.raises(SystemExit):
        main(["batch", "-h"])
    assert f"tokens of CLIP (default: {flags.MAX_TOKENS})" in " ".join(
        capsys.readouterr().out.split()
    )
