"""Texts that every file, page and console can hold."""


def whole_characters(text: str) -> str:
    """Return `text` with no half of a surrogate pair, as some servers stream emoji.

    Two halves become their character, and what is left alone becomes U+FFFD: no half can be
    written as UTF-8.

    >>> whole_characters("a \\ud83d\\ude00") == "a \\U0001f600"
    True
    >>> whole_characters("b \\ud83d")
    'b \ufffd'
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
