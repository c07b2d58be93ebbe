"""Caption files: the image's own name, ending in .txt, beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..texts.characters import whole_characters
from .whole import written_whole

EXISTING = ("skip", "overwrite", "append")

_FOLDS_CASE = sys.platform in ("win32", "darwin")
_ENDS_A_SENTENCE = ".,;:!?\u3002\uff0c\uff01\uff1f"


class NotWritten(ValueError):
    """A file cannot be written."""

    code = "R506"


class NameTaken(ValueError):
    """A file of that name exists already, or belongs to another image of the run."""

    code = "R507"


def caption_file(image: Path) -> Path:
    """
    >>> caption_file(Path("cats/one.two.png")).as_posix()
    'cats/one.two.txt'
    """
    return image.with_suffix(".txt")


def caption_files(images: Sequence[Path], *, full_names: bool = False) -> list[Path | None]:
    """Return the caption file of each image; None if an earlier image already has that file.

    Trainers look for a.txt beside a.png and beside a.jpg, so only one of the two can have it.

    Args:
        full_names: instead of None, use the image's full name for the file.

    >>> images = [Path("a.jpg"), Path("a.png"), Path("b.png")]
    >>> [file and file.name for file in caption_files(images)]
    ['a.txt', None, 'b.txt']
    >>> [file and file.name for file in caption_files(images, full_names=True)]
    ['a.txt', 'a.png.txt', 'b.txt']
    """
    taken: dict[str, Path] = {}
    files: list[Path | None] = []
    for image in images:
        # A list may contain the same image twice: it gets the same file.
        candidates = [caption_file(image)]
        if full_names:
            candidates.append(image.with_name(f"{image.name}.txt"))
        for file in candidates:
            if taken.setdefault(_key(file), image) == image:
                files.append(file)
                break
        else:
            files.append(None)
    return files


def same_name_message(image: str, file: str) -> str:
    """Return why an image for which `caption_files` has no file gets no caption."""
    return (
        f"{image} was left out: another image of this run already has the caption file {file}. "
        "Rename one of the two"
    )


def write_caption(
    file: Path,
    text: str,
    *,
    prefix: str = "",
    suffix: str = "",
    existing: str = "overwrite",
    keep_line_breaks: bool = False,
) -> bool:
    """Write a caption in UTF-8, making its folder; return whether anything was written.

    A program that is killed meanwhile leaves the caption of before.

    The file is one line: kohya's sd-scripts reads only the first line, and OneTrainer treats each
    line as a separate caption, so that a trigger word in the prefix would be missing from the
    others.

    Args:
        prefix, suffix: put before and after the text unchanged, such as trigger words.
        existing: what to do if the file exists: "skip", "overwrite", or "append" at its end.
        keep_line_breaks: keep the text's own line breaks, and append in a new line.

    Raises:
        ValueError: `existing` is none of these.
        UnicodeDecodeError: the file to append to is not in UTF-8.
        OSError: the file cannot be written.
    """
    if existing not in EXISTING:
        raise ValueError(f'existing is "{existing}", but must be one of {list(EXISTING)}.')
    caption = f"{prefix}{text.strip()}{suffix}"
    if file.exists():
        if existing == "skip":
            return False
        if existing == "append" and (before := file.read_text("utf-8").rstrip()):
            separator = "\n" if keep_line_breaks else _separator(before)
            caption = f"{before}{separator}{caption}"
    if not keep_line_breaks:
        caption = one_line(caption)
    with written_whole(file) as text_file:
        text_file.write(whole_characters(caption))
    return True


def one_line(text: str) -> str:
    """Return a text with one space in place of each line break and the spaces around it.

    >>> one_line("ohwx, a cat\\r\\n\\n  on a mat ")
    'ohwx, a cat on a mat '
    """
    first, *others = text.splitlines() or [""]
    for line in others:
        first = " ".join(filter(None, (first.rstrip(), line.lstrip())))
    return first


def _separator(before: str) -> str:
    """Return a space after the end of a sentence, else a comma: captions are sentences or tags."""
    return " " if before[-1] in _ENDS_A_SENTENCE else ", "


def _key(file: Path) -> str:
    """Return a key that is equal for all names of the same file on this system."""
    name = os.path.abspath(file)
    return name.casefold() if _FOLDS_CASE else name
