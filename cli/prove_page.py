"""The page of `image-refinery prove`: one file without anything external."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..jobs.page import STYLE, escaped
from ..memory.report import readable

_HAND_IN = "docs/quality/machines/README.md"
_MEASURES = {
    "ssim": ("SSIM", "1 is equal"),
    "gmsd": ("GMSD", "0 is equal"),
    "haarpsi": ("HaarPSI", "1 is equal"),
}
_PARTS = {"vision": "Vision model", "text": "Text model", "refiner": "Refiner"}
_IMAGES = ("original", "damaged", "refined")
_TIMES = ("describe", "rewrite", "refine")
_KINDS = ("load", "work", "unload")
_WIDTH, _HEIGHT, _LANE, _BAR = 1000, 160, 44, 16
_MIN_BAR = 2.0
"""So that an unload of a moment can be seen."""

_OWN_STYLE = """
.timeline { width: 100%; height: auto; margin: .5rem 0 1rem; }
.timeline text { fill: var(--soft); font-size: 13px; }
.curve { fill: var(--link); fill-opacity: .2; stroke: var(--link); stroke-width: 1.5; }
.load { fill: #d9822b; } .unload { fill: #c0392b; } .work { fill: #2a8f6d; }
.key { display: inline-block; width: .8em; height: .8em; margin-inline: .75rem .35rem; }
.wide { overflow-x: auto; overflow-wrap: normal; }
.wide table { width: auto; min-width: 60%; }
.wide th:not(:last-child), .wide td:first-child { width: auto; }
.wide th:not(:first-child), .wide td:not(:first-child) { text-align: end; white-space: nowrap; }
.wide th, .wide td { padding: .375rem 1.25rem .375rem 0; }
.wide td:first-child { text-align: start; }
.wide td { color: inherit; font-variant-numeric: tabular-nums; }
.note ul { margin: .25rem 0 0; padding-inline-start: 1.25rem; }
header + main > .note { margin-top: 1.5rem; }
h4 { margin: 1rem 0 .25rem; }
h4 + p { margin: 0; }
.photo { margin-bottom: 2.5rem; }
.photo .images { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; }
.photo > small { display: block; margin-bottom: .5rem; }
.photo figure { margin: 0; }
.photo figcaption { color: var(--soft); font-size: .8125rem; }
.photo img { display: block; width: 100%; }
.photo .crop { aspect-ratio: 1; image-rendering: pixelated; }
.photo figure, .photo .crop { min-width: 0; }
.photo p { max-width: 60rem; white-space: pre-line; }
.tag { padding: 0 .5rem; border-radius: 99px; background: var(--mark); color: var(--mark-ink);
  font-size: .75rem; font-weight: normal; }
"""


def texts_of(row: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the texts of a photograph, whoever wrote them."""
    return row.get("texts") or row.get("texts_by_stand_in") or {}


def page_of(proof: Mapping[str, Any], images: Mapping[int, Sequence[str]]) -> str:
    """Return the page.

    Args:
        proof: what `proof.json` holds.
        images: for each photograph the addresses of the original, the damaged and the refined
            image, and of a crop of each.
    """
    return "".join(_parts(proof, images))


def _parts(proof: Mapping[str, Any], images: Mapping[int, Sequence[str]]) -> Iterator[str]:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>Image Refinery: proof</title>\n<style>{STYLE}{_OWN_STYLE}</style>\n</head>\n"
        "<body>\n<header>\n<h1>Image Refinery on this machine</h1>\n<dl>"
    )
    for name, value in _facts(proof):
        yield f"<div><dt>{name}</dt><dd>{escaped(value)}</dd></div>"
    yield "</dl>\n</header>\n<main>\n"
    if proof["missing"]:
        yield '<div class="note">Missing:<ul>'
        yield from (f"<li>{escaped(text)}</li>" for text in proof["missing"])
        yield "</ul></div>\n"
    yield "<h2>Who held the memory</h2>\n"
    yield _drawn(proof)
    yield _table(
        ["Model", "What", "From, s", "To, s", "Took, s", "Memory at the end", "Peak", "Gone"],
        [_period_cells(period) for period in proof["timeline"]],
    )
    if proof["peaks"]:
        yield "<h2>Memory modes of the refiner</h2>\n"
        yield _table(["Mode", "Peak", "Seconds"], [_peak_cells(peak) for peak in proof["peaks"]])
    yield "<h2>Measures against the undamaged photograph</h2>\n"
    yield f"<p>The damage: {escaped(proof['damage'])}. {_better()}</p>\n"
    for key, title in (("refined", ""), ("refined_by_stand_in", _tag())):
        if rows := [row for row in proof["photos"] if key in row]:
            yield _measures(rows, key, title)
    yield "<h2>Photographs</h2>\n"
    for index, row in enumerate(proof["photos"]):
        yield _photo(row, images.get(index, ()))
    yield f"<p>How to hand this in: <code>{_HAND_IN}</code>.</p>\n</main>\n</body>\n</html>\n"


