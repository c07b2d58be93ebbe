"""File names that are valid on every system."""

from __future__ import annotations

import re
import unicodedata

LONGEST_BYTES = 255
"""The limit of a name on ext4, NTFS (in UTF-16 units, so never more bytes) and APFS."""

NOTHING_LEFT = "image"

_FORBIDDEN = re.compile(r'[<>:"/\\|?*%\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]+')
_DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])(?=\s*(\.|$))",
    re.IGNORECASE,
)


def safe_filename(text: str, *, longest_bytes: int = 120) -> str:
    """Return a file name, without extension, made from a text.

    Letters of all scripts stay. Slashes, characters that Windows forbids, `%` (ComfyUI's own
    placeholders), control characters and line breaks become spaces, and repeated spaces one space.
    Leading and trailing dots and spaces are removed. A name that Windows reserves for a device gets
    a `_` in front. A long name is cut after a word. The same text always gives the same name, and
    a name stays unchanged.

    Args:
        longest_bytes: limit of the name in UTF-8, 8 to 255; leave space for suffixes of nodes.

    Raises:
        ValueError: longest_bytes is out of range.

    >>> safe_filename("A red ball: on snow / at night.\\n")
    'A red ball on snow at night'
    >>> safe_filename("CON.txt"), safe_filename("../../etc/passwd"), safe_filename(" ... ")
    ('_CON.txt', 'etc passwd', 'image')
    """
    if not 8 <= longest_bytes <= LONGEST_BYTES:
        raise ValueError(
            f"longest_bytes is {longest_bytes}, but must be from 8 to {LONGEST_BYTES}."
        )
    plain = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8"))
    name = _tidy(" ".join(_FORBIDDEN.sub(" ", plain).split()))
    name = _shortened(name, longest_bytes)
    if is_device(name):
        name = _shortened("_" + name, longest_bytes)
    return name or NOTHING_LEFT


def is_device(name: str) -> bool:
    """Return whether Windows reserves a file's name for a device, such as con, aux.txt or lpt1."""
    return _DEVICE.match(name) is not None


def _tidy(name: str) -> str:
    # a leading dot hides a file; a leading dash or tilde has a meaning on command lines
    return name.lstrip(". -~").rstrip(". ")


def _shortened(name: str, longest_bytes: int) -> str:
    if len(name.encode()) <= longest_bytes:
        return name
    cut = name.encode()[:longest_bytes].decode("utf-8", "ignore")
    # a combining mark must not be separated from its letter
    while cut and unicodedata.combining(name[len(cut)]):
        cut = cut[:-1]
    words = cut if name[len(cut)] == " " else cut.rpartition(" ")[0]
    return _tidy(words if len(words.encode()) >= longest_bytes // 2 else cut)
