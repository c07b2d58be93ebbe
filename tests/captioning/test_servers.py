"""A run on servers of other kinds, on two of them, and with a model that it chooses itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from image_refinery._backends import open_backend
from image_refinery.captioning.events import Watcher
from image_refinery.captioning.job import Caption, Job, Stage, TextJob
from image_refinery.captioning.options import StageOptions
from image_refinery.captioning.run import process, run
from image_refinery.llm import choice, errors
from image_refinery.llm.servers import Server
from image_refinery.memory import StageMemory
from PIL import Image

if TYPE_CHECKING:
    from scripted_servers import ScriptedServer

KINDS = ["router", "llama-server", "lmstudio", "llama-swap", "vllm", "openai"]
SEER: Any = {"name": "seer", "vision": True}
WRITER: Any = {"name": "writer", "answer": "A crimson disc."}


class Notes(Watcher):
    """Collects what a run has to say."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.models: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, title: str, model: str, count: int) -> None:
        self.models.append(model)


@pytest.fixture(autouse=True)
def nothing_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may be that of another test's server."""
    monkeypatch.setattr(choice, "_last_used", {})


@pytest.fixture
def open_kind(
    make_server: Callable[..., ScriptedServer],
) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """open_kind("lmstudio", [models], entry={...}): a backend and its server."""
    with ExitStack() as backends:

        def open_one(
            kind: str, *args: Any, entry: dict[str, Any] | None = None, **settings: Any
        ) -> tuple[Any, Any]:
            double = make_server(kind, *args, **settings)
            name = "llama-server" if kind == "router" else kind
            server = Server(url=double.url, kind=name, **(entry or {}))
            return backends.enter_context(closing(open_backend(server))), double

        yield open_one


def image(color: str = "red") -> Any:
    return lambda: Image.new("RGB", (48, 32), color)


def job(vision: str = "seer", text: str | None = "writer", **fields: Any) -> Job:
    settings = fields.pop("settings", StageOptions())
    return Job(
        vision=Stage(model=vision, options=settings.model_options, settings=settings),
        text=None
        if text is None
        else Stage(model=text, options=settings.model_options, settings=settings),
        instructions=["Shorten it."],
        **fields,
    )


def texts(captions: list[Caption]) -> list[tuple[str, str]]:
    for caption in captions:
        assert not caption.final.error, caption.final.error
    return [(caption.description.text, caption.final.text) for caption in captions]


# Two servers


def test_each_stage_on_a_server_of_its_own(open_kind: Any) -> None:
    seeing, one = open_kind("llama-server", [SEER])
    writing, two = open_kind("llama-server", [WRITER])
    done: list[int] = []
    captions = run(
        seeing,
        [image("red"), image("blue")],
        job(),
        text_backend=writing,
        memory=StageMemory(),
        finished=lambda index, caption: done.append(index),
    )
    assert texts(captions) == [
        ("A red image.", "A crimson disc."),
        ("A blue image.", "A crimson disc."),
    ]
    assert [caption.final.answer.model for caption in captions] == ["writer"] * 2  # type: ignore[union-attr]
    assert done == [0, 1]
    assert {record.model for record in one.of("chat")} == {"seer"}
    assert {record.model for record in two.of("chat")} == {"writer"}
    assert all(len(record.images) == 1 for record in one.of("chat"))
    assert not any(record.images for record in two.of("chat"))
    last_look = max(record.started for record in one.of("chat"))
    assert last_look < min(record.started for record in two.of("chat")), "stage by stage"


@pytest.mark.parametrize("kind", ["router", "lmstudio", "llama-swap"])
def test_the_first_model_leaves_before_the_second_comes(open_kind: Any, kind: str) -> None:
    seeing, one = open_kind(kind, [SEER])
    writing, two = open_kind(kind, [WRITER])
    run(seeing, [image()], job(), text_backend=writing, memory=StageMemory())
    assert one.loads == one.unloads == ["seer"]
    assert two.loads == two.unloads == ["writer"]
    (gone,), came = one.of("unload"), two.of("load", "chat")[0]
    assert gone.ended < came.started


def test_a_dead_second_server_costs_the_rewrites_only(open_kind: Any) -> None:
    seeing, _ = open_kind("llama-server", [SEER])
    writing, two = open_kind("llama-server", [WRITER])
    with two.refusing():
        (caption,) = run(seeing, [image()], job(), text_backend=writing)
    assert caption.description.text == "A red image."
    assert isinstance(caption.final.error, errors.ServerUnreachable)
    assert caption.final.error.server == writing.server


# The same model for both


