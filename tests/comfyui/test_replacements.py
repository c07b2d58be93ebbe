"""Prompts with nodes of basify and comfyui-ollama run with our nodes, in a real ComfyUI."""

from __future__ import annotations

import json
from typing import Any

import pytest
from faulty_ollama import FaultyOllama, RecordedRequest, text_model, vision_model
from host import ComfyHost, FoundHost, Graph, Run, node
from PIL import Image

FIRST_WITH_REPLACEMENTS = (0, 14)
OURS = {
    "BasifyImageRefine": "RefineryLLMImageRefine",
    "BasifyDescribeImage": "RefineryLLMDescribe",
    "BasifyDisplayAnythingAsText": "RefineryDisplayAnything",
    "BasifyWildcardProcessor": "RefineryWildcardProcessor",
    "OllamaVision": "RefineryLLMDescribe",
    "OllamaGenerate": "RefineryOllamaProcess",
    "OllamaGenerateAdvance": "RefineryOllamaProcess",
}
ELSEWHERE = "http://192.0.2.1:11434"
"""The old nodes' address: nothing may be sent there (nobody is there)."""


def old(class_type: str, **inputs: Any) -> dict[str, Any]:
    """A node as the page exports it: ComfyUI asks each replaced node for its title."""
    return node(class_type, **inputs) | {"_meta": {"title": class_type}}


def vision(**inputs: Any) -> dict[str, Any]:
    """OllamaVision with all its settings."""
    usual = {"query": "What is this?", "debug": "enable", "url": ELSEWHERE, "model": "llava:latest"}
    rest = {"keep_alive": -1, "format": "text", "seed": 77}
    return old("OllamaVision", **usual, **rest, **inputs)


def generate(prompt: Any) -> dict[str, Any]:
    """OllamaGenerate with all its settings."""
    return old(
        "OllamaGenerate", prompt=prompt, debug="enable", url=ELSEWHERE, model="llama3.2:latest",
        keep_alive=5, format="text", filter_thinking=True,
    )  # fmt: skip


@pytest.fixture
def host(comfyui: ComfyHost, found_comfyui: FoundHost) -> ComfyHost:
    """The running ComfyUI, where it can replace nodes."""
    if found_comfyui.version < FIRST_WITH_REPLACEMENTS:
        pytest.skip("this ComfyUI cannot replace nodes")
    return comfyui


@pytest.fixture
def answering(ollama: FaultyOllama) -> FaultyOllama:
    """llava describes, llama3.2 rewrites."""
    for model in (vision_model(answer="A red square."), text_model(answer="A crimson square.")):
        ollama.models[model.key] = model
    return ollama


def picture(host: ComfyHost, width: int) -> dict[str, Any]:
    return node("LoadImage", image=host.save_input(Image.new("RGB", (width, 30), "red")))


def chats(server: FaultyOllama) -> list[RecordedRequest]:
    return server.of("chat")


def ran(host: ComfyHost, graph: Graph) -> Run:
    run = host.run(graph)
    assert run.ok, run.error
    return run


def test_comfyui_lists_them_where_it_can_replace_nodes_and_loads_as_ever_elsewhere(
    comfyui: ComfyHost, found_comfyui: FoundHost
) -> None:
    loading = comfyui.log.partition("Starting server")[0]
    assert "Error while calling comfy_entrypoint" not in loading
    assert "replace" not in loading.lower()
    assert comfyui.object_info("RefineryLLMDescribe")
    if found_comfyui.version < FIRST_WITH_REPLACEMENTS:
        assert comfyui.post("/prompt", {"prompt": {"1": generate("Hi")}}).status_code == 400
        return
    listed = comfyui.get("/api/node_replacements")
    assert {id: [row["new_node_id"] for row in listed[id]] for id in OURS} == {
        id: [new] for id, new in OURS.items()
    }
    others = {id.lower() for id in listed.keys() - OURS.keys()}
    assert not [id for id in others if "llama" in id or "basify" in id]


def test_ollama_vision(host: ComfyHost, answering: FaultyOllama) -> None:
    graph = {"1": picture(host, 201), "2": vision(images=["1", 0])}
    run = ran(host, graph | {"3": node("PreviewAny", source=["2", 0])})
    assert run.texts("3") == ["A red square."]
    (sent,) = chats(answering)
    assert sent.model == "llava:latest"
    assert sent.body["messages"][-1]["content"] == "What is this?"
    assert len(sent.images) == 1
    asked = {key: sent.options[key] for key in ("temperature", "top_p", "top_k", "seed")}
    assert asked == {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 77}
    assert answering.loaded == []  # keep_alive has no counterpart: unloaded after the run


def test_ollama_vision_sends_a_batch_in_one_request_and_stops_on_an_error(
    host: ComfyHost, answering: FaultyOllama
) -> None:
    pictures = json.dumps([[40, 30, [1, 0, 0]], [40, 30, [0, 0, 1]]])
    batch = node("ProbePictures", pictures=pictures, batch=True, salt=1)
    graph = {"1": batch, "2": vision(images=["1", 0]), "3": node("PreviewAny", source=["2", 0])}
    ran(host, graph)
    (sent,) = chats(answering)
    assert len(sent.images) == 2
    graph["2"]["inputs"]["model"] = "gone:latest"
    run = host.run(graph)
    assert not run.ok
    assert "gone:latest" in run.error["exception_message"]


