"""Refine Folder over the stub, with the tiny refiner: files, what is kept, and what a run says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

TINY = "tiny_refiner.safetensors"


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """ComfyUI's folders, with four images of noise in input/cats and one in output/made."""
    import folder_paths

    for kind in ("input", "output", "user"):
        monkeypatch.setattr(
            folder_paths, f"get_{kind}_directory", lambda kind=kind: str(tmp_path / kind)
        )
    names = ("input/cats/a.png", "input/cats/b.png", "input/cats/10.png", "input/cats/in/c.jpg")
    for name in (*names, "output/made/d.png"):
        write_noise(tmp_path / name)
    return tmp_path


@pytest.fixture
def node(checkpoints: Path, folders: Path, quick_loads: None) -> Iterator[Any]:
    """The node class; afterwards no refiner is kept."""
    from image_refinery.nodes.host.kept import free_refiner
    from image_refinery.nodes.refine_folder import RefineFolder

    yield RefineFolder
    free_refiner()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each checkpoint that a run takes."""
    from image_refinery.nodes.host import kept

    seen: list[str] = []
    usual = kept.loaded_refiner

    def noted(checkpoint: str, mode: Any) -> Any:
        seen.append(checkpoint)
        return usual(checkpoint, mode)

    monkeypatch.setattr(kept, "loaded_refiner", noted)
    return seen


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """after(2, act): act when two images are refined, at the first step of the third."""
    from image_refinery.nodes.host import RefineProgress

    def arrange(count: int, act: Callable[[], None]) -> None:
        usual = RefineProgress.__call__

        def watched(progress: RefineProgress, event: Any) -> None:
            usual(progress, event)
            if event.stage == "refine" and event.image == count + 1:
                act()

        monkeypatch.setattr(RefineProgress, "__call__", watched)

    return arrange


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the node shows."""
    from image_refinery.nodes import host
    from image_refinery.nodes.host import progress

    seen: list[str] = []
    for module in (host, progress):
        monkeypatch.setattr(module, "show", lambda _, *lines: seen.append("\n".join(lines)))
    return seen


