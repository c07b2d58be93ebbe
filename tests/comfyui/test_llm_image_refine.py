"""LLM Image Refine in a real ComfyUI, talking to a scripted Ollama over a real socket."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faulty_ollama import FaultyOllama, RecordedRequest, Reply, text_model, vision_model
from host import PACK_FOLDER, ComfyHost, EventLog, Graph, Link, Run, node
from PIL import Image

NODE = "RefineryLLMImageRefine"
VISION, TEXT = "llava:latest", "llama3.2:latest"
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}


def refine(image: Link, **inputs: Any) -> dict[str, Any]:
    """The node with its required inputs, as a page would send them."""
    required = {"vision_model": VISION, "text_model": TEXT, "user_instructions": "Rewrite it."}
    return node(NODE, **(required | inputs), image=image)


def previews(source: str, first: int = 10) -> Graph:
    """PreviewAny on each of the three outputs; their ids are first, first + 1, first + 2."""
    return {str(first + i): node("PreviewAny", source=[source, i]) for i in range(3)}


def single(host: ComfyHost, **inputs: Any) -> Graph:
    """LoadImage, our node as "2", three previews: a new picture each time, so nothing is cached."""
    size = (40 + single_count(), 30)
    name = host.save_input(Image.new("RGB", size, COLOURS["red"]))
    return {"1": node("LoadImage", image=name), "2": refine(["1", 0], **inputs)} | previews("2")


def single_count(counter: list[int] = [0]) -> int:  # noqa: B006 (kept between calls on purpose)
    counter[0] += 1
    return counter[0]


def colour_of(picture: bytes) -> str:
    """The name of the colour that a sent picture has in its middle."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    seen = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(seen, tuple)
    return min(
        COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(seen, COLOURS[name], strict=True))
    )


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def says_colour(request: RecordedRequest) -> str:
    return " and ".join(colour_of(picture) for picture in request.images)


def repeats_material(request: RecordedRequest) -> str:
    said = request.body["messages"][-1]["content"]
    return "rewritten " + next(name for name in COLOURS if name in said)


@pytest.fixture
def seeing(ollama: FaultyOllama) -> FaultyOllama:
    """Answers with the colour of the picture; the text model repeats the colour it was given."""
    for model in (vision_model(answer=says_colour), text_model(answer=repeats_material)):
        ollama.models[model.key] = model
    return ollama


def pictures(*sized: tuple[int, int, str], batch: bool = False) -> dict[str, Any]:
    """ProbePictures: (width, height, colour name) each."""
    listed = [[w, h, [part / 255 for part in COLOURS[name]]] for w, h, name in sized]
    return node("ProbePictures", pictures=json.dumps(listed), batch=batch, salt=single_count())


def compared(run: Run, node_id: str) -> dict[str, Any]:
    (text,) = run.texts(node_id)
    return json.loads(text)


# loading


def test_the_pack_loads_with_no_warning(comfyui: ComfyHost):
    loading, served, _ = comfyui.log.partition("Starting server")  # other tests may have run since
    assert served
    own = [
        line
        for line in loading.splitlines()
        if (PACK_FOLDER in line or "refinery" in line.lower()) and " seconds: " not in line
    ]
    assert own == []
    assert "Traceback" not in loading


def test_help_page_is_served_from_the_folder_s_name(comfyui: ComfyHost):
    page = comfyui.get_text(f"/extensions/{PACK_FOLDER}/docs/{NODE}.md")
    assert "LLM Image Refine" in page


SPEC_REQUIRED = ["image", "vision_model", "text_model", "user_instructions"]
SPEC_OPTIONAL: dict[str, tuple[str, dict[str, Any]]] = {
    "custom_vision_prompt": ("STRING", {"multiline": True}),
    "vision_temperature": ("FLOAT", {"min": 0.0, "max": 2.0, "default": 0.3}),
    "vision_top_p": ("FLOAT", {"min": 0.0, "max": 1.0, "default": 0.95}),
    "vision_top_k": ("INT", {"min": 1, "max": 100, "default": 40}),
    "text_temperature": ("FLOAT", {"min": 0.0, "max": 2.0, "default": 0.7}),
    "text_presence_penalty": ("FLOAT", {"min": -2.0, "max": 2.0, "default": 0.0}),
    "text_frequency_penalty": ("FLOAT", {"min": -2.0, "max": 2.0, "default": 0.0}),
    "text_top_p": ("FLOAT", {"min": 0.0, "max": 1.0, "default": 0.95}),
    "text_top_k": ("INT", {"min": 1, "max": 100, "default": 40}),
}
OWN_OPTIONAL = [
    *("seed", "batch_mode", "keep_loaded_minutes", "on_error", "clean_output", "server"),
    *("vision_options", "text_options", "use_recorded_words", "names"),
]