def _facts(proof: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what ran where."""
    system, gpu = proof["system"], proof["gpu"]
    total = gpu and gpu["memory_bytes"]
    yield "GPU", f"{gpu['name']}{f', {readable(total)}' if total else ''}" if gpu else "none"
    for part, title in _PARTS.items():
        if about := proof["models"].get(part):
            size = about.get("size_bytes")
            server = f", {about['server']}" if about.get("server") else ""
            note = " (a stand-in)" if about.get("stand_in") else ""
            yield title, f"{about['name']}{f', {readable(size)}' if size else ''}{server}{note}"
    packages = ", ".join(f"{name} {version}" for name, version in system["packages"].items())
    yield "System", f"{system['os']}, Python {system['python']}, {packages}"
    yield "Written by", f"{proof['software']}, {proof['date']}"


def _tag() -> str:
    return '<span class="tag">by a stand-in: no evidence for the real model</span>'


def _better() -> str:
    scales = "; ".join(f"{title}: {scale}" for title, scale in _MEASURES.values())
    return f"{scales}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table of cells that are HTML already."""
    names = "".join(f"<th scope=col>{name}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}\n<tr>{names}</tr>\n{body}</table></div>\n'


def _period_cells(period: Mapping[str, Any]) -> list[str]:
    tag = ' <span class="tag">stand-in</span>' if period["stand_in"] else ""
    gone = {True: "yes", False: "no", None: ""}[period["gone"]]
    return [
        f"{escaped(period['who'])}{tag}",
        escaped(period["what"]),
        f"{period['start_s']:.1f}",
        f"{period['end_s']:.1f}",
        f"{period['end_s'] - period['start_s']:.2f}",
        readable(period["end_bytes"]),
        readable(period["peak_bytes"]),
        gone,
    ]


def _peak_cells(peak: Mapping[str, Any]) -> list[str]:
    if "error" in peak:
        return [escaped(peak["mode"]), escaped(peak["error"]), ""]
    return [escaped(peak["mode"]), readable(peak["peak_bytes"]), f"{peak['seconds']:.1f}"]


def _measures(rows: Sequence[Mapping[str, Any]], key: str, caption: str) -> str:
    """Return the table of measures, with their means."""
    titles = [title for title, _ in _MEASURES.values()]
    head = ["Photograph"]
    head += [f"{title}, {what}" for title in titles for what in ("damaged", "refined")]

    def cells(value: Callable[[str, str], float]) -> list[str]:
        return [f"{value(one, name):.4f}" for name in _MEASURES for one in ("damaged", key)]

    lines = [
        [escaped(row["photo"]), *cells(lambda one, name, row=row: row[one][name])] for row in rows
    ]
    if len(rows) > 1:
        mean = cells(lambda one, name: sum(row[one][name] for row in rows) / len(rows))
        lines.append([f"<b>Mean of {len(rows)}</b>", *mean])
    return _table(head, lines, caption)


def _photo(row: Mapping[str, Any], images: Sequence[str]) -> str:
    """Return a photograph with its texts, errors and times."""
    took = [f"{name} {row['seconds'][name]:.1f} s" for name in _TIMES if name in row["seconds"]]
    about = ", ".join([*([row["license"]] if row["license"] else []), *took])
    parts = [f'<section class="photo"><h3><bdi>{escaped(row["photo"])}</bdi></h3>']
    parts.append(f"<small>{escaped(about)}</small>")
    parts += [f'<p class="note">{escaped(text)}</p>' for text in row["errors"]]
    if images:
        tags = ("", "", f" {_tag()}" if "refined_by_stand_in" in row else "")
        parts.append('<div class="images">')
        for name, tag, url in zip(_IMAGES, tags, images[:3], strict=True):
            image = f'<img src="{escaped(url)}" alt="{name}">'
            parts.append(f"<figure>{image}<figcaption>{name}{tag}</figcaption></figure>")
        for name, url in zip(_IMAGES, images[3:], strict=True):
            parts.append(f'<img class="crop" src="{escaped(url)}" alt="{name}, a part of it">')
        parts.append("</div>")
    tag = f" {_tag()}" if "texts_by_stand_in" in row else ""
    for name, text in texts_of(row).items():
        parts.append(f'<h4>{name.capitalize()}{tag}</h4><p dir="auto">{escaped(text)}</p>')
    return "".join([*parts, "</section>\n"])


def _drawn(proof: Mapping[str, Any]) -> str:
    """Return the timeline: a lane for each model, and below them the memory in use."""
    samples, periods = proof["samples"], proof["timeline"]
    if not periods:
        return "<p>Nothing ran.</p>\n"
    until = max(samples[-1][0], periods[-1]["end_s"]) or 1.0
    most = max(size for _, size in samples) or 1
    lanes = list(dict.fromkeys(period["who"] for period in periods))
    top = _LANE * len(lanes)
    floor = top + _HEIGHT

    def x(seconds: float) -> float:
        return round(_WIDTH * seconds / until, 1)

    parts = [
        f'<text x="0" y="{_LANE * lane + 15}">{escaped(who)}</text>'
        for lane, who in enumerate(lanes)
    ]
    for period in periods:
        left = x(period["start_s"])
        wide = max(_MIN_BAR, x(period["end_s"]) - left)
        kind = period["what"] if period["what"] in _KINDS else "work"
        parts.append(
            f'<rect class="{kind}" x="{left}" y="{_LANE * lanes.index(period["who"]) + 20}" '
            f'width="{wide:.1f}" height="{_BAR}"><title>{escaped(period["what"])}</title></rect>'
        )
    points = " ".join(f"{x(at)},{floor - _HEIGHT * size / most:.1f}" for at, size in samples)
    area = f"{x(samples[0][0])},{floor} {points} {x(samples[-1][0])},{floor}"
    keys = "".join(
        f'<svg class="key" viewBox="0 0 1 1"><rect class="{kind}" width="1" height="1"/></svg>'
        f"{kind}"
        for kind in _KINDS
    )
    memory = proof["memory"]
    return (
        f"<p>{keys}</p>\n"
        f'<svg class="timeline" viewBox="0 0 {_WIDTH} {floor + 20}" role="img" '
        'aria-label="Which model worked when, and the memory in use">'
        f'{"".join(parts)}<polygon class="curve" points="{area}"/>'
        f'<text x="0" y="{floor + 16}">0 s</text>'
        f'<text x="{_WIDTH}" y="{floor + 16}" text-anchor="end">{until:.1f} s</text></svg>\n'
        f"<p>{escaped(memory['of'])}: at most {readable(most)} of "
        f"{readable(memory['total_bytes'])}.</p>\n"
    )
