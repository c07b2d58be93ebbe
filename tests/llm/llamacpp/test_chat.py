"""Answers of real llama.cpp: streams, counts, seeds, options, images, formats, thinking."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.embedded


def lines_of(response: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in response.iter_lines()]


def test_a_stream_is_ollamas(shared_api: Any) -> None:
    body = shared_api.body("tiny", options={"num_predict": 5})
    response = shared_api.post("/api/chat", body, stream=True)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    *pieces, last = lines_of(response)
    assert len(pieces) == 5
    for piece in pieces:
        assert piece["done"] is False
        assert piece["model"] == "tiny"
        assert piece["created_at"].endswith("Z")
        assert piece["message"]["role"] == "assistant"
        assert len(piece["message"]["content"]) >= 1
    assert last["done"] is True
    assert last["done_reason"] == "length"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["eval_count"] == 5


def test_whole_answers_are_the_stream_put_together(shared_api: Any) -> None:
    response = shared_api.post("/api/chat", shared_api.body("tiny"), stream=True)
    streamed = "".join(line["message"]["content"] for line in lines_of(response))
    assert len(streamed) >= 8
    assert shared_api.say("tiny") == streamed


def test_counts_and_durations(shared_api: Any) -> None:
    started = time.monotonic()
    answer = shared_api.chat("tiny", "hello")
    took_ns = (time.monotonic() - started) * 1e9
    # One token per character: <|im_start|> user \n hello <|im_end|> \n <|im_start|> assistant \n
    assert answer["prompt_eval_count"] == len("user\nhello\nassistant\n") + 3
    assert answer["eval_count"] == 8
    parts = ("load_duration", "prompt_eval_duration", "eval_duration")
    assert all(answer[part] > 0 for part in parts)
    assert sum(answer[part] for part in parts) <= answer["total_duration"] <= took_ns


def test_load_duration_is_the_load(shared_api: Any) -> None:
    shared_api.load("tiny", keep_alive=60)
    # The least of three: one may meet a pause of the machine.
    warm = min(shared_api.chat("tiny")["load_duration"] for _ in range(3))
    cold = shared_api.chat("tiny", options={"num_ctx": 512})["load_duration"]
    assert cold > 10 * warm


def test_a_seed_gives_the_same_words_and_another_seed_others(shared_api: Any) -> None:
    options = {"num_predict": 40, "temperature": 1.0}
    first = shared_api.say("tiny", options={**options, "seed": 7})
    shared_api.say("tiny", "something else in between", options={**options, "seed": 8})
    assert shared_api.say("tiny", options={**options, "seed": 7}) == first
    assert shared_api.say("tiny", options={**options, "seed": 8}) != first


def test_without_a_seed_answers_differ(shared_api: Any) -> None:
    options = {"num_predict": 40, "temperature": 1.0, "seed": -1}
    assert len({shared_api.say("tiny", options=options) for _ in range(3)}) == 3


def test_seeds_beyond_32_bits_are_accepted(shared_api: Any) -> None:
    options = {"num_predict": 40, "temperature": 1.0, "seed": 2**63 - 1}
    assert shared_api.say("tiny", options=options) == shared_api.say("tiny", options=options)


def test_stop_ends_the_answer_before_the_word(shared_api: Any) -> None:
    options = {"num_predict": 30, "temperature": 0}
    text = shared_api.say("tiny", options=options)
    stop = text[10:13]
    answer = shared_api.chat("tiny", options={**options, "stop": [stop]})
    assert answer["message"]["content"] == text[: text.index(stop)]
    assert answer["done_reason"] == "stop"


def test_temperature_zero_ignores_the_seed(shared_api: Any) -> None:
    texts = {
        shared_api.say("tiny", options={"temperature": 0, "seed": seed, "num_predict": 30})
        for seed in range(3)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_make_repetition_rarer(shared_api: Any, penalty: str) -> None:
    options = {"temperature": 0, "num_predict": 60}
    plain = shared_api.say("tiny", options=options)
    varied = shared_api.say("tiny", options={**options, penalty: 2.0})
    assert len(set(varied)) > len(set(plain))


def test_earlier_messages_count(shared_api: Any) -> None:
    options = {"temperature": 0, "num_predict": 20}
    system = {"role": "system", "content": "be brief"}
    user = {"role": "user", "content": "hello"}
    with_system = shared_api.say("tiny", messages=[system, user], options=options)
    assert with_system != shared_api.say("tiny", messages=[user], options=options)


def test_a_prompt_beyond_the_context_is_an_error_that_says_so(shared_api: Any) -> None:
    body = shared_api.body("tiny", "x" * 1000, options={"num_ctx": 512})
    response = shared_api.post("/api/chat", body)
    assert response.status_code == 400
    assert response.json()["error"] == (
        "the prompt is longer than the context length currently available to the model; it has "
        "1019 tokens and num_ctx is 512"
    )


def test_images_are_seen_and_not_mixed_up(shared_api: Any, picture: Callable[..., str]) -> None:
    options = {"temperature": 0, "num_predict": 30}

    def look(*images: str) -> str:
        return shared_api.say("tiny-vision", "what", images=list(images), options=options)

    red, blue = picture("red"), picture("blue")
    seen_red, seen_blue = look(red), look(blue)
    assert seen_red != seen_blue
    assert look(red) == seen_red  # no picture of the request before in a cache
    assert look(red, blue) != look(blue, red)
    assert len({look(red), look(), look(red, red)}) == 3


def test_image_tokens_are_counted_and_jpeg_works(
    shared_api: Any, picture: Callable[..., str]
) -> None:
    without = shared_api.chat("tiny-vision", "what")["prompt_eval_count"]
    image = picture("green", size=(90, 50), kind="JPEG")
    with_one = shared_api.chat("tiny-vision", "what", images=[image])["prompt_eval_count"]
    assert with_one >= without + 16  # 64 x 64 pixels in patches of 16


def test_an_image_in_an_earlier_message(shared_api: Any, picture: Callable[..., str]) -> None:
    def talk(colour: str) -> str:
        messages = [
            {"role": "user", "content": "look", "images": [picture(colour)]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "which colour"},
        ]
        options = {"temperature": 0, "num_predict": 30}
        return shared_api.say("tiny-vision", messages=messages, options=options)

    assert talk("red") != talk("blue")


def test_a_damaged_image_is_an_error(shared_api: Any, picture: Callable[..., str]) -> None:
    broken = picture("red")[:60] + "=" * 0
    response = shared_api.post("/api/chat", shared_api.body("tiny-vision", images=[broken]))
    assert response.status_code == 400
    assert response.json()["error"]
    assert shared_api.say("tiny-vision", images=[picture("red")])


def test_json_schema_binds_the_answer(shared_api: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "boolean"}},
        "required": ["colour", "n"],
        "additionalProperties": False,
    }
    for seed in range(3):
        options = {"num_predict": 400, "seed": seed}
        answer = json.loads(shared_api.say("tiny", format=schema, options=options))
        assert answer["colour"] in ("red", "blue")
        assert answer["n"] in (True, False)


def test_json_format_begins_an_object(shared_api: Any) -> None:
    assert shared_api.say("tiny", format="json", options={"num_predict": 20}).startswith("{")


def test_a_schema_that_is_none_is_an_error(shared_api: Any) -> None:
    body = shared_api.body("tiny", format={"type": "nonsense"})
    response = shared_api.post("/api/chat", body)
    assert response.status_code == 400
    assert "nonsense" in response.json()["error"]


@pytest.mark.parametrize("think", [None, True, "low"])
def test_thinking_comes_apart_from_the_answer(shared_api: Any, think: Any) -> None:
    answer = shared_api.chat("thinker", think=think)
    assert answer["message"]["content"] == ""
    assert len(answer["message"]["thinking"]) >= 7


def test_thinking_can_be_switched_off(shared_api: Any) -> None:
    answer = shared_api.chat("thinker", think=False)
    assert "thinking" not in answer["message"]
    assert len(answer["message"]["content"]) >= 7
    assert shared_api.say("tiny", think=False)  # never an error


def test_unknown_options_are_ignored(shared_api: Any) -> None:
    assert shared_api.say("tiny", options={"mirostat": 1, "low_vram": True})
