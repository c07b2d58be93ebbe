"""Repair texts so that they can be written to any file, page or console."""


def whole_characters(text: str) -> str:
    """Return `text` without surrogates: some servers stream emoji as two halves.

    Two halves become their character, a single half becomes U+FFFD: a half cannot be encoded as
    UTF-8.

    >>> whole_characters("a \\ud83d\\ude00") == "a \\U0001f600"
    True
    >>> whole_characters("b \\ud83d")
    'b \ufffd'
    """
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