def test_the_inputs_are_the_spec_s_to_the_letter_and_in_its_order(comfyui: ComfyHost):
    info = comfyui.object_info(NODE)
    assert info["input_order"]["required"] == SPEC_REQUIRED
    assert info["input_order"]["optional"] == [*SPEC_OPTIONAL, *OWN_OPTIONAL]
    assert info["input"]["required"]["user_instructions"][1]["multiline"] is True
    for name, (kind, options) in SPEC_OPTIONAL.items():
        given_kind, given = info["input"]["optional"][name]
        assert given_kind == kind
        assert {key: given[key] for key in options} == options, name
    everything = info["input"]["required"] | info["input"]["optional"]
    assert [name for name, (_, options) in everything.items() if not options.get("tooltip")] == []


def test_outputs_have_the_spec_s_names_and_are_lists(comfyui: ComfyHost):
    info = comfyui.object_info(NODE)
    assert info["display_name"] == "LLM Image Refine"
    assert info["category"] == "Image Refinery/LLM"
    assert info["output_name"] == ["image", "description", "refined_output"]
    assert info["output"] == ["IMAGE", "STRING", "STRING"]
    assert info["output_is_list"] == [True, True, True]


def test_bypassed_its_image_output_can_only_be_its_image_input(comfyui: ComfyHost):
    """The page joins an output of a bypassed node with the first linked input of its type."""
    info = comfyui.object_info(NODE)
    everything = info["input"]["required"] | info["input"]["optional"]
    same_type = [name for name, (kind, _) in everything.items() if kind == info["output"][0]]
    assert same_type == ["image"]


# one image, a batch, a list


def test_a_single_image_gives_three_outputs_and_stays_the_same_object(
    comfyui: ComfyHost, seeing: FaultyOllama
):
    graph = single(comfyui)
    graph["20"] = node("ProbeSame", first=["1", 0], second=["2", 0])
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == ["red"]
    assert run.texts("12") == ["rewritten red"]
    assert len(run.texts("10")) == 1
    (row,) = compared(run, "20")["rows"]
    assert row["same"] is True
    assert run.outputs["2"]["description"] == ["red"]
    assert run.outputs["2"]["refined_output"] == ["rewritten red"]


