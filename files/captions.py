"""Caption files: the picture's own name, ending in .txt, beside it."""

from __future__ import annotations

from pathlib import Path

from ..texts.characters import whole_characters

EXISTING = ("skip", "overwrite", "append")


def caption_file(picture: Path) -> Path:
    """
    >>> caption_file(Path("cats/one.two.png")).as_posix()
    'cats/one.two.txt'
    """
    return picture.with_suffix(".txt")


def write_caption(
    file: Path, text: str, *, prefix: str = "", suffix: str = "", existing: str = "overwrite"
) -> bool:
    """Write a caption in UTF-8, making its folder; return whether anything was written.

    Args:
        prefix, suffix: put before and after the text as they are, such as trigger words.
        existing: what to do where the file exists: "skip", "overwrite", or "append" in a new line.

    Raises:
        ValueError: `existing` is none of these.
        UnicodeDecodeError: there is something to append to, but not in UTF-8.
        OSError: the file cannot be written.
    """
    if existing not in EXISTING:
        raise ValueError(f'existing is "{existing}", but must be one of {list(EXISTING)}.')
    caption = f"{prefix}{text.strip()}{suffix}"
    if file.exists():
        if existing == "skip":
            return False
        if existing == "append" and (before := file.read_text("utf-8").rstrip()):
            caption = f"{before}\n{caption}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(whole_characters(caption), "utf-8", newline="\n")
    return True
