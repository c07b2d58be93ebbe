"""The scripted servers themselves: do they do what tests of the client will rely on?"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from scripted_servers import (
    FAULTS,
    KINDS,
    NOT_ASCII,
    LlamaServer,
    LlamaSwap,
    LmStudio,
    OpenAiServer,
    RecordedRequest,
    Reply,
    RouterServer,
    ScriptedModel,
    ScriptedServer,
    Vllm,
    dominant_color,
)

PATH = Path(__file__).resolve().parent / "scripted_servers.py"
HELLO = [{"role": "user", "content": "hello there"}]
VISION = {"name": "eyes", "vision": True, "size": 5_000_000_000, "context": 4096}
TEXT = {"name": "words"}
SLOW_S = 30.0  # longer than any test: what takes this long must be cut short

MakeServer = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Any:
    """The plainest server, for what all kinds share."""
    with OpenAiServer([VISION, TEXT]) as server:
        yield server


def get(server: ScriptedServer, path: str, **settings: Any) -> requests.Response:
    return requests.get(server.url + path, timeout=20, **settings)


def post(server: ScriptedServer, path: str, **body: Any) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=20)


def chat(server: ScriptedServer, model: str = "words", **fields: Any) -> requests.Response:
    body = {"model": model, "messages": HELLO, "stream": True, **fields}
    return post(server, "/v1/chat/completions", **body)


def image_url(color: str, form: str = "PNG") -> str:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), color).save(file, form)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{data}"


def with_images(*urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}]


def events(response: requests.Response) -> list[Any]:
    """Each data line of a stream, as an object where it is JSON."""
    found: list[Any] = []
    for line in response.content.decode().splitlines():
        name, _, data = line.partition(":")
        if name == "data":
            data = data.removeprefix(" ")
            found.append(json.loads(data) if data.startswith("{") else data)
    return found


def text(response: requests.Response, field: str = "content") -> str:
    chunks = [event for event in events(response) if isinstance(event, dict)]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get(field) or "" for delta in deltas)


def finish(response: requests.Response) -> str | None:
    chunks = [event for event in events(response) if isinstance(event, dict)]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    return next((reason for reason in reasons if reason), None)


def in_background(call: Callable[[], Any]) -> threading.Thread:
    def quietly() -> None:
        with suppress(requests.RequestException):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread


# what all kinds share


@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_streams_role_tokens_finish_reason_usage_and_done(
    make_server: MakeServer, kind: str
) -> None:
    server = make_server(kind, [{**VISION, "answer": "A cat on a mat."}])
    response = chat(server, "eyes", stream_options={"include_usage": True})
    assert response.headers["Content-Type"] == "text/event-stream"
    first, *tokens, end, usage, done = events(response)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert not first["choices"][0]["delta"]["content"]
    assert [token["choices"][0]["delta"]["content"] for token in tokens] == [
        "A",
        " cat",
        " on",
        " a",
        " mat.",
    ]
    assert end["choices"][0]["finish_reason"] == "stop" and done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert ("timings" in usage) == (kind in ("router", "llama-server", "llama-swap"))


@pytest.mark.parametrize("kind", KINDS)
def test_usage_comes_only_when_asked_for(make_server: MakeServer, kind: str) -> None:
    response = chat(make_server(kind, [VISION]), "eyes")
    *_, end, done = events(response)
    assert done == "[DONE]" and finish(response) == "stop"
    assert "usage" not in end
    assert ("timings" in end) == (kind in ("router", "llama-server", "llama-swap"))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_stream_one_body_comes(make_server: MakeServer, kind: str) -> None:
    answer = chat(make_server(kind, [VISION]), "eyes", stream=False).json()
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "It is a test."}
    assert choice["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_names_the_color_of_each_image(make_server: MakeServer, kind: str) -> None:
    server = make_server(kind, [VISION])
    urls = image_url("red"), image_url("blue", "JPEG")
    assert text(chat(server, "eyes", messages=with_images(*urls))) == "A red image. A blue image."
    record = server.of("chat")[0]
    assert record.colors == ["red", "blue"] and record.images[0].startswith(b"\x89PNG")


@pytest.mark.parametrize("color", ["black", "white", "gray", "red", "green", "blue", "yellow"])
def test_colors_survive_jpeg(color: str) -> None:
    assert dominant_color(base64.b64decode(image_url(color, "JPEG").partition(",")[2])) == color


def test_the_dominant_color_wins() -> None:
    image = Image.new("RGB", (32, 32), "blue")
    image.paste((255, 0, 0), (0, 0, 32, 10))
    file = io.BytesIO()
    image.save(file, "PNG")
    assert dominant_color(file.getvalue()) == "blue"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a.png", "data:image/png;base64,???", "data:image/png;base64,AAAA"],
)
def test_what_is_no_image_is_refused(make_server: MakeServer, kind: str, url: str) -> None:
    response = chat(make_server(kind, [VISION]), "eyes", messages=with_images(url))
    assert response.status_code == 400 and response.json()["error"]


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("router", 500, "image input is not supported"),
        ("llama-server", 500, "image input is not supported"),
        ("lmstudio", 400, "does not support images"),
        ("llama-swap", 500, "image input is not supported"),
        ("vllm", 400, "not a multimodal model"),
        ("openai", 400, "does not support image"),
    ],
)
def test_a_text_model_refuses_images(
    make_server: MakeServer, kind: str, status: int, words: str
) -> None:
    response = chat(make_server(kind, [TEXT]), messages=with_images(image_url("red")))
    assert response.status_code == status and words in response.text


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_recorded(make_server: MakeServer, kind: str) -> None:
    server = make_server(kind, [VISION])
    chat(server, "eyes", temperature=0.5)
    get(server, "/v1/models?x=1", headers={"X-Test": "yes"})
    first, second = server.requests
    assert (first.method, first.path, first.kind) == ("POST", "/v1/chat/completions", "chat")
    assert first.body["temperature"] == 0.5 and first.model == "eyes"
    assert (second.kind, second.query, second.headers["x-test"]) == ("list", {"x": "1"}, "yes")
    assert server.aborted == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_required(make_server: MakeServer, kind: str) -> None:
    server = make_server(kind, [VISION], api_key="secret")
    refused = get(server, "/v1/models")
    assert refused.status_code == 401 and refused.text
    if kind not in ("llama-swap", "vllm"):
        assert refused.json()["error"]["message"]
    headers = {"Authorization": "Bearer secret"}
    assert get(server, "/v1/models", headers=headers).status_code == 200
    assert server.requests[-1].key == "secret"


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("router", {"top_k", "min_p", "repeat_penalty"}),
        ("llama-server", {"top_k", "min_p", "repeat_penalty"}),
        ("llama-swap", {"top_k", "min_p", "repeat_penalty"}),
        ("lmstudio", {"top_k", "repeat_penalty"}),
        ("vllm", {"top_k", "min_p", "repetition_penalty"}),
        ("openai", set[str]()),
    ],
)
def test_each_kind_knows_its_own_options(
    make_server: MakeServer, kind: str, taken: set[str]
) -> None:
    server = make_server(kind, [VISION])
    options = {"top_k": 1, "min_p": 0, "repeat_penalty": 1.1, "repetition_penalty": 1.1}
    assert chat(server, "eyes", **options, seed=1).status_code == 200
    record = server.of("chat")[0]
    assert {name for name in options if name in record.taken} == taken
    assert set(record.ignored) == set(options) - taken and "seed" in record.taken


def test_a_strict_server_refuses_unknown_options() -> None:
    with OpenAiServer([TEXT], strict=True) as server:
        response = chat(server, top_k=1)
    assert response.status_code == 400 and "top_k" in response.json()["error"]["message"]


def test_max_tokens_cuts_the_answer(server: OpenAiServer) -> None:
    response = chat(server, max_tokens=2)
    assert text(response) == "It is" and finish(response) == "length"


def test_a_schema_is_answered_with_json(server: OpenAiServer) -> None:
    properties = {"title": {"type": "string"}, "tags": {"type": "array"}, "count": {"enum": [3]}}
    schema = {"name": "a", "schema": {"type": "object", "properties": properties}}
    response = chat(server, response_format={"type": "json_schema", "json_schema": schema})
    title = "It is a test."
    assert json.loads(text(response)) == {"title": title, "tags": [title], "count": 3}


def test_thinking_models_reason_first() -> None:
    with LlamaServer([{"name": "thinker", "thinking": "Hm, well."}]) as server:
        response = chat(server)
        assert text(response, "reasoning_content") == "Hm, well."
        assert text(response) == "It is a test."
        off = chat(server, chat_template_kwargs={"enable_thinking": False})
        assert text(off, "reasoning_content") == ""


def test_an_answer_can_be_a_function_of_the_request() -> None:
    def answer(record: RecordedRequest) -> str:
        return record.body["messages"][-1]["content"].upper()

    with OpenAiServer([ScriptedModel("echo", answer=answer)]) as server:
        assert text(chat(server, "echo")) == "HELLO THERE"


def test_the_pace_is_kept(server: OpenAiServer) -> None:
    server.prompt_s, server.token_s = 0.2, 0.05
    chat(server)
    record = server.of("chat")[0]
    assert server.wait_until(lambda: record.ended is not None)
    assert record.first_byte is not None and record.ended is not None
    assert record.first_byte - record.started >= 0.2
    assert record.ended - record.first_byte >= 0.2


@pytest.mark.parametrize("name", ["hang", "hang_after_header", "hang_between_tokens", "endless"])
def test_a_client_that_leaves_is_noticed(server: OpenAiServer, name: str) -> None:
    server.script("chat", name)
    body = {"model": "words", "messages": HELLO, "stream": True}
    with (
        pytest.raises(requests.RequestException),
        requests.post(
            server.url + "/v1/chat/completions", json=body, stream=True, timeout=0.3
        ) as response,
    ):
        for count, _ in enumerate(response.iter_lines()):
            if count > 20:
                raise requests.ConnectionError("seen enough")
    assert server.wait_until(lambda: len(server.aborted) == 1)
    assert server.aborted[0].client_closed
    assert text(chat(server)) == "It is a test."


def test_leaving_in_the_middle_of_a_load_is_noticed() -> None:
    with RouterServer([TEXT], load_s=SLOW_S) as server:
        with pytest.raises(requests.Timeout):
            body = {"model": "words", "messages": HELLO}
            requests.post(server.url + "/v1/chat/completions", json=body, timeout=0.2)
        assert server.wait_until(lambda: len(server.aborted) == 1)
        assert server.loaded == [] and server.loads == []


def test_closing_ends_hanging_requests(server: OpenAiServer) -> None:
    server.always("*", "hang")
    thread = in_background(lambda: chat(server))
    server.wait_for("chat")
    begun = time.monotonic()
    server.close()
    thread.join(timeout=10)
    assert not thread.is_alive() and time.monotonic() - begun < 10
    assert server.aborted == []


def test_refusing_keeps_port_and_models() -> None:
    with LmStudio() as server:
        post(server, "/api/v1/models/load", model="llama-3.2-3b-instruct")
        url = server.url
        with server.refusing(), pytest.raises(requests.ConnectionError):
            get(server, "/v1/models")
        assert server.url == url and get(server, "/v1/models").status_code == 200
        assert server.loaded == ["llama-3.2-3b-instruct"]


# faults


@pytest.mark.parametrize(
    "name", ["split_lines", "crlf", "comments", "no_usage", "no_done", "cut_short"]
)
def test_legal_streams_hold_the_whole_answer(server: OpenAiServer, name: str) -> None:
    server.script("chat", name)
    assert text(chat(server)) == "It is a test."


def test_characters_are_cut_between_chunks(server: OpenAiServer) -> None:
    server.script("chat", "split_characters")
    response = requests.post(
        server.url + "/v1/chat/completions",
        json={"model": "words", "messages": HELLO, "stream": True},
        stream=True,
        timeout=20,
    )
    chunks = list(response.iter_content(None))
    assert b"".join(chunks).decode() and any(chunk == b"\xc3" for chunk in chunks)
    deltas = [json.loads(line[6:]) for line in b"".join(chunks).split(b"\n") if b"{" in line]
    texts = [delta["choices"][0]["delta"].get("content") or "" for delta in deltas]
    assert "".join(texts) == NOT_ASCII


@pytest.mark.parametrize("name", ["cut_between_lines", "cut_mid_line", "cut_half_character"])
def test_a_cut_stream_has_no_end(server: OpenAiServer, name: str) -> None:
    server.script("chat", name)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        chat(server)


def test_a_stream_can_end_in_the_middle_of_a_line(server: OpenAiServer) -> None:
    server.script("chat", "end_mid_line")
    assert chat(server).content.endswith(b'"con')


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("error_line", b'data: {"error":{"code":500'),
        ("error_first", b'data: {"error":{"code":500'),
        ("error_field", b'error: {"error":{"code":500'),
        ("error_event", b"event: error\ndata: {"),
        ("not_json", b'data: {"choices": [\n'),
        ("big_line", b"x" * 1_000_000),
    ],
)
def test_lines_are_put_into_the_stream(server: OpenAiServer, name: str, line: bytes) -> None:
    server.script("chat", name)
    content = chat(server).content
    assert line in content
    assert (b"[DONE]" in content) == (name in ("not_json", "big_line"))
    assert text(chat(server)) == "It is a test."


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("loading", 503, "Loading model"),
        ("busy", 429, "too many requests"),
        ("out_of_memory", 500, "out of memory"),
        ("html", 200, "<html>"),
        ("html_502", 502, "<html>"),
        ("error_body", 200, '{"error":{"message"'),
        ("error_text", 200, '{"error":"the model crashed"}'),
        ("empty_body", 200, ""),
        ("wrong_list", 200, "[]"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_whole_bodies_replace_the_answer(
    server: OpenAiServer, name: str, status: int, words: str, path: str
) -> None:
    server.script("*", name)
    body = {"model": "words", "messages": HELLO}
    response = post(server, path, **body) if "chat" in path else get(server, path)
    assert response.status_code == status and words in response.text
    assert response.headers["Content-Type"].startswith("text/html") == ("html" in name)


def test_a_redirect_has_an_address(server: OpenAiServer) -> None:
    server.script("list", "redirect")
    response = get(server, "/v1/models", allow_redirects=False)
    assert response.status_code == 307 and response.headers["Location"]


def test_a_connection_is_closed_before_the_first_byte(server: OpenAiServer) -> None:
    server.script("chat", "drop")
    with pytest.raises(requests.ConnectionError):
        chat(server)


def test_a_stream_without_done(server: OpenAiServer) -> None:
    server.script("chat", "no_done", "no_finish", "no_line", "empty", "usage_only", "cut_short")
    no_done, no_finish, no_line, empty, usage_only, cut_short = (chat(server) for _ in range(6))
    assert finish(no_done) == "stop" and "[DONE]" not in no_done.text
    assert finish(no_finish) is None and text(no_finish) == "It is a test."
    assert no_line.content == b"" and no_line.headers["Content-Type"] == "text/event-stream"
    assert text(empty) == "" and finish(empty) == "stop"
    assert text(usage_only) == "" and events(usage_only)[0]["usage"]
    assert finish(cut_short) == "length"


def test_a_body_in_spite_of_stream(server: OpenAiServer) -> None:
    server.script("chat", "no_stream")
    assert chat(server).json()["choices"][0]["message"]["content"] == "It is a test."


def test_reasoning_in_each_form(server: OpenAiServer) -> None:
    server.script("chat", "reasoning_only", "reasoning_content", "reasoning", "think_tags")
    only, content, short, tags = (chat(server) for _ in range(4))
    assert text(only, "reasoning_content") == "Well, the image" and text(only) == ""
    assert finish(only) == "length"
    assert text(content, "reasoning_content") == text(short, "reasoning") == "Let me see."
    assert text(content) == text(short) == "It is a test."
    assert text(tags) == "<think>\nLet me see.\n</think>\n\nIt is a test."
    server.script("chat", "think_split", "think_no_open", "think_no_close")
    assert text(chat(server)) == "<think>Let me see.</think>A test."
    assert text(chat(server)).startswith("Let me see.\n</think>")
    assert text(chat(server)) == "<think>\nLet me see."


def test_scripts_are_used_once_and_always_stays(server: OpenAiServer) -> None:
    server.always("chat", Reply(text="Always."))
    server.script("chat", Reply(text="Once."), lambda record: Reply(text=record.model))
    assert [text(chat(server)) for _ in range(4)] == ["Once.", "words", "Always.", "Always."]
    server.forget_script()
    assert text(chat(server)) == "It is a test."


def test_an_unknown_fault_is_an_error_of_the_test(server: OpenAiServer) -> None:
    with pytest.raises(KeyError):
        server.script("chat", "no such fault")


@pytest.mark.parametrize("name", sorted(set(FAULTS) - {"big_line", "endless_line", "endless"}))
def test_no_fault_breaks_the_server(server: OpenAiServer, name: str) -> None:
    server.script("chat", name)
    body = {"model": "words", "messages": HELLO, "stream": True}
    with suppress(requests.RequestException):
        requests.post(
            server.url + "/v1/chat/completions", json=body, timeout=0.5, allow_redirects=False
        )
    assert text(chat(server)) == "It is a test."


# router


@pytest.fixture
def router() -> Any:
    with RouterServer([VISION, TEXT, {"name": "broken", "exit_code": 1}]) as server:
        yield server


def statuses(server: ScriptedServer) -> dict[str, Any]:
    return {model["id"]: model["status"] for model in get(server, "/models").json()["data"]}


def test_the_router_lists_states_and_modalities(router: RouterServer) -> None:
    models = get(router, "/models").json()["data"]
    assert models == get(router, "/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["eyes", "words", "broken"]
    assert {model["status"]["value"] for model in models} == {"unloaded"}
    inputs = [model["architecture"]["input_modalities"] for model in models]
    assert inputs == [["text", "image"], ["text"], ["text"]]
    assert models[0]["owned_by"] == "llamacpp" and "meta" not in models[0]


def test_the_router_loads_in_the_background(router: RouterServer) -> None:
    router.load_s = SLOW_S
    assert post(router, "/models/load", model="eyes").json() == {"success": True}
    assert statuses(router)["eyes"]["value"] == "loading" and router.loaded == []
    again = post(router, "/models/load", model="eyes")
    assert again.status_code == 400 and "already running" in again.json()["error"]["message"]
    router.finish_loads()
    assert statuses(router)["eyes"]["value"] == "loaded" and router.loads == ["eyes"]
    meta = get(router, "/models").json()["data"][0]["meta"]
    assert (meta["n_ctx"], meta["size"]) == (4096, 5_000_000_000)


def test_the_router_unloads(router: RouterServer) -> None:
    router.unload_s = SLOW_S
    chat(router)
    assert post(router, "/models/unload", model="words").json() == {"success": True}
    assert router.loaded == ["words"]
    router.finish_unloads()
    assert router.unloads == ["words"] and router.loaded == []
    assert statuses(router)["words"]["value"] == "unloaded"
    assert post(router, "/models/unload", model="words").status_code == 400
    assert post(router, "/models/unload", model="nobody").status_code == 400
    assert post(router, "/models/load", model="nobody").status_code == 404


def test_a_failed_load_of_the_router_has_an_exit_code(router: RouterServer) -> None:
    assert post(router, "/models/load", model="broken").json() == {"success": True}
    status = statuses(router)["broken"]
    assert status["value"] == "unloaded" and status["failed"] and status["exit_code"] == 1
    response = chat(router, "broken")
    assert response.status_code == 500 and "failed to load" in response.json()["error"]["message"]
    assert router.loads == []


def test_a_chat_loads_and_waits(router: RouterServer) -> None:
    router.load_s = 0.2
    assert text(chat(router)) == "It is a test."
    assert router.loads == ["words"]
    unknown = chat(router, "nobody")
    assert unknown.status_code == 400 and "'nobody' not found" in unknown.json()["error"]["message"]


def test_props_of_the_router_load_the_model(router: RouterServer) -> None:
    assert get(router, "/props").json()["role"] == "router"
    refused = get(router, "/props?model=eyes&autoload=false")
    assert refused.status_code == 400 and router.loaded == []
    props = get(router, "/props?model=eyes").json()
    assert props["modalities"]["vision"] is True and router.loads == ["eyes"]
    assert get(router, "/props?model=eyes&autoload=false").status_code == 200


def test_the_router_makes_room(router: RouterServer) -> None:
    router.models_max = 1
    chat(router, "eyes")
    chat(router, "words")
    assert router.loaded == ["words"] and router.unloads == ["eyes"]


def test_an_unload_ends_the_requests_that_use_the_model(router: RouterServer) -> None:
    router.token_s = SLOW_S
    thread = in_background(lambda: chat(router))
    assert router.wait_until(lambda: router.loaded == ["words"])
    post(router, "/models/unload", model="words")
    thread.join(timeout=20)
    assert not thread.is_alive() and router.loaded == []


def test_the_router_reports_the_progress_of_a_load(router: RouterServer) -> None:
    router.load_s = 0.5
    found: list[Any] = []

    def listen() -> None:
        with requests.get(router.url + "/models/sse", stream=True, timeout=20) as response:
            for line in response.iter_lines():
                if line:
                    found.append(json.loads(line[6:]))
                if found and found[-1]["data"]["status"] == "loaded":
                    return

    thread = in_background(listen)
    record = router.wait_for("status")
    assert router.wait_until(lambda: record.first_byte is not None)
    time.sleep(0.1)  # until the server has noted the states that it compares with
    post(router, "/models/load", model="eyes")
    thread.join(timeout=20)
    values = [event["data"]["progress"]["value"] for event in found[:-1]]
    assert values and values == sorted(values)
    assert found[-1] == {"model": "eyes", "event": "model_status", "data": {"status": "loaded"}}


# llama-server


def test_llama_server_lists_its_model_without_status() -> None:
    with LlamaServer([VISION], context=512) as server:
        body = get(server, "/models").json()
        assert body == get(server, "/v1/models").json()
        (model,) = body["data"]
        assert "status" not in model and model["owned_by"] == "llamacpp"
        meta = model["meta"]
        assert (meta["n_ctx"], meta["n_ctx_train"], meta["size"]) == (512, 4096, 5_000_000_000)
        props = get(server, "/props").json()
        assert props["modalities"]["vision"] and not props["is_sleeping"] and props["model_path"]
        assert props["default_generation_settings"]["n_ctx"] == 512
        assert post(server, "/models/load", model="eyes").status_code == 404
        assert server.loaded == ["eyes"] and server.loads == []


def test_llama_server_is_unavailable_while_it_loads() -> None:
    with LlamaServer([VISION], load_s=SLOW_S) as server:
        response = chat(server, "eyes")
        assert response.status_code == 503 and response.json() == {
            "error": {"message": "Loading model", "type": "unavailable_error", "code": 503}
        }
        assert get(server, "/props").status_code == get(server, "/health").status_code == 503
        assert get(server, "/v1/models").json()["data"][0]["meta"] is None
        server.finish_loads()
        assert server.loaded == ["eyes"] and server.loads == []
        assert text(chat(server, "eyes")) == "It is a test."


def test_llama_server_answers_to_any_name() -> None:
    with LlamaServer([VISION]) as server:
        response = chat(server, "no-such-model")
        assert response.status_code == 200 and events(response)[0]["model"] == "eyes"


def test_llama_server_wakes_up_for_a_chat() -> None:
    with LlamaServer([VISION]) as server:
        server.sleeping = True
        assert get(server, "/props").json()["is_sleeping"] and server.loaded == []
        server.load_s = 0.1
        assert text(chat(server, "eyes")) == "It is a test."
        assert not server.sleeping and server.loads == ["eyes"] and server.unloads == ["eyes"]


# LM Studio


@pytest.fixture
def studio() -> Any:
    with LmStudio() as server:
        yield server


EYES, WORDS = "qwen/qwen2.5-vl-7b", "llama-3.2-3b-instruct"


def listed(server: ScriptedServer) -> dict[str, Any]:
    return {model["key"]: model for model in get(server, "/api/v1/models").json()["models"]}


def test_lm_studio_lists_models(studio: LmStudio) -> None:
    models = listed(studio)
    assert [model["type"] for model in models.values()] == ["llm", "llm", "embedding"]
    eyes = models[EYES]
    assert eyes["publisher"] == "qwen" and eyes["display_name"] and eyes["size_bytes"] > 0
    assert eyes["loaded_instances"] == [] and eyes["max_context_length"] == 32768
    assert eyes["capabilities"] == {"vision": True, "trained_for_tool_use": True}
    assert models[WORDS]["capabilities"]["vision"] is False
    assert "capabilities" not in models["text-embedding-nomic-embed-text-v1.5"]
    ids = [model["id"] for model in get(studio, "/v1/models").json()["data"]]
    assert ids == list(models)


def test_lm_studio_loads_and_unloads_instances(studio: LmStudio) -> None:
    studio.load_s = 0.1
    first = post(studio, "/api/v1/models/load", model=EYES, context_length=16384).json()
    assert first["instance_id"] == EYES and first["status"] == "loaded" and first["type"] == "llm"
    assert first["load_time_seconds"] >= 0.1
    second = post(studio, "/api/v1/models/load", model=EYES, context_length=99999).json()
    assert second["instance_id"] == f"{EYES}:2"
    instances = listed(studio)[EYES]["loaded_instances"]
    assert [instance["id"] for instance in instances] == [EYES, f"{EYES}:2"]
    assert [instance["config"]["context_length"] for instance in instances] == [16384, 32768]
    assert studio.loads == studio.loaded == [EYES, f"{EYES}:2"]
    answer = post(studio, "/api/v1/models/unload", instance_id=EYES)
    assert answer.json() == {"instance_id": EYES} and studio.unloads == [EYES]
    assert text(chat(studio, EYES)) == "It is a test." and studio.loaded == [f"{EYES}:2"]
    assert post(studio, "/api/v1/models/unload", instance_id=EYES).status_code == 404
    assert post(studio, "/api/v1/models/load", model="nobody").status_code == 404


def test_lm_studio_loads_just_in_time_and_keeps_only_the_last(studio: LmStudio) -> None:
    assert text(chat(studio, EYES)) == "It is a test."
    assert studio.loaded == [EYES]
    chat(studio, WORDS)
    assert studio.loaded == [WORDS] and studio.unloads == [EYES]
    studio.auto_evict = False
    chat(studio, EYES)
    assert studio.loaded == [WORDS, EYES] and studio.loads == [EYES, WORDS, EYES]


def test_lm_studio_keeps_what_was_loaded_by_hand(studio: LmStudio) -> None:
    post(studio, "/api/v1/models/load", model=EYES)
    chat(studio, WORDS)
    assert studio.loaded == [EYES, WORDS]


def test_lm_studio_without_just_in_time_loads(studio: LmStudio) -> None:
    studio.jit = False
    assert chat(studio, EYES).status_code == 404 and studio.loaded == []


def test_the_ttl_of_lm_studio_unloads(studio: LmStudio) -> None:
    chat(studio, EYES, ttl=0.2)
    assert studio.wait_until(lambda: studio.loaded == []) and studio.unloads == [EYES]


@pytest.mark.parametrize("path", ["/models", "/api/version", "/running", "/api/tags", "/props"])
def test_lm_studio_answers_200_to_every_path(studio: LmStudio, path: str) -> None:
    response = get(studio, path)
    error = f"Unexpected endpoint or method. (GET {path})"
    assert response.status_code == 200 and response.json() == {"error": error}


def test_lm_studio_refuses_json_object_and_unknown_models(studio: LmStudio) -> None:
    response = chat(studio, EYES, response_format={"type": "json_object"})
    assert response.status_code == 400 and "json_schema" in response.json()["error"]
    assert chat(studio, "nobody").status_code == 404
    assert chat(studio, "text-embedding-nomic-embed-text-v1.5").status_code == 404


def test_a_failed_load_of_lm_studio_is_an_error() -> None:
    with LmStudio([{"name": "broken", "exit_code": 1, "load_s": 0.1}]) as server:
        for response in (
            post(server, "/api/v1/models/load", model="broken"),
            chat(server, "broken"),
        ):
            assert response.status_code == 500
            assert "Failed to load" in response.json()["error"]["message"]


# llama-swap


@pytest.fixture
def swap() -> Any:
    with LlamaSwap([VISION, TEXT]) as server:
        yield server


def test_llama_swap_keeps_one_model(swap: LlamaSwap) -> None:
    assert get(swap, "/running").json() == {"running": []}
    chat(swap, "eyes")
    (running,) = get(swap, "/running").json()["running"]
    assert (running["model"], running["state"]) == ("eyes", "ready")
    chat(swap, "words")
    assert swap.loaded == ["words"] and swap.loads == ["eyes", "words"] and swap.unloads == ["eyes"]


def test_a_swap_waits_for_running_requests(swap: LlamaSwap) -> None:
    swap.script("chat", Reply(token_s=0.1))
    thread = in_background(lambda: chat(swap, "eyes"))
    assert swap.wait_until(lambda: swap.loaded == ["eyes"])
    assert text(chat(swap, "words")) == "It is a test."
    thread.join(timeout=20)
    first = swap.of("chat")[0]
    assert first.tokens_sent == 4 and swap.loads == ["eyes", "words"]


def test_llama_swap_unloads_one_or_all(swap: LlamaSwap) -> None:
    chat(swap, "eyes")
    assert post(swap, "/api/models/unload/words").text == "OK" and swap.loaded == ["eyes"]
    assert post(swap, "/api/models/unload/eyes").text == "OK" and swap.loaded == []
    assert post(swap, "/api/models/unload/nobody").status_code == 404
    chat(swap, "eyes")
    assert post(swap, "/api/models/unload").json() == {"msg": "ok"} and swap.loaded == []
    chat(swap, "eyes")
    assert get(swap, "/unload").text == "OK" and swap.unloads == ["eyes"] * 3


def test_llama_swap_lists_a_starting_model(swap: LlamaSwap) -> None:
    swap.load_s = SLOW_S
    thread = in_background(lambda: chat(swap, "eyes"))
    swap.wait_for("chat")
    assert swap.wait_until(lambda: get(swap, "/running").json()["running"] != [])
    assert get(swap, "/running").json()["running"][0]["state"] == "starting"
    get(swap, "/unload")
    thread.join(timeout=20)
    assert swap.loads == swap.unloads == []


def test_llama_swap_has_a_version_and_plain_errors(swap: LlamaSwap) -> None:
    assert set(get(swap, "/api/version").json()) == {"version", "commit", "build_date"}
    assert get(swap, "/api/tags").text == "404 page not found"
    assert {model["owned_by"] for model in get(swap, "/v1/models").json()["data"]} == {"llama-swap"}
    unknown = chat(swap, "nobody")
    assert unknown.status_code == 400 and unknown.text.startswith("could not find")
    headers = {"Accept": "application/json"}
    body = {"model": "nobody", "messages": HELLO}
    url = swap.url + "/v1/chat/completions"
    assert requests.post(url, json=body, headers=headers, timeout=20).json()["error"]


def test_an_old_llama_swap_has_only_unload() -> None:
    with LlamaSwap([VISION], old=True, loaded=["eyes"]) as server:
        assert post(server, "/api/models/unload/eyes").status_code == 404
        assert get(server, "/api/version").status_code == 404
        assert get(server, "/unload").text == "OK"
        assert server.unloads == ["eyes"] and server.loads == []


# vLLM


def test_vllm_has_one_model_and_no_sleep() -> None:
    with Vllm([VISION], context=2048) as server:
        (model,) = get(server, "/v1/models").json()["data"]
        assert (model["id"], model["owned_by"], model["max_model_len"]) == ("eyes", "vllm", 2048)
        assert get(server, "/version").json() == {"version": "0.11.0"}
        assert get(server, "/health").status_code == 200
        for response in (get(server, "/is_sleeping"), post(server, "/sleep?level=1")):
            assert response.status_code == 404 and response.json() == {"detail": "Not Found"}
        assert chat(server, "nobody").status_code == 404


def test_vllm_sleeps_and_wakes_up() -> None:
    with Vllm([VISION], sleep_mode=True, load_s=0.1) as server:
        assert get(server, "/is_sleeping").json() == {"is_sleeping": False}
        assert post(server, "/sleep?level=1").status_code == 200
        assert get(server, "/is_sleeping").json() == {"is_sleeping": True}
        assert server.of("unload")[0].query == {"level": "1"}
        assert chat(server, "eyes").status_code == 500 and server.loaded == []
        assert post(server, "/wake_up").status_code == 200
        assert text(chat(server, "eyes")) == "It is a test."
        assert server.unloads == server.loads == ["eyes"]


def test_vllm_needs_its_key_only_below_v1() -> None:
    with Vllm([VISION], api_key="secret") as server:
        assert get(server, "/version").status_code == 200
        assert chat(server, "eyes").json() == {"error": "Unauthorized"}


# openai


def test_an_openai_server_has_nothing_else(server: OpenAiServer) -> None:
    models = get(server, "/v1/models").json()["data"]
    assert [(model["id"], model["owned_by"]) for model in models] == [
        ("eyes", "somebody"),
        ("words", "somebody"),
    ]
    for path in ("/models", "/props", "/running", "/api/version", "/api/v1/models", "/version"):
        response = get(server, path)
        assert response.status_code == 404 and response.json()["error"]["message"]
    assert chat(server, "nobody").status_code == 404
    assert post(server, "/v1/chat/completions", model="words").status_code == 400


# by hand


def test_by_hand_with_a_script_file(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    script = {
        "models": [TEXT],
        "script": {"chat": ["loading", {"fault": "cut_short", "text": "A cat."}]},
        "always": {"chat": {"tokens": ["A ", "dog."]}},
    }
    file.write_text(json.dumps(script), "utf-8")
    command = [sys.executable, str(PATH), "lmstudio", "--port", "0", "--script", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("listening on ").strip()
            body = {"model": "words", "messages": HELLO, "stream": True}
            answers = [
                requests.post(f"{url}/v1/chat/completions", json=body, timeout=20) for _ in range(3)
            ]
            assert answers[0].status_code == 503
            assert text(answers[1]) == "A cat." and finish(answers[1]) == "length"
            assert text(answers[2]) == "A dog."
            assert "[chat] words" in process.stdout.readline()
        finally:
            process.kill()