def write_noise(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(ord(file.name[0])).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


def execute(node: Any, **inputs: Any) -> tuple[list[str], str, str]:
    """Return the outputs of a run."""
    return run(node, **inputs).result


def run(node: Any, **inputs: Any) -> Any:
    """Call the node as ComfyUI does with an input list: under inference mode."""
    small = {"checkpoint": TINY, "working_size": "keep size", "num_inference_steps": 4}
    named = {"folder": "cats", "strength": 0.5} | small | inputs
    with torch.inference_mode():
        return node.execute(**{key: [value] for key, value in named.items()})


def pixels(file: Path) -> Any:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def test_its_inputs_are_those_of_sdxl_refiner(node: Any) -> None:
    from image_refinery.nodes.refine_folder import FORMATS
    from image_refinery.nodes.sdxl_refiner import SDXLRefiner
    from image_refinery.refine import saving

    assert FORMATS == saving.FORMATS
    inputs = node.define_schema().inputs
    assert [one.id for one in inputs] == [
        *("folder", "include_subfolders", "pattern", "checkpoint", "strength"),
        *("num_inference_steps", "guidance_scale", "prompt", "negative_prompt", "seed"),
        *("output_size", "format", "working_size", "keep_colours", "memory_mode", "retry_failed"),
    ]
    theirs = {one.id: one for one in SDXLRefiner.define_schema().inputs}
    for one in inputs:
        if one.id in theirs and one.id not in ("prompt", "negative_prompt", "seed"):
            other = theirs[one.id]
            assert one.display_name == other.display_name
            assert one.as_dict() | {"advanced": True} == other.as_dict() | {"advanced": True}
    shown = next(one for one in inputs if one.id == "seed").as_dict()
    assert shown["control_after_generate"] is False, "a new seed is another job"
    assert not any(one.as_dict().get("lazy") for one in inputs), "no linked prompt is left out"
    assert node.validate_inputs(folder=["dogs"], checkpoint=["theirs.safetensors"]) is True


def test_each_image_gets_a_refined_copy(node: Any, folders: Path, loads: list[str]) -> None:
    before = {file: file.read_bytes() for file in (folders / "input").rglob("*.*")}
    names, folder, report = execute(node, include_subfolders=True)
    (made,) = (folders / "output/refined").iterdir()
    assert names == [f"refined/{made.name}/{name}.png" for name in ("10", "a", "b", "in/c")]
    assert folder == f"refined/{made.name} [output]"
    assert report.startswith("4 of 4 images refined, 4 of them in ")
    assert {file: file.read_bytes() for file in before} == before
    for name in ("a.png", "in/c.jpg"):
        source, result = folders / "input/cats" / name, (made / name).with_suffix(".png")
        assert pixels(result).shape == pixels(source).shape
        assert not np.array_equal(pixels(result), pixels(source))
    with Image.open(made / "a.png") as image:
        assert json.loads(image.text["image-refinery"])["model"] == TINY
    (job,) = (folders / "user/image-refinery/jobs").iterdir()
    assert job.name == made.name and job.name.startswith("cats-")
    assert f"Report: user/image-refinery/jobs/{job.name}/report." in report
    assert (job / "report.html").exists() and loads == [TINY]


def test_the_last_results_are_shown(node: Any, folders: Path) -> None:
    names, _, report = (output := run(node, include_subfolders=True)).result
    shown = output.ui["images"]
    assert output.ui["text"] == [report] and [one["type"] for one in shown] == ["output"] * 4
    assert [f"{one['subfolder']}/{one['filename']}" for one in shown] == names
    assert all((folders / "output" / one["subfolder"] / one["filename"]).exists() for one in shown)


def test_only_new_images_are_refined(node: Any, folders: Path, loads: list[str]) -> None:
    before = node.fingerprint_inputs(folder=["cats"])
    assert before == node.fingerprint_inputs(folder=["cats"])
    names, folder, _ = execute(node)
    (made,) = (folders / "output/refined").iterdir()
    written = {file: file.stat().st_mtime_ns for file in made.iterdir()}
    assert execute(node)[0] == names and loads == [TINY], "nothing to do needs no checkpoint"
    write_noise(folders / "input/cats/new.png")
    assert node.fingerprint_inputs(folder=["cats"]) != before
    names, again, report = execute(node)
    assert names[-1] == f"refined/{made.name}/new.png" and again == folder
    assert "4 of 4 images refined, 1 of them" in report
    assert {file: file.stat().st_mtime_ns for file in written} == written
    (made / "a.png").unlink()
    assert "4 of 4 images refined, 1 of them" in execute(node)[2], "a lost file is made again"


def test_other_settings_are_another_job_and_folder(node: Any, folders: Path) -> None:
    execute(node, pattern="a.png")
    settings: dict[str, Any] = {"strength": 0.25, "seed": 1, "prompt": "a ball", "format": "jpg"}
    settings |= {"guidance_scale": 1.0, "output_size": "working", "keep_colours": False}
    for name, value in settings.items():
        names, _, report = execute(node, pattern="a.png", **{name: value})
        assert len(names) == 1 and report.startswith("1 of 1 images refined, 1 of them"), name
    for same in ({"memory_mode": "offload"}, {"retry_failed": True}):
        assert "0 of them" in execute(node, pattern="a.png", **same)[2]
    assert len(list((folders / "output/refined").iterdir())) == 1 + len(settings)
    assert len(list((folders / "output/refined").glob("*/a.jpg"))) == 1


def test_another_checkpoint_of_the_same_name_is_another_job(
    node: Any, folders: Path, checkpoints: Path
) -> None:
    execute(node, pattern="a.png")
    description = checkpoints / "tiny_refiner" / "model_index.json"
    text = description.read_text("utf-8")
    description.write_text(text + "\n", "utf-8")
    try:
        assert "1 of them" in execute(node, pattern="a.png")[2]
    finally:
        description.write_text(text, "utf-8")
    assert len(list((folders / "output/refined").iterdir())) == 2


def test_the_results_are_a_folder_for_the_next_node(node: Any, folders: Path) -> None:
    from image_refinery.nodes.host import job_folders

    _, folder, _ = execute(node, folder="made [output]")
    assert [file.name for file in job_folders.path_of(folder).iterdir()] == ["d.png"]
    names, again, _ = execute(node, folder=folder)
    assert again != folder and names == [f"{again.removesuffix(' [output]')}/d.png"]


def test_results_never_become_inputs(node: Any, folders: Path) -> None:
    from image_refinery.nodes.host import BadInput

    write_noise(folders / "output" / "e.png")
    assert len(execute(node, folder="(output folder)")[0]) == 1
    with pytest.raises(BadInput, match=r"the next run would refine them again.*\(R501\)$"):
        execute(node, folder="(output folder)", include_subfolders=True)
    assert len(execute(node, folder="(input folder)", include_subfolders=True)[0]) == 4


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"folder": "dogs"}, "There is no folder .*dogs"),
        ({"pattern": "*.gif"}, "No image in .*cats matches"),
        ({"folder": "../out"}, "cannot be used in"),
        ({"checkpoint": "gone.safetensors"}, 'There is no checkpoint "gone.safetensors"'),
        ({"num_inference_steps": 1}, "leave no step to run"),
        ({"format": "gif"}, 'format is "gif", but must be one of'),
    ],
)
def test_what_cannot_be_done_is_one_sentence(node: Any, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=rf"{said}.*\(R\d{{3}}\)$"):  # of several families
        execute(node, **inputs)


