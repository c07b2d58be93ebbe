"""Answers of real llama.cpp: streams, counts, seeds, options, images, formats, thinking."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from image_refinery.llm.errors import ContextTooLong, EmptyAnswer, UnexpectedResponse

pytestmark = pytest.mark.embedded


def test_pieces_put_together_are_the_answer(shared: Any) -> None:
    pieces: list[str] = []
    stream = shared.start("tiny", options={"num_predict": 5})
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            answer = end.value
            break
    assert len(pieces) == answer.answer_tokens == 5
    assert "".join(pieces).strip() == answer.text
    assert answer.done_reason == "length"


def test_counts_and_durations(shared: Any) -> None:
    started = time.monotonic()
    answer = shared.chat("tiny", "hello")
    took_s = time.monotonic() - started
    # One token per character: <|im_start|> user \n hello <|im_end|> \n <|im_start|> assistant \n
    assert answer.prompt_tokens == len("user\nhello\nassistant\n") + 3
    assert answer.answer_tokens == 8
    assert answer.prompt_s > 0 and answer.answer_s > 0
    assert answer.prompt_s + answer.answer_s <= answer.total_s <= took_s


def test_a_seed_gives_the_same_text_twice_and_another_seed_others(shared: Any) -> None:
    options = {"num_predict": 40, "temperature": 1.0}
    first = shared.say("tiny", options={**options, "seed": 7})
    shared.say("tiny", "something else in between", options={**options, "seed": 8})
    assert shared.say("tiny", options={**options, "seed": 7}) == first
    assert shared.say("tiny", options={**options, "seed": 8}) != first


def test_a_seed_means_the_same_after_a_load(shared: Any) -> None:
    options = {"num_predict": 40, "temperature": 1.0, "seed": 7}
    first = shared.say("tiny", options=options)
    shared.engine.unload("tiny")
    assert shared.say("tiny", options=options) == first


def test_without_a_seed_answers_differ(shared: Any) -> None:
    options = {"num_predict": 40, "temperature": 1.0, "seed": -1}
    assert len({shared.say("tiny", options=options) for _ in range(3)}) == 3


def test_seeds_beyond_32_bits_are_accepted(shared: Any) -> None:
    options = {"num_predict": 40, "temperature": 1.0, "seed": 2**63 - 1}
    assert shared.say("tiny", options=options)


def test_stop_ends_the_answer_before_the_word(shared: Any) -> None:
    options = {"num_predict": 30, "temperature": 0}
    text = shared.say("tiny", options=options)
    stop = text[10:13]
    answer = shared.chat("tiny", options={**options, "stop": [stop]})
    assert answer.text == text[: text.index(stop)].strip()
    assert answer.done_reason == "stop"


def test_temperature_zero_ignores_the_seed(shared: Any) -> None:
    texts = {
        shared.say("tiny", options={"temperature": 0, "seed": seed, "num_predict": 30})
        for seed in range(3)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_make_repetition_rarer(shared: Any, penalty: str) -> None:
    options = {"temperature": 0, "num_predict": 60}
    plain = shared.say("tiny", options=options)
    varied = shared.say("tiny", options={**options, penalty: 2.0})
    assert len(set(varied)) > len(set(plain))


def test_num_predict_without_a_limit_ends_at_the_context(shared: Any) -> None:
    answer = shared.chat("tiny", options={"num_predict": -1, "num_ctx": 256})
    assert answer.context_full and answer.done_reason == "length"
    assert answer.prompt_tokens + answer.answer_tokens == 256


def test_earlier_messages_count(shared: Any) -> None:
    options = {"temperature": 0, "num_predict": 20}
    system = {"role": "system", "content": "be brief"}
    question = {"role": "user", "content": "hello"}
    with_system = shared.say("tiny", messages=[system, question], options=options)
    assert with_system != shared.say("tiny", messages=[question], options=options)


def test_a_prompt_beyond_the_context_is_an_error_that_says_so(shared: Any) -> None:
    with pytest.raises(ContextTooLong, match=r"1019 tokens\) exceeds .* \(512 tokens"):
        shared.chat("tiny", "x" * 1000, options={"num_ctx": 512})
    assert "tiny" in shared.ps(), "a refusal unloads nothing"


def test_the_trained_length_is_the_longest_context(shared: Any) -> None:
    with pytest.raises(ContextTooLong, match=r"\(4096 tokens"):
        shared.chat("tiny", "x" * 5000, options={"num_ctx": 100_000})


def test_an_option_of_the_wrong_type_is_refused_in_llama_cpps_words(shared: Any) -> None:
    with pytest.raises(UnexpectedResponse, match="type must be number, but is string"):
        shared.chat("tiny", options={"temperature": "hot"})


def test_images_are_seen_and_not_mixed_up(shared: Any, image: Callable[..., str]) -> None:
    options = {"temperature": 0, "num_predict": 30}

    def look(*images: str) -> str:
        return shared.say("tiny-vision", "what", images=list(images), options=options)

    red, blue = image("red"), image("blue")
    seen_red, seen_blue = look(red), look(blue)
    assert seen_red != seen_blue
    assert look(red) == seen_red  # no image of the request before in a cache
    assert look(red, blue) != look(blue, red)
    assert len({look(red), look(), look(red, red)}) == 3


def test_image_tokens_are_counted_and_jpeg_works(shared: Any, image: Callable[..., str]) -> None:
    without = shared.chat("tiny-vision", "what").prompt_tokens
    jpeg = image("green", size=(90, 50), kind="JPEG")
    with_one = shared.chat("tiny-vision", "what", images=[jpeg]).prompt_tokens
    assert with_one >= without + 16  # 64 x 64 pixels in patches of 16


def test_an_image_in_an_earlier_message(shared: Any, image: Callable[..., str]) -> None:
    def talk(color: str) -> str:
        messages = [
            {"role": "user", "content": "look", "images": [image(color)]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "which color"},
        ]
        options = {"temperature": 0, "num_predict": 30}
        return shared.say("tiny-vision", messages=messages, options=options)

    assert talk("red") != talk("blue")


@pytest.mark.parametrize("damaged", ["iVBORw0KGgo=", "no base64", "R0lGODlhAQABAAAAACw="])
def test_a_damaged_image_is_an_error(shared: Any, image: Callable[..., str], damaged: str) -> None:
    with pytest.raises(UnexpectedResponse, match="The embedded engine answered 400"):
        shared.chat("tiny-vision", images=[damaged])
    assert shared.say("tiny-vision", images=[image("red")])


def test_a_json_schema_binds_the_answer(shared: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}, "n": {"type": "boolean"}},
        "required": ["color", "n"],
        "additionalProperties": False,
    }
    for seed in range(3):
        options = {"num_predict": 400, "seed": seed}
        answer = json.loads(shared.say("tiny", format=schema, options=options))
        assert answer["color"] in ("red", "blue")
        assert answer["n"] in (True, False)


def test_json_format_begins_an_object(shared: Any) -> None:
    assert shared.say("tiny", format="json", options={"num_predict": 20}).startswith("{")


def test_a_schema_that_is_none_is_an_error(shared: Any) -> None:
    with pytest.raises(UnexpectedResponse, match="nonsense"):
        shared.chat("tiny", format={"type": "nonsense"})


@pytest.mark.parametrize("think", [True, "low"])
def test_thinking_is_kept_apart_from_the_answer(shared: Any, think: Any) -> None:
    with pytest.raises(EmptyAnswer, match="it used up num_predict for thinking"):
        shared.chat("thinker", think=think)


@pytest.mark.parametrize("think", [None, False])
def test_thinking_can_be_switched_off(shared: Any, think: Any) -> None:
    answer = shared.chat("thinker", think=think)
    assert answer.thinking == ""
    assert len(answer.text) >= 4
    assert shared.say("tiny", think=think)  # never an error
