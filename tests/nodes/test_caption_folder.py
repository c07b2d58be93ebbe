"""Caption Folder over the stub: caption files, what is kept, and what a run says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """ComfyUI's folders, with four images in input/cats and one in output/made."""
    import folder_paths

    for kind in ("input", "output", "user"):
        monkeypatch.setattr(
            folder_paths, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind)
        )
    names = ("input/cats/a.png", "input/cats/b.png", "input/cats/10.png", "input/cats/in/c.png")
    for shade, name in enumerate((*names, "output/made/d.png")):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), (shade, 0, 0)).save(file)
    return tmp_path


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, ollama: FaultyOllama, folders: Path) -> Any:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    from image_refinery.nodes.caption_folder import CaptionFolder

    return CaptionFolder


def execute(node: Any, **inputs: Any) -> tuple[list[str], list[str], str]:
    named = {"folder": "cats", "vision_model": "llava", "text_model": "llama3.2"} | inputs
    return node.execute(**{key: [value] for key, value in named.items()}).result


def test_each_image_gets_a_caption_file(node: Any, folders: Path, ollama: FaultyOllama) -> None:
    names, texts, report = execute(node, instructions="Shorten it.")
    assert names == ["cats/10.png", "cats/a.png", "cats/b.png"] and texts == [CRIMSON] * 3
    assert (folders / "input/cats/a.txt").read_text() == CRIMSON
    assert not (folders / "input/cats/in/c.txt").exists()
    assert report.startswith("3 of 3 images captioned, 3 of them in ")
    assert ollama.loads == ollama.unloads == {"llava:latest": 1, "llama3.2:latest": 1}
    (job,) = (folders / "user/image-refinery/jobs").iterdir()
    assert job.name.startswith("cats-") and (job / "report.json").exists()


def test_only_new_images_are_asked(node: Any, folders: Path, ollama: FaultyOllama) -> None:
    before = node.fingerprint_inputs(folder=["cats"])
    assert before == node.fingerprint_inputs(folder=["cats"])
    assert execute(node)[1] == [RED] * 3
    Image.new("RGB", (60, 40), "white").save(folders / "input/cats/new.png")
    assert node.fingerprint_inputs(folder=["cats"]) != before
    names, texts, report = execute(node)
    assert names[-1] == "cats/new.png" and texts == [RED] * 4
    assert "4 of 4 images captioned, 1 of them" in report
    assert len(ollama.of("chat")) == 4 and "llama3.2:latest" not in ollama.loads


def test_other_settings_are_another_job(node: Any, folders: Path, ollama: FaultyOllama) -> None:
    execute(node)
    names, _, report = execute(node, custom_vision_prompt="Name the shape.")
    assert names == [], "the captions that are there stay"
    assert "Left out, as they have a caption: 3 images." in report
    assert execute(node, custom_vision_prompt="Name it.", existing="overwrite")[1] == [RED] * 3
    assert len(list((folders / "user/image-refinery/jobs").iterdir())) == 3
    from image_refinery.captioning.options import StageOptions

    options = {"existing": "overwrite", "custom_vision_prompt": "Name it."}
    for setting in ({"max_image_side": 512}, {"must": ("circle",)}, {"lossless": True}):
        asked = len(ollama.of("chat"))
        execute(node, **options, vision_options=StageOptions(**setting))
        assert len(ollama.of("chat")) > asked, f"{setting} changes an answer"
    asked = len(ollama.of("chat"))
    execute(node, **options, vision_options=StageOptions(parallel=2))
    assert len(ollama.of("chat")) == asked, "parallel changes none"


def test_a_folder_of_the_output(node: Any, folders: Path) -> None:
    options = node.define_schema().inputs[0].as_dict()["options"]
    assert options == ["(input folder)", "cats", "cats/in", "(output folder)", "made [output]"]
    assert execute(node, folder="made [output]")[0] == ["made/d.png"]
    assert (folders / "output/made/d.txt").read_text() == RED
    assert execute(node, folder="(input folder)", include_subfolders=True)[0][-1] == "cats/in/c.png"


def test_pattern_and_what_is_not_there(node: Any) -> None:
    assert execute(node, pattern="1*.png")[0] == ["cats/10.png"]
    for inputs, said in (
        ({"folder": "dogs"}, "There is no folder .*dogs"),
        ({"pattern": "*.gif"}, "No image in .*cats matches"),
        ({"folder": "../out"}, "cannot be used in"),
        ({"vision_model": ""}, "vision_model is empty"),
    ):
        with pytest.raises(Exception, match=said):  # of several families
            execute(node, **inputs)


def test_a_bad_image_fails_alone_and_can_be_retried(node: Any, folders: Path) -> None:
    (folders / "input/cats/b.png").write_text("no image")
    failed_before = node.fingerprint_inputs(folder=["cats"])
    names, texts, report = execute(node)
    assert names[-1] == "cats/b.png" and texts[-1].startswith("Error: ") and "(R" in texts[-1]
    assert "1 failed (1 R" in report and "turn retry failed on" in report
    assert node.fingerprint_inputs(folder=["cats"]) != failed_before, "it runs again"
    Image.new("RGB", (60, 40)).save(folders / "input/cats/b.png")
    assert execute(node, retry_failed=True)[1] == [RED] * 3


@pytest.mark.usefixtures("quick_retries")
def test_a_server_that_ends_keeps_what_is_done(
    node: Any, folders: Path, ollama: FaultyOllama
) -> None:
    from image_refinery.llm.errors import LLMError

    ollama.script("chat", None)
    ollama.always("chat", "busy")
    with pytest.raises(LLMError, match=r"1 of 3 images captioned.*Queue again to continue\."):
        execute(node)
    assert len(list((folders / "input/cats").glob("*.txt"))) == 1
    ollama.forget_script()
    assert execute(node)[1] == [RED] * 3


def test_a_cancel_keeps_what_is_done(node: Any, folders: Path, ollama: FaultyOllama) -> None:
    import comfy.model_management as management
    from faulty_ollama import Reply

    def cancel(_: Any) -> Reply:
        management.interrupt_current_processing()
        return Reply(token_s=0.5)

    ollama.script("chat", Reply(), Reply(), cancel)
    with pytest.raises(management.InterruptProcessingException):
        execute(node)
    assert not management.processing_interrupted()
    assert len(list((folders / "input/cats").glob("*.txt"))) == 2
    assert execute(node)[1] == [RED] * 3
    assert len(ollama.of("chat")) == 4, "only the one that was cancelled is asked again"


def test_another_run_of_the_same_job_is_refused(node: Any, folders: Path) -> None:
    from image_refinery import jobs

    execute(node)
    (job,) = (folders / "user/image-refinery/jobs").iterdir()
    with jobs.locked(job), pytest.raises(jobs.JobError, match="Another process is working"):
        execute(node)