def test_a_batch_of_four_gives_four_texts_in_order_and_four_files(
    comfyui: ComfyHost, seeing: FaultyOllama
):
    names = ["blue", "red", "white", "green"]
    graph = {
        "1": pictures(*((32, 24, name) for name in names), batch=True),
        "2": refine(["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="batch"),
    } | previews("2")
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == names
    assert run.texts("12") == [f"rewritten {name}" for name in names]
    files = comfyui.saved(run, "3")
    assert [colour_of(file.read_bytes()) for file in files] == names
    assert seeing.loads == {VISION: 1, TEXT: 1}
    assert seeing.unloads == {VISION: 1, TEXT: 1}


def test_a_list_of_five_sizes_costs_two_loads_and_saves_five_files(
    comfyui: ComfyHost, seeing: FaultyOllama
):
    sized = [
        *((64, 32, "red"), (16, 48, "green"), (100, 100, "blue")),
        *((31, 33, "white"), (8, 8, "black")),
    ]
    graph = {
        "1": pictures(*sized),
        "2": refine(["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="list"),
        "4": node("ProbeSame", first=["1", 0], second=["2", 0]),
    } | previews("2")
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == [name for _, _, name in sized]
    assert run.texts("12") == [f"rewritten {name}" for _, _, name in sized]
    rows = compared(run, "4")
    assert rows["counts"] == {"first": 5, "second": 5}
    assert all(row["same"] for row in rows["rows"])
    files = comfyui.saved(run, "3")
    assert [size_of(file) for file in files] == [(w, h) for w, h, _ in sized]
    assert seeing.loads == {VISION: 1, TEXT: 1}
    assert seeing.unloads == {VISION: 1, TEXT: 1}
    asked = [request.model for request in seeing.of("chat")]
    assert asked == [VISION] * 5 + [TEXT] * 5


def test_the_same_model_for_both_stages_is_loaded_once(comfyui: ComfyHost, seeing: FaultyOllama):
    run = comfyui.run(single(comfyui, text_model=VISION))
    assert run.ok, run.error
    assert seeing.loads == {VISION: 1}
    assert seeing.unloads == {VISION: 1}


def test_all_images_in_one_question_give_one_text(comfyui: ComfyHost, seeing: FaultyOllama):
    graph = {
        "1": pictures((20, 20, "red"), (30, 10, "blue")),
        "2": refine(["1", 0], batch_mode="one text for all images"),
        "3": node("ProbeSame", first=["1", 0], second=["2", 0]),
    } | previews("2")
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == ["red and blue"]
    assert len(run.texts("12")) == 1
    assert [row["same"] for row in compared(run, "3")["rows"]] == [True, True]


def test_an_image_with_alpha_is_described_and_passed_on_whole(
    comfyui: ComfyHost, seeing: FaultyOllama
):
    graph = {
        "1": pictures((40, 20, "green")),
        "2": node("SolidMask", value=0.0, width=40, height=20),
        "3": node("JoinImageWithAlpha", image=["1", 0], alpha=["2", 0]),
        "4": refine(["3", 0]),
        "5": node("ProbeSame", first=["3", 0], second=["4", 0]),
    } | previews("4")
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == ["green"]
    (row,) = compared(run, "5")["rows"]
    assert row["same"] is True
    assert row["second"] == [1, 20, 40, 4]


# models


def test_a_linked_text_names_the_models(comfyui: ComfyHost, seeing: FaultyOllama):
    seeing.models["bakllava:7b"] = vision_model("bakllava:7b", answer="seen by bakllava")
    graph = single(comfyui, vision_model=["5", 0], text_model=["6", 0])
    graph["5"] = node("PrimitiveString", value="bakllava:7b")
    graph["6"] = node("PrimitiveString", value="bakllava:7b")
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == ["seen by bakllava"]
    assert seeing.loads == {"bakllava:7b": 1}


def test_a_model_of_somebody_else_s_workflow_queues_and_names_the_pull_command(
    comfyui: ComfyHost, seeing: FaultyOllama
):
    run = comfyui.run(single(comfyui, vision_model="their-own:70b"))
    assert run.ok, run.error
    for text in (*run.texts("11"), *run.texts("12")):
        assert text.startswith("Error: ")
        assert "ollama pull their-own:70b" in text


# errors and the cache


def test_a_run_that_ended_in_a_message_runs_again_and_a_good_one_is_kept(
    comfyui: ComfyHost, ollama: FaultyOllama
):
    graph = single(comfyui)
    with ollama.refusing():
        failed = comfyui.run(graph)
    assert failed.ok, failed.error
    assert failed.texts("11")[0].startswith("Error: ")
    again = comfyui.run(graph)
    assert "2" in again.order
    assert again.texts("11") == ["A red circle on a white background."]
    asked = len(ollama.of("chat"))
    third = comfyui.run(graph)
    assert {"1", "2"} <= set(third.cached)
    assert "2" not in third.order
    assert len(ollama.of("chat")) == asked


def test_a_failure_passes_the_image_on_as_the_same_object(comfyui: ComfyHost, ollama: FaultyOllama):
    graph = single(comfyui)
    graph["20"] = node("ProbeSame", first=["1", 0], second=["2", 0])
    with ollama.refusing():
        run = comfyui.run(graph)
    assert run.ok, run.error
    (row,) = compared(run, "20")["rows"]
    assert row["same"] is True


def test_a_failed_rewrite_keeps_the_description(comfyui: ComfyHost, ollama: FaultyOllama):
    ollama.always("chat", Reply(text=""), model=TEXT)
    run = comfyui.run(single(comfyui))
    assert run.ok, run.error
    assert run.texts("11") == ["A red circle on a white background."]
    assert run.texts("12")[0].startswith("Error: Empty response from model")


def test_stop_the_workflow_ends_it_with_the_sentence(comfyui: ComfyHost, ollama: FaultyOllama):
    graph = single(comfyui, on_error="stop the workflow")
    with ollama.refusing():
        run = comfyui.run(graph)
    assert not run.ok
    assert run.error["node_id"] == "2"
    assert "ollama serve" in run.error["exception_message"]


BROKEN = [
    *("drop", "reset", "reset_mid_stream", "cut_mid_stream", "error_line", "oom_line", "no_done"),
    *("no_line", "empty", "empty_length", "thinking_only", "not_json", "bad_request", "signin"),
    *("forbidden", "not_found", "too_many_requests", "oom_old", "oom", "oom_runtime"),
    *("load_failure", "load_timeout", "bad_gateway", "busy", "proxy_page", "html"),
]


@pytest.mark.parametrize("fault", BROKEN)
def test_whatever_the_server_does_the_node_says_one_sentence_and_passes_the_image_on(
    comfyui: ComfyHost, ollama: FaultyOllama, fault: str
):
    """Which sentence it is for which fault is tested in tests/ollama_client."""
    ollama.always("chat", fault)
    graph = single(comfyui)
    graph["20"] = node("ProbeSame", first=["1", 0], second=["2", 0])
    run = comfyui.run(graph)
    assert run.ok, run.error
    (description,) = run.texts("11")
    assert run.texts("12") == [description]
    assert description.startswith("Error: ") and len(description) > len("Error: ") + 20
    assert description.rstrip()[-1] in ".:)" or "ollama" in description.lower()
    assert "Traceback" not in description
    (row,) = compared(run, "20")["rows"]
    assert row["same"] is True
    assert ollama.wait_until(lambda: ollama.loaded == [], 5.0)


# what the user sees meanwhile


def test_progress_and_words_are_shown_on_the_node(comfyui: ComfyHost, ollama: FaultyOllama):
    words = Reply(tokens=("A ", "slow ", "red ", "circle."), token_s=0.2)
    ollama.script("chat", words, model=VISION)
    run = comfyui.run(single(comfyui))
    assert run.ok, run.error
    shown = [event.data["text"] for event in run.of("progress_text", node="2")]
    assert any("A slow" in text and "circle." not in text for text in shown)
    bars = [event.data for event in run.of("progress", node="2")]
    assert bars[-1]["value"] == bars[-1]["max"]


# who has the GPU


@pytest.mark.parametrize("order", ["model first", "refine first"])
def test_no_other_branch_loads_a_model_between_our_unload_and_our_answer(
    comfyui: ComfyHost, ollama: FaultyOllama, order: str
):
    """One branch is ready beside ours; another becomes ready while we wait for the server."""
    ollama.always("chat", Reply(prompt_s=0.3, token_s=0.05))
    comfyui.post("/probe/forget")
    salt = single_count()
    ready, ours = ("3", "7") if order == "model first" else ("7", "3")
    graph = {
        "1": pictures((24, 24, "red")),
        ours: refine(["1", 0]),
        ready: node("ProbeModel", seconds=0.1, salt=salt),
        "4": node("ProbeSleep", seconds=0.2, salt=salt),
        "5": node("ProbeModel", seconds=0.1, salt=salt + 1000, after=["4", 0]),
        "20": node("PreviewAny", source=[ready, 0]),
        "21": node("PreviewAny", source=["5", 0]),
    } | previews(ours)
    run = comfyui.run(graph)
    assert run.ok, run.error
    calls = comfyui.get("/probe/calls")
    unloaded = min(call["at"] for call in calls if call["name"] == "unload_all_models")
    ended = [request.ended for request in ollama.of("chat")]
    assert len(ended) == 2 and None not in ended
    answered = max(at for at in ended if at is not None)
    models = [call["at"] for call in calls if call["name"].startswith("model_")]
    assert len(models) == 4
    assert [at for at in models if unloaded <= at <= answered] == []


def unloads_of_comfyui(host: ComfyHost) -> list[dict[str, Any]]:
    return [call for call in host.get("/probe/calls") if call["name"] == "unload_all_models"]


def with_a_model_loaded(host: ComfyHost) -> None:
    """Let ComfyUI hold a model, and begin with an empty record."""
    sampled = node("ProbeModel", seconds=0.0, salt=single_count() + 5000)
    run = host.run({"1": sampled, "2": node("PreviewAny", source=["1", 0])})
    assert run.ok, run.error
    host.post("/probe/forget")


def test_a_batch_of_eight_costs_one_load_and_one_confirmed_unload_of_each_model(
    comfyui: ComfyHost, seeing: FaultyOllama
):
    with_a_model_loaded(comfyui)
    graph = {
        "1": pictures(*[(16, 16, name) for name in [*COLOURS, *COLOURS][:8]], batch=True),
        "2": refine(["1", 0]),
    } | previews("2")
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == [*COLOURS, *COLOURS][:8]
    assert seeing.loads == {VISION: 1, TEXT: 1}
    assert seeing.unloads == {VISION: 1, TEXT: 1}
    assert unloads_of_comfyui(comfyui)[0]["at"] < seeing.of("load")[0].started
    for model in (VISION, TEXT):
        asked = next(one for one in seeing.of("unload") if one.model == model)
        assert asked.ended is not None
        assert any(look.started > asked.ended for look in seeing.of("ps")), "nobody looked"


def test_a_cloud_model_leaves_comfyui_s_models_alone(comfyui: ComfyHost, ollama: FaultyOllama):
    with_a_model_loaded(comfyui)
    cloud = vision_model("seer:cloud", remote_host="https://ollama.com:443", size=384)
    ollama.models[cloud.key] = cloud
    run = comfyui.run(single(comfyui, vision_model=cloud.key, text_model=cloud.key))
    assert run.ok, run.error
    assert run.texts("11") == ["A red circle on a white background."]
    assert unloads_of_comfyui(comfyui) == []


@pytest.mark.parametrize(
    ("choice", "size", "unloads"),
    [
        ("always", 1000, True),
        ("never", 10**15, False),
        ("when needed", 1000, False),
        ("when needed", 10**15, True),
    ],
)
def test_free_memory_does_what_it_says(
    comfyui: ComfyHost, ollama: FaultyOllama, choice: str, size: int, unloads: bool
):
    with_a_model_loaded(comfyui)
    ollama.vram_bytes = 10**16
    model = vision_model("sized", size=size)
    ollama.models[model.key] = model
    graph = single(comfyui, vision_model=model.key, text_model=model.key)
    graph["5"] = node("RefineryOllamaOptions", free_memory=choice)
    graph["2"]["inputs"] |= {"vision_options": ["5", 0], "text_options": ["5", 0]}
    run = comfyui.run(graph)
    assert run.ok, run.error
    assert run.texts("11") == ["A red circle on a white background."]
    assert bool(unloads_of_comfyui(comfyui)) is unloads


# cancel


def cancel(host: ComfyHost, events: EventLog, prompt_id: str) -> float:
    """Press cancel and return the seconds until the page hears that the run has ended."""
    began = time.monotonic()
    host.interrupt()
    return events.wait_for("execution_interrupted", prompt_id=prompt_id).at - began


@pytest.mark.parametrize("when", ["loading", "before the first byte", "between tokens"])
def test_cancel_ends_the_node_within_a_second_and_the_next_run_works(
    comfyui: ComfyHost, ollama: FaultyOllama, when: str
):
    if when == "loading":
        slow = vision_model(load_s=30.0)
        ollama.models[slow.key] = slow
    elif when == "before the first byte":
        ollama.script("chat", Reply(prompt_s=30.0))
    else:
        ollama.script("chat", Reply(tokens=("One ", "two "), ending="hang", after=1))
    waiting: Callable[[], RecordedRequest] = {
        "loading": lambda: ollama.wait_for("load", timeout_s=20),
        "before the first byte": lambda: ollama.wait_for("chat", timeout_s=20),
        "between tokens": lambda: wait_for_first_token(ollama),
    }[when]

    graph = single(comfyui)
    events = comfyui.listen()
    try:
        prompt_id = comfyui.queue(graph, events)
        request = waiting()
        time.sleep(0.3)
        assert request.ended is None
        took = cancel(comfyui, events, prompt_id)
        run = comfyui.finish(prompt_id, events)
    finally:
        events.close()
    assert run.interrupted
    assert took <= 1.0
    assert ollama.wait_until(lambda: request.client_closed, 2.0)

    if when == "loading":
        ollama.models[VISION] = vision_model()
    after = comfyui.run(graph)
    assert after.ok, after.error
    assert after.texts("11") == ["A red circle on a white background."]
    assert ollama.wait_until(lambda: ollama.loaded == [], 5.0)


def wait_for_first_token(ollama: FaultyOllama) -> RecordedRequest:
    request = ollama.wait_for("chat", timeout_s=20)
    assert ollama.wait_until(lambda: request.tokens_sent >= 1, 20)
    return request