def test_two_images_of_one_result_are_refused(node: Any, folders: Path) -> None:
    from image_refinery.jobs import JobError

    write_noise(folders / "input/cats/a.jpg")
    with pytest.raises(JobError, match="would have the same result"):
        execute(node)


def test_a_bad_image_fails_alone_and_can_be_retried(node: Any, folders: Path) -> None:
    (folders / "input/cats/b.png").write_text("no image")
    failed_before = node.fingerprint_inputs(folder=["cats"])
    names, _, report = execute(node)
    assert [Path(name).name for name in names] == ["10.png", "a.png"]
    assert "1 failed (1 R" in report and "turn retry failed on" in report
    assert node.fingerprint_inputs(folder=["cats"]) != failed_before, "it runs again"
    write_noise(folders / "input/cats/b.png")
    assert len(execute(node)[0]) == 2
    assert len(execute(node, retry_failed=True)[0]) == 3


@pytest.mark.parametrize("by", ["the refiner", "ComfyUI's layers"])
def test_a_cancel_keeps_what_is_done(
    node: Any, folders: Path, after: Callable[..., None], shown: list[str], by: str
) -> None:
    import comfy.model_management as management

    def cancel() -> None:
        management.interrupt_current_processing()
        if by != "the refiner":
            management.throw_exception_if_processing_interrupted()

    cancels = iter([cancel])
    after(2, lambda: next(cancels, lambda: None)())
    with pytest.raises(management.InterruptProcessingException):
        execute(node)
    assert not management.processing_interrupted()
    assert shown[-1].startswith("cancelled: 2 of 3 images refined, 2 of them in ")
    assert shown[-1].endswith(" Queue again to continue.")
    (made,) = (folders / "output/refined").iterdir()
    assert len(list(made.iterdir())) == 2
    (job,) = (folders / "user/image-refinery/jobs").iterdir()
    assert json.loads((job / "report.json").read_text("utf-8"))["left"] == 1
    names, _, report = execute(node)
    assert len(names) == 3 and report.startswith("3 of 3 images refined, 1 of them")
    before = {file: pixels(file) for file in made.iterdir()}
    for file in before:
        file.unlink()
    assert "3 of them" in execute(node)[2]
    for file, then in before.items():
        assert np.array_equal(pixels(file), then), "each image has its own seed"


def test_a_cancel_while_the_checkpoint_is_read(
    node: Any, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management
    from image_refinery.nodes import refine_run

    read = threading.Event()

    def slow(_: Any) -> dict[str, Any]:
        management.interrupt_current_processing()
        read.wait(30)
        return {}

    monkeypatch.setattr(refine_run, "identify", slow)
    with pytest.raises(management.InterruptProcessingException):
        execute(node)
    read.set()
    assert shown[-1] == "cancelled"


def test_memory_that_runs_out_ends_the_run(
    node: Any, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.refine import DeviceMemoryError, ImageRefiner

    usual = ImageRefiner.refine_batch
    done: list[Any] = []

    def run_out(refiner: Any, images: Any, *args: Any, **more: Any) -> Any:
        if done:
            raise DeviceMemoryError("Memory ran out on cuda.")
        done.append(images)
        return usual(refiner, images, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ImageRefiner, "refine_batch", run_out)
        with pytest.raises(DeviceMemoryError) as caught:
            execute(node)
    assert str(caught.value).startswith("Memory ran out on cuda. 1 of 3 images refined, ")
    assert str(caught.value).endswith(" Queue again to continue. (R406)")
    assert len(execute(node, retry_failed=True)[0]) == 3


def test_a_full_disk_is_one_sentence(
    node: Any, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.files import NotWritten
    from image_refinery.jobs import refining

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(refining, "save_refined", full)
        with pytest.raises(NotWritten, match=r"No space left on device.*queue again to continue"):
            execute(node)
    assert len(execute(node)[0]) == 3


def test_another_run_of_the_same_job_is_refused(node: Any, folders: Path) -> None:
    from image_refinery import jobs

    execute(node, pattern="a.png")
    (job,) = (folders / "user/image-refinery/jobs").iterdir()
    with jobs.locked(job), pytest.raises(jobs.JobError, match="Another process is working"):
        execute(node)


def test_the_bar_and_the_status_are_of_the_whole_job(
    node: Any, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_refinery.nodes.host import RefineProgress

    events: list[Any] = []
    last: list[Image.Image] = []
    monkeypatch.setattr(RefineProgress, "__call__", lambda _, event: events.append(event))
    monkeypatch.setattr(RefineProgress, "show_result", lambda _, image: last.append(image))
    names, _, _ = execute(node)
    assert np.array_equal(np.asarray(last[0]), pixels(folders / "output" / names[-1]))
    steps = [event for event in events if event.stage == "refine"]
    done = [event.done for event in steps]
    assert done == sorted(done) and done[-1] == steps[-1].total
    assert steps[-1].text == "image 3 of 3, step 2 of 2 (4 x 0.5)"