def test_ollama_generate(host: ComfyHost, answering: FaultyOllama) -> None:
    prompt = "Write a line about art."
    run = ran(host, {"2": generate(prompt), "3": node("PreviewAny", source=["2", 0])})
    assert run.texts("3") == ["A crimson square."]
    (sent,) = chats(answering)
    assert sent.model == "llama3.2:latest"
    assert sent.body["messages"] == [{"role": "user", "content": prompt}]
    assert (sent.options["temperature"], sent.options["top_p"]) == (0.8, 0.9)
    assert answering.loaded == []


def test_ollama_generate_advance(host: ComfyHost, answering: FaultyOllama) -> None:
    advance = old(
        "OllamaGenerateAdvance", prompt="a cat", debug=False, url=ELSEWHERE,
        model="llama3.2:latest", system="Make it a prompt for an image generator.", seed=9,
        top_k=21, top_p=0.55, temperature=0.15, num_predict=64, tfs_z=1.0, keep_alive=7,
        keep_context=True, format="text", filter_thinking=True,
    )  # fmt: skip
    run = ran(host, {"2": advance, "3": node("PreviewAny", source=["2", 0])})
    assert run.texts("3") == ["A crimson square."]
    (sent,) = chats(answering)
    content = sent.body["messages"][-1]["content"]
    assert "a cat" in content
    assert content.endswith("Instructions: Make it a prompt for an image generator.")
    asked = {key: sent.options[key] for key in ("temperature", "top_p", "top_k", "seed")}
    assert asked == {"temperature": 0.15, "top_p": 0.55, "top_k": 21, "seed": 9}


def test_basify_image_refine(host: ComfyHost, answering: FaultyOllama) -> None:
    refine = old(
        "BasifyImageRefine", image=["1", 0], vision_model="llava:latest",
        vision_prompt="List the shapes.", text_model="llama3.2:latest",
        text_instructions="Make it vivid.", vision_temperature=0.05, vision_top_p=0.6,
        vision_top_k=11, text_temperature=1.5, text_presence_penalty=-1,
        text_frequency_penalty=2, text_top_p=0.7, text_top_k=22,
    )  # fmt: skip
    graph = {"1": picture(host, 202), "2": refine}
    for index in range(3):
        graph[str(10 + index)] = node("PreviewAny", source=["2", index])
    run = ran(host, graph)
    assert run.texts("11") == ["A red square."]
    assert run.texts("12") == ["A crimson square."]
    seeing, writing = chats(answering)
    assert (seeing.model, writing.model) == ("llava:latest", "llama3.2:latest")
    assert {message["content"] for message in seeing.body["messages"]} == {"List the shapes."}
    assert writing.body["messages"][-1]["content"].endswith("Instructions: Make it vivid.")
    assert {key: seeing.options[key] for key in ("temperature", "top_p", "top_k")} == {
        "temperature": 0.05,
        "top_p": 0.6,
        "top_k": 11,
    }
    keys = ("temperature", "presence_penalty", "frequency_penalty", "top_p", "top_k")
    assert [writing.options[key] for key in keys] == [1.5, -1, 2, 0.7, 22]
    assert answering.loaded == []


def test_basify_s_other_nodes(host: ComfyHost, answering: FaultyOllama) -> None:
    wildcards = host.base / "user" / "image-refinery" / "wildcards"
    wildcards.mkdir(parents=True, exist_ok=True)
    (wildcards / "moved_color.txt").write_text("teal\n", encoding="utf-8")
    describe = old(
        "BasifyDescribeImage", image=["1", 0], model="llava:latest",
        server_url=f"{ELSEWHERE}/api/generate", temperature=0.45, max_tokens=90,
    )  # fmt: skip
    processor = old(
        "BasifyWildcardProcessor", text="// a note\nA __moved_color__ cat", prompt_file_path="",
        enable_wildcards=True, wildcard_directory="/nowhere", force_refresh=False,
        iterator_completed=False,
    )  # fmt: skip
    graph = {
        "1": picture(host, 203),
        "2": describe,
        "3": old("BasifyDisplayAnythingAsText", value=["2", 1]),
        "4": processor,
        "5": node("PreviewAny", source=["4", 0]),
        "6": node("PreviewAny", source=["3", 0]),
    }
    run = ran(host, graph)
    assert run.texts("3") == run.texts("6") == ["A red square."]
    assert run.texts("5") == ["A teal cat"]
    (sent,) = chats(answering)
    assert sent.body["messages"][-1]["content"].endswith("in one sentence.")
    assert (sent.options["temperature"], sent.options["top_p"]) == (0.45, 0.9)


def test_replaced_nodes_may_feed_one_another(host: ComfyHost, answering: FaultyOllama) -> None:
    """In whichever order ComfyUI takes them: it goes through them in the order of a set."""
    graph: Graph = {}
    for number in range(12):
        seeing, writing, shown = f"see{number}", f"write{number}", f"show{number}"
        graph[f"load{number}"] = picture(host, 210 + number)
        graph[seeing] = vision(images=[f"load{number}", 0])
        graph[writing] = generate([seeing, 0])
        graph[shown] = old("BasifyDisplayAnythingAsText", value=[writing, 0])
    run = ran(host, graph)
    assert {tuple(run.texts(f"show{number}")) for number in range(12)} == {("A crimson square.",)}
    written = [sent for sent in chats(answering) if sent.model == "llama3.2:latest"]
    assert {sent.body["messages"][-1]["content"] for sent in written} == {"A red square."}