@pytest.mark.parametrize("kind", ["router", "lmstudio", "llama-swap"])
def test_the_same_model_for_both_stages_is_loaded_once(open_kind: Any, kind: str) -> None:
    backend, server = open_kind(kind, [SEER])
    run(backend, [image()] * 2, job(text="seer"), memory=StageMemory())
    assert server.loads == server.unloads == ["seer"] and len(server.of("chat")) == 4


def test_also_where_the_server_has_two_names(open_kind: Any) -> None:
    backend, server = open_kind("lmstudio", [SEER])
    named = Server(name="studio", url=server.url, kind="lmstudio", unload=True)
    with closing(open_backend(named)) as other:
        run(backend, [image()], job(text="seer"), text_backend=other, memory=StageMemory())
    assert server.loads == server.unloads == ["seer"]
    (load,) = server.of("load")
    assert load.fields["context_length"] >= 4096


def test_equal_names_on_two_servers_are_two_models(open_kind: Any) -> None:
    seeing, one = open_kind("lmstudio", [SEER])
    writing, two = open_kind("lmstudio", [SEER])
    run(seeing, [image()], job(text="seer"), text_backend=writing, memory=StageMemory())
    assert one.loads == two.loads == ["seer"] and one.loaded == two.loaded == []


# Every kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_each_kind(open_kind: Any, kind: str) -> None:
    backend, server = open_kind(kind, [SEER])
    captions = run(backend, [image("red"), image("blue")], job(text="seer"), memory=StageMemory())
    assert texts(captions) == [
        ("A red image.", "It is a test."),
        ("A blue image.", "It is a test."),
    ]
    assert not [record for record in server.of("chat") if record.ignored]
    results = process(backend, TextJob(stage=Stage(model="seer"), texts=["A red ball."]))
    assert [result.text for result in results] == ["It is a test."]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_name_costs_no_chat(open_kind: Any, kind: str) -> None:
    backend, server = open_kind(kind, [SEER])
    (caption,) = run(backend, [image()], job(vision="sear", text=None))
    assert isinstance(caption.final.error, errors.ModelNotFound)
    assert caption.final.error.instead == ["seer"]
    assert not server.of("chat", "load")


@pytest.mark.parametrize("kind", ["router", "llama-server", "lmstudio"])
def test_a_model_that_is_known_to_be_blind_costs_no_load(open_kind: Any, kind: str) -> None:
    backend, server = open_kind(kind, [WRITER])
    (caption,) = run(backend, [image()], job(vision="writer", text=None))
    assert isinstance(caption.final.error, errors.NoVision)
    assert not server.of("chat", "load")


def test_assumed_vision_is_tried(open_kind: Any) -> None:
    """A server may have the projector and not say so."""
    entry = {"assume": frozenset({"vision"})}
    backend, server = open_kind("lmstudio", [{**SEER, "vision": False}], entry=entry)
    (caption,) = run(backend, [image()], job(text=None))
    assert isinstance(caption.final.error, errors.NoVision), "the server's own word"
    assert len(server.of("chat")) == 1
    backend, server = open_kind("openai", [SEER], entry=entry)
    watcher = Notes()
    assert texts(run(backend, [image()], job(vision="auto", text=None), watcher=watcher))
    assert watcher.models == ["seer"]


# What is left out


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_that_are_left_out_are_not_named(open_kind: Any, kind: str) -> None:
    backend, _ = open_kind(kind, [SEER])
    watcher = Notes()
    the_job = job(text="seer")
    options = {"num_predict": 64, "top_k": 40, "repeat_penalty": 1.1, "seed": 1}
    stages = [Stage(model="seer", options=options) for _ in range(2)]
    captions = run(
        backend,
        [image()],
        Job(vision=stages[0], text=stages[1], instructions=the_job.instructions),
        watcher=watcher,
    )
    assert texts(captions) and watcher.notes == []


def test_options_of_the_user_that_are_left_out_are_named_once(open_kind: Any) -> None:
    backend, server = open_kind("openai", [SEER])
    watcher = Notes()
    settings = StageOptions(
        model_options={"top_k": 9, "num_ctx": 2048, "temperature": 0.1}, think="on"
    )
    run(backend, [image()] * 3, job(text="seer", settings=settings), watcher=watcher)
    assert watcher.notes == [
        f"The server at {server.url} does not take num_ctx, think, top_k: left out."
    ]


