"""The words of a run in what is saved of it, and runs that use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from image_refinery.cli.main import main
from image_refinery.files.words import read_words
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

pytestmark = pytest.mark.usefixtures("comfy")

RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."
WORDS = {
    "node": ["5"],
    "description": [RED],
    "vision_model": ["llava:latest"],
    "refined_output": [CRIMSON],
    "text_model": ["llama3.2:latest"],
}


def workflow(**properties: Any) -> dict[str, Any]:
    return {"nodes": [{"id": 5, "type": "RefineryLLMImageRefine", "properties": properties}]}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama) -> Any:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.llm_image_refine import LLMImageRefine

    return LLMImageRefine


def run(node: Any, info: Any, id: str = "5", count: int = 1, **inputs: Any) -> Any:
    hidden = type("Hidden", (), {"unique_id": id, "extra_pnginfo": info})
    running = type(node.__name__, (node,), {"hidden": hidden})
    named = {"vision_model": "llava", "text_model": "llama3.2", "user_instructions": "Shorten it."}
    lists = {name: [value] for name, value in (named | inputs).items()}
    return running.execute(image=[torch.rand(count, 64, 96, 3)], **lists)


def test_a_run_leaves_its_words_in_what_is_saved(node: Any) -> None:
    info: dict[str, Any] = {"workflow": workflow(ours="stays")}
    output = run(node, info)
    assert output.ui["words"] == [WORDS]
    assert info["image_refinery"] == {"5": WORDS}
    assert info["workflow"] == workflow(ours="stays", image_refinery=WORDS)


@pytest.mark.parametrize("info", [None, {}, {"workflow": None}, {"workflow": {"nodes": "none"}}])
def test_a_prompt_without_a_workflow_runs(node: Any, info: Any) -> None:
    assert run(node, info).result[2] == [CRIMSON]


def test_an_image_that_failed_has_no_words(node: Any, ollama: FaultyOllama) -> None:
    ollama.script("chat", None, "not_json")
    info: dict[str, Any] = {}
    run(node, info, count=2)
    assert info["image_refinery"]["5"]["description"] == [RED, None]
    assert info["image_refinery"]["5"]["refined_output"] == [CRIMSON, None]


def test_words_of_many_images_are_not_in_each_of_them(node: Any, ollama: FaultyOllama) -> None:
    from faulty_ollama import vision_model

    ollama.models = {"llava:latest": vision_model(answer=" ".join(map(str, range(800))))}
    info: dict[str, Any] = {"workflow": workflow(image_refinery=WORDS)}
    output = run(node, info, count=8, user_instructions="")
    assert output.ui["words"] == [{"node": ["5"]}], "words of an earlier run do not stay"
    assert len(json.dumps(info)) < 1000 and len(output.result[1]) == 8


def test_a_run_that_failed_leaves_the_words_that_are_there(node: Any) -> None:
    info = {"workflow": workflow(image_refinery=WORDS)}
    output = run(node, info, vision_model="missing")
    assert "words" not in output.ui and "failed" in output.ui
    assert info == {"workflow": workflow(image_refinery=WORDS)}


def test_recorded_words_need_no_server(
    node: Any, ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    info = {"workflow": workflow(image_refinery=WORDS)}
    output = run(node, info, use_recorded_words=True)
    assert output.result[1:] == ([RED], [CRIMSON])
    assert output.ui["models"] == ["llava:latest", "llama3.2:latest"]
    assert ollama.requests == [] and "failed" not in output.ui
    assert info["workflow"] == workflow(image_refinery=WORDS)


@pytest.mark.parametrize(
    ("properties", "count", "says"),
    [
        ({}, 1, "There are no recorded words for this node"),
        ({"image_refinery": "text"}, 1, "There are no recorded words for this node"),
        ({"image_refinery": {"description": [5]}}, 1, "There are no recorded words for this node"),
        ({"image_refinery": WORDS}, 3, "The recorded words are 1 texts, but 3 are needed"),
        (
            {"image_refinery": WORDS | {"description": [None]}},
            1,
            "The recorded words are 0 texts, but 1 are needed",
        ),
    ],
)
def test_words_that_cannot_be_used_are_one_sentence(
    node: Any, properties: dict[str, Any], count: int, says: str
) -> None:
    output = run(node, {"workflow": workflow(**properties)}, count=count, use_recorded_words=True)
    assert len(output.result[2]) == count
    assert output.result[2][0].startswith(f"Error: {says}")


def test_other_nodes_record_as_well(ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.llm_describe import LLMDescribe
    from image_refinery.nodes.ollama_process import OllamaProcess

    info: dict[str, Any] = {}
    hidden = type("Hidden", (), {"unique_id": "6", "extra_pnginfo": info})
    image = [torch.rand(1, 64, 96, 3)]
    type("Running", (LLMDescribe,), {"hidden": hidden}).execute(image=image, vision_model=["llava"])
    assert info["image_refinery"]["6"]["description"] == [RED]
    hidden.unique_id = "7"
    type("Running", (OllamaProcess,), {"hidden": hidden}).execute(
        text=["a", "b"], instructions=["Shorten it."], text_model=["llama3.2"]
    )
    assert info["image_refinery"]["7"] == {
        "node": ["7"],
        "text": [CRIMSON, CRIMSON],
        "text_model": ["llama3.2:latest"],
    }


def subgraph_workflow() -> dict[str, Any]:
    inner = {"id": "u-1", "nodes": [{"id": 5, "type": "RefineryLLMImageRefine"}]}
    return {
        "nodes": [{"id": 12, "type": "u-1"}, {"id": 13, "type": "u-1"}],
        "definitions": {"subgraphs": [inner]},
    }


def test_copies_of_a_subgraph_do_not_share_words(node: Any) -> None:
    info = {"workflow": subgraph_workflow()}
    run(node, info, id="12:5")
    again = {"workflow": json.loads(json.dumps(info["workflow"]))}
    assert run(node, again, id="12:5", use_recorded_words=True).result[2] == [CRIMSON]
    said = run(node, again, id="13:5", use_recorded_words=True).result[2][0]
    assert said.startswith("Error: There are no recorded words")


# what reads them

PROMPT = {"5": {"class_type": "RefineryLLMImageRefine"}}


@pytest.fixture
def saved(node: Any, tmp_path: Path) -> Path:
    """A PNG as SaveImage writes it after a run."""
    info: dict[str, Any] = {"workflow": workflow()}
    run(node, info)
    texts = PngInfo()
    for name, value in {"prompt": PROMPT, **info}.items():
        texts.add_text(name, json.dumps(value))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    return tmp_path / "a.png"


def test_the_command_prints_them(saved: Path, capsys: Any) -> None:
    assert main(["words", str(saved)]) == 0
    assert capsys.readouterr().out == (
        f"[node 5, description, llava:latest]\n{RED}\n\n"
        f"[node 5, refined_output, llama3.2:latest]\n{CRIMSON}\n\n"
    )
    assert main(["words", "--json", str(saved)]) == 0
    assert json.loads(capsys.readouterr().out) == {"image": str(saved), "nodes": {"5": WORDS}}


def test_they_are_read_from_a_workflow_and_from_webp(saved: Path, tmp_path: Path) -> None:
    with Image.open(saved) as image:
        found: Any = image.info
    plain = tmp_path / "a.json"
    plain.write_text(found["workflow"], "utf-8")
    assert read_words(plain) == {"5": WORDS}
    exif = Image.Exif()
    exif[0x010F] = f"workflow:{found['workflow']}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read_words(tmp_path / "a.webp") == {"5": WORDS}


def test_files_without_words_and_what_is_no_file(tmp_path: Path, capsys: Any) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "broken.json").write_text('{"nodes": [')
    (tmp_path / "text.png").write_text("no image")
    names = ("plain.png", "broken.json", "text.png", "missing.png", "missing.json")
    assert main(["words", *(str(tmp_path / name) for name in names)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5 and all(str(tmp_path) in line for line in said)
    assert said[0].endswith("plain.png has no words of this pack.")
    assert "Traceback" not in "".join(said)
