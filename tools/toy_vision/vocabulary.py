"""The decoder's tokens: four marks, the 256 bytes, and the words of the sentences about scenes.

The bytes let llama.cpp tokenize whatever a prompt holds; sentences are made of words alone.
"""

from __future__ import annotations

from scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene

BOS, EOS, PAD, SCENE = "<|start|>", "<|end|>", "<|pad|>", "<|scene|>"
NO_IMAGE = "No image was given."


def byte_letters() -> list[str]:
    """Return GPT-2's printable letter for each byte: itself where printable, else from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable}
    letters.update({byte: chr(0x100 + i) for i, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]


def _words() -> list[str]:
    places = [f" {'in' if place == 'center' else 'at'} the {place}" for place in PLACES]
    backgrounds = [f" {background}" for background in BACKGROUNDS]
    words = [" a", " and", " on a", " background.", NO_IMAGE]
    for group in (SIZES, COLORS, SHAPES):
        words += [f" {word}" for word in group]
    words += places
    return words + [word for word in backgrounds if word not in words]


MARKS = [BOS, EOS, PAD, SCENE]
WORDS = _words()
# The tokenizer needs one merge at least; it joins these two letters.
MERGED = ("q", "u")
FIRST_BYTE = len(MARKS)
FIRST_WORD = FIRST_BYTE + 256 + 1
SIZE = FIRST_WORD + len(WORDS)

BOS_ID, EOS_ID, PAD_ID, SCENE_ID = range(4)


def token_texts() -> list[str]:
    """Return every token as a GGUF file of model gpt2 spells it, in the order of the ids."""
    letters = byte_letters()
    spelled = ["".join(letters[byte] for byte in word.encode()) for word in WORDS]
    return [*MARKS, *letters, "".join(MERGED), *spelled]


def word_id(word: str) -> int:
    """Return the id of one of WORDS or of a single ASCII character; ValueError for any other."""
    if len(word) == 1 and word.isascii():
        return FIRST_BYTE + ord(word)
    return FIRST_WORD + WORDS.index(word)


def encode(scene: Scene) -> list[int]:
    """Return the ids that spell `describe(scene)`, EOS last."""
    words: list[str] = []
    for index, o in enumerate(scene.objects):
        if index == 0:
            words.append("A")
        elif index == len(scene.objects) - 1:
            words += [" and", " a"]
        else:
            words += [",", " a"]
        preposition = "in" if o.place == "center" else "at"
        words += [f" {o.size}", f" {o.color}", f" {o.shape}", f" {preposition} the {o.place}"]
    words += [",", " on a", f" {scene.background}", " background."]
    return [word_id(word) for word in words] + [EOS_ID]


def decode(ids: list[int]) -> str:
    """Return the text that ids spell up to the first EOS; marks and odd bytes show as "?"."""
    kept = ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
    return "".join(_spell(i) for i in kept)


def _spell(i: int) -> str:
    if i >= FIRST_WORD:
        return WORDS[i - FIRST_WORD]
    return chr(i - FIRST_BYTE) if 32 <= i - FIRST_BYTE < 127 else "?"