def test_thinking_is_no_news_where_it_can_be_switched(open_kind: Any) -> None:
    backend, _ = open_kind("llama-server", [{**SEER, "thinking": True}])
    watcher = Notes()
    settings = StageOptions(think="on")
    (caption,) = run(backend, [image()], job(text=None, settings=settings), watcher=watcher)
    assert watcher.notes == []
    answer = caption.final.answer
    assert answer and (answer.text, answer.thinking) == ("A red image.", "Let me see.")


def test_each_server_is_named_for_itself(open_kind: Any) -> None:
    seeing, one = open_kind("llama-server", [SEER])
    writing, two = open_kind("vllm", [WRITER])
    watcher = Notes()
    settings = StageOptions(model_options={"num_ctx": 2048})
    run(seeing, [image()], job(settings=settings), text_backend=writing, watcher=watcher)
    assert watcher.notes == [
        f"llama-server at {one.url} does not take num_ctx: left out.",
        f"vLLM at {two.url} does not take num_ctx: left out.",
    ]


# auto


def test_auto_takes_what_is_loaded(open_kind: Any) -> None:
    models = [{**SEER, "name": "other"}, SEER, WRITER]
    backend, server = open_kind("lmstudio", models, loaded=["seer"])
    watcher = Notes()
    captions = run(backend, [image()], job("auto", "auto"), watcher=watcher, memory=StageMemory())
    assert texts(captions) == [("A red image.", "It is a test.")]
    assert watcher.models == ["seer", "seer"]
    assert watcher.notes == [
        '"auto" chose seer for describing images.',
        '"auto" chose seer for writing text.',
    ]
    assert server.loaded == ["seer"] and not server.loads


def test_auto_takes_the_smallest_and_then_the_last_used(open_kind: Any) -> None:
    models = [{**SEER, "name": "big", "size": 9 * 10**9}, {**SEER, "size": 10**9}]
    backend, _ = open_kind("lmstudio", models)
    watcher = Notes()
    for vision in ("auto", "big", "auto"):
        run(backend, [image()], job(vision, None), watcher=watcher, memory=StageMemory())
    assert watcher.models == ["seer", "big", "big"]


def test_auto_on_two_servers(open_kind: Any) -> None:
    seeing, _ = open_kind("lmstudio", [SEER, WRITER])
    writing, _ = open_kind("llama-server", [WRITER])
    watcher = Notes()
    captions = run(seeing, [image()], job("auto", "auto"), text_backend=writing, watcher=watcher)
    assert texts(captions) == [("A red image.", "A crimson disc.")]
    assert watcher.models == ["seer", "writer"]


@pytest.mark.parametrize("kind", ["llama-swap", "vllm", "openai"])
def test_auto_tries_a_model_whose_capabilities_are_not_told(open_kind: Any, kind: str) -> None:
    backend, _ = open_kind(kind, [SEER])
    assert texts(run(backend, [image()], job("auto", None))) == [("A red image.", "A red image.")]


def test_auto_without_a_model_that_would_do(open_kind: Any) -> None:
    backend, server = open_kind("lmstudio", [WRITER])
    (caption,) = run(backend, [image()], job("auto", None))
    assert isinstance(caption.final.error, errors.NoModel)
    assert str(caption.final.error) == (
        f"No model for describing images is installed on the LM Studio server at {server.url}."
    )
    assert not server.of("load", "chat")


def test_auto_works_where_a_server_cannot_say_what_is_loaded(open_kind: Any) -> None:
    backend, server = open_kind("llama-swap", [SEER])
    real = server.routes

    def routes() -> Any:
        return {path: route for path, route in real().items() if path != "GET /running"}

    server.routes = routes
    assert texts(run(backend, [image()], job("auto", None)))


def test_auto_on_a_dead_server_is_its_error(open_kind: Any) -> None:
    backend, server = open_kind("lmstudio", [SEER])
    with server.refusing():
        (caption,) = run(backend, [image()], job("auto", None))
    assert isinstance(caption.final.error, errors.ServerUnreachable)


# Failures of a load


def test_a_load_that_fails_is_the_result_of_every_image(open_kind: Any) -> None:
    backend, server = open_kind("router", [{**SEER, "exit_code": 1}])
    captions = run(backend, [image()] * 3, job(text=None), memory=StageMemory())
    assert {type(caption.final.error) for caption in captions} == {errors.LoadFailed}
    assert not server.of("chat") and len(server.of("load")) == 1


def test_a_server_that_still_starts_is_waited_for(open_kind: Any) -> None:
    backend, server = open_kind("llama-server", [SEER], load_s=1.0)
    assert texts(run(backend, [image()], job(text=None))) == [("A red image.", "A red image.")]
    assert len(server.of("chat")) == 1
