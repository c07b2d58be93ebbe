"""`image-refinery batch --task refine`: results, resumption, files, chains, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from image_refinery import jobs
from image_refinery.cli.main import main
from image_refinery.files.whole import draft_path
from image_refinery.jobs import refining
from image_refinery.jobs.captions import seed_of
from image_refinery.refine import DeviceMemoryError, ImageRefiner, RefineSettings
from image_refinery.refine.identity import identify
from image_refinery.refine.saving import FORMATS, save_refined
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

RED = "A red circle on a white background."
IDS = ["a.jpg", "b.png", "inner/c.png"]


@pytest.fixture(autouse=True)
def place(tiny_default: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, with the tiny refiner as the default model."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_refinery.cli.refine.best_device", lambda: "cpu")


@pytest.fixture
def images() -> Path:
    """Three images of noise, one of them in a folder inside."""
    top = Path("set")
    (top / "inner").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for name in IDS:
        pixels = noise.integers(0, 256, (48, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(top / name, quality=95)
    return top


@pytest.fixture
def batch(images: Path) -> Callable[..., int]:
    def run(*options: str) -> int:
        words = ["batch", str(images), "--recursive", "--job", "job", "--steps", "4"]
        return main([*words, *(options if "--task" in options else ("--task", "refine", *options))])

    return run


@pytest.fixture
def refined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the images that were refined."""
    seen: list[str] = []
    refine = refining._refine

    def noted(work: Any, *rest: Any) -> Any:
        seen.append(work.item.id)
        return refine(work, *rest)

    monkeypatch.setattr(refining, "_refine", noted)
    return seen


def rows_of(folder: str | Path) -> dict[str, Any]:
    return {row["id"]: row for row in jobs.Rows(Path(folder))}


def test_a_job_has_a_row_and_a_file_for_each_image(
    batch: Callable[..., int], loads: list[str], tiny_file: Path, capsys: Any
) -> None:
    assert batch("--seed", "3") == 0
    rows = rows_of("job")
    assert sorted(rows) == IDS and len(loads) == 1
    assert rows["a.jpg"] | {"at": 0, "seconds": 0} == {
        "id": "a.jpg",
        "at": 0,
        "by": "cpu",
        "version": rows["a.jpg"]["version"],
        "status": "done",
        "seed": seed_of(jobs.Item("a.jpg", ""), 3),
        "before": [80, 48],
        "after": [80, 48],
        "file": "a.png",
        "bytes": Path("job/refined/a.png").stat().st_size,
        "seconds": 0,
    }
    assert all(0 <= row["seconds"] < 300 for row in rows.values())
    assert "3 done, 0 failed, 0 left." in capsys.readouterr().err
    assert json.loads(Path("job/report.json").read_text())["done"] == 3
    page = Path("job/report.html").read_text()
    assert 'href="refined/inner/c.png"' in page and tiny_file.name in page
    seed = str(rows["a.jpg"]["seed"])
    assert main(["refine", "set/a.jpg", "--steps", "4", "--seed", seed, "-o", "one"]) == 0
    one, other = Path("one/a-refined.png"), Path("job/refined/a.png")
    assert one.read_bytes() == other.read_bytes(), "pixels and settings of the command refine"


def test_the_same_command_again_repairs_and_refines_what_is_missing(
    batch: Callable[..., int], images: Path, loads: list[str], refined: list[str]
) -> None:
    assert batch("--limit", "2") == 0
    assert batch() == 0
    assert refined == IDS and len(loads) == 2
    assert batch() == 0
    assert len(loads) == 2, "nothing is loaded if nothing is to do"
    Path("job/refined/b.png").unlink()
    whole = draft_path(Path("job/refined/a.png"))
    os.replace("job/refined/a.png", whole)  # killed after the row
    torn = draft_path(Path("job/refined/inner/c.png"))
    torn.write_bytes(b"torn")  # killed while it was written again
    Path("job/refined/inner/c.png").unlink()
    refined.clear()
    assert batch() == 0
    assert refined == ["b.png", "inner/c.png"]
    assert not whole.exists() and not torn.exists()
    for name in ("a.png", "b.png", "inner/c.png"):
        with Image.open(Path("job/refined", name)) as image:
            image.load()


def test_a_bad_image_is_a_row_and_can_be_retried(
    batch: Callable[..., int], images: Path, refined: list[str], capsys: Any
) -> None:
    good = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(good[:300])
    assert batch() == 1
    row = rows_of("job")["b.png"]
    assert row["status"] == "failed" and row["error"]["code"] == "R302"
    assert "errors: 1 R302 UnusableImage" in capsys.readouterr().err
    (images / "b.png").write_bytes(good)
    refined.clear()
    assert batch() == 1 and refined == []
    assert batch("--retry-failed") == 0 and refined == ["b.png"]


def test_an_image_that_needs_too_much_memory_stops_no_other_but_a_full_device_does(
    batch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    full = ["b.png"]
    refine = refining._refine

    def failing(work: Any, *rest: Any) -> Any:
        if work.item.id in full:
            raise DeviceMemoryError("Memory ran out.")
        return refine(work, *rest)

    monkeypatch.setattr(refining, "_refine", failing)
    assert batch() == 1
    assert "2 done, 1 failed, 0 left." in capsys.readouterr().err
    full[:] = IDS
    assert batch("--job", "other") == 1
    said = capsys.readouterr().err
    assert "0 done, 1 failed, 2 left." in said and said.endswith("Memory ran out. (R406)\n")
    full.clear()
    assert batch("--job", "other", "--retry-failed") == 0


def test_other_settings_and_another_checkpoint_are_refused(
    batch: Callable[..., int], tiny_file: Path, tmp_path: Path, refined: list[str], capsys: Any
) -> None:
    assert batch("--limit", "1") == 0
    for words, said in (
        (("--strength", "0.5"), "strength 0.3, and now it is 0.5"),
        (("--prompt", "x"), 'prompt "", and now it is "x"'),
        (("--format", "webp"), 'format "png", and now it is "webp"'),
    ):
        assert batch(*words) == 1
        assert said in capsys.readouterr().err
    plain, other = (tmp_path / name / tiny_file.name for name in ("plain", "other"))
    data = bytearray(tiny_file.read_bytes())
    for file in (plain, other):
        file.parent.mkdir()
        file.write_bytes(data)
        data[-1000:] = bytes(1000)
    one, two = identify(plain), identify(other)
    assert one == identify(plain) and one["checkpoint_digest"] != two["checkpoint_digest"]
    assert one | {"checkpoint_digest": ""} == two | {"checkpoint_digest": ""}
    assert batch("--model", str(plain)) == 1, "JSON beside a file counts"
    assert "was begun with checkpoint_bytes" in capsys.readouterr().err
    assert batch("--model", str(tmp_path / "gone.safetensors")) == 1
    assert "There is no checkpoint file" in capsys.readouterr().err
    assert refined == ["a.jpg"]


def test_results_are_never_inputs_and_never_each_other(
    batch: Callable[..., int], images: Path, refined: list[str], capsys: Any
) -> None:
    for output in ("set", "set/inner"):
        assert batch("--output", output) == 1
        assert "which is an input, and the next run would" in capsys.readouterr().err
    listed = Path("list.txt")
    listed.write_text("set/a.jpg\n")
    words = ["batch", "list.txt", "--job", "job", "--task", "refine", "--output", "."]
    assert main([*words, "--format", "jpg"]) == 1
    assert "set/a.jpg is an input. Name another folder" in capsys.readouterr().err
    for name in ("a.png", "A.png"):
        (images / name).write_bytes((images / "b.png").read_bytes())
        assert batch() == 1
        assert "would have the same result job/refined/" in capsys.readouterr().err
        (images / name).unlink()
    assert refined == []


def test_files_of_others_are_left_or_replaced(
    batch: Callable[..., int], refined: list[str], capsys: Any
) -> None:
    Path("out/inner").mkdir(parents=True)
    Path("out/inner/c.png").write_text("mine")
    assert batch("--output", "out") == 0
    assert "Left out, as there is a file of another program: 1 images." in capsys.readouterr().err
    assert refined == IDS[:2] and Path("out/inner/c.png").read_text() == "mine"
    assert batch("--output", "out", "--existing", "overwrite") == 0
    assert refined == IDS and Path("out/inner/c.png").stat().st_size > 100


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_formats_hold_the_settings(images: Path, tiny_file: Path, format: str) -> None:
    see_through = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    see_through.paste((0, 90, 200, 255), (0, 0, 32, 64))
    see_through.save(images / "inner" / "d.png")
    words = ["batch", "set/inner", "--job", "job", "--task", "refine", "--steps", "4"]
    assert main([*words, "--format", format, "--prompt", "M\u00e4rz", "--pattern", "d.*"]) == 0
    with Image.open(f"job/refined/d.{format}") as image:
        assert image.format == {"jpg": "JPEG", "webp": "WEBP"}[format]
        about = image.getexif()[0x010E].removeprefix("image-refinery:")
        right = image.convert("RGBA").getpixel((60, 30))
    assert json.loads(about)["prompt"] == "M\u00e4rz"
    assert json.loads(about)["model"] == tiny_file.name
    assert right == (255, 255, 255, 255) if format == "jpg" else right[3] == 0


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_has_a_file_in_every_format(tmp_path: Path, format: str, mode: str) -> None:
    file = tmp_path / f"a.{format}"
    profile = bytes(range(128))
    image = Image.new(mode, (8, 8))
    image.info["icc_profile"] = profile
    save_refined(image, file, RefineSettings(), "x.safetensors", format=format)
    with Image.open(file) as written:
        written.load()
        assert written.size == (8, 8) and written.info["icc_profile"] == profile


def test_captions_are_the_prompts(
    batch: Callable[..., int],
    images: Path,
    ollama: FaultyOllama,
    monkeypatch: pytest.MonkeyPatch,
    loads: list[str],
    capsys: Any,
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    good = (images / "b.png").read_bytes()
    (images / "b.png").write_text("no image")
    resident: list[dict[str, int]] = []
    load = refining.ImageRefiner.load
    monkeypatch.setattr(
        ImageRefiner, "load", lambda self: (resident.append(dict(ollama.loaded)), load(self))[1]
    )
    words = ("--task", "describe,refine", "--out", "txt", "--prompt", "photo, {caption}")
    assert batch(*words) == 1
    said = capsys.readouterr().err
    assert "1 images have no caption yet, so they are left." in said
    assert resident == [{}], "the server's models are unloaded first"
    rows = rows_of("job/refine")
    assert sorted(rows) == ["a.jpg", "inner/c.png"]
    assert rows["a.jpg"]["prompt"] == f"photo, {RED}"
    with Image.open("job/refined/a.png") as image:
        assert json.loads(image.text["image-refinery"])["prompt"] == f"photo, {RED}"
    assert (images / "a.txt").read_text() == RED
    (images / "b.png").write_bytes(good)
    assert batch(*words, "--retry-failed") == 0
    assert len(loads) == 2 and sorted(rows_of("job/refine")) == IDS
    assert batch(*words, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "describe: 3 images, 3 have a result, 0 to do.",
        "refine: 3 images, 3 have a result, 0 to do.",
    ]


def test_rewritten_captions_are_the_prompts(
    batch: Callable[..., int],
    images: Path,
    ollama: FaultyOllama,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    (images / "a.txt").write_text("ohwx a")
    words = ("--task", "rewrite,refine", "--instructions", "Shorten it.", "--pattern", "a.jpg")
    assert batch(*words) == 0
    assert rows_of("job")["a.jpg"]["tags"] == "ohwx a"
    assert rows_of("job/refine")["a.jpg"]["prompt"] == "A crimson disc floats on snow."


def test_collisions_are_found_before_the_first_caption(
    batch: Callable[..., int],
    images: Path,
    ollama: FaultyOllama,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    (images / "a.png").write_bytes((images / "b.png").read_bytes())
    assert batch("--task", "describe,refine") == 1
    assert batch("--task", "describe,refine", "--strength", "2") == 1
    assert not ollama.of("chat")


def test_options_of_other_tasks_are_refused(batch: Callable[..., int], capsys: Any) -> None:
    for words, said in (
        (("--preset", "Tag list"), "--task refine takes no --preset"),
        (("--prompt", "{caption}"), "{caption} needs a task such as caption,refine"),
        (("--task", "describe", "--model", "x"), "no --model, did you mean --vision-model?"),
        (("--task", "describe", "--strength", "1"), "--task describe takes no --strength"),
        (("--task", "caption,refine"), "needs --instructions or --preset"),
        (("--quality", "0"), "invalid choice"),
    ):
        with pytest.raises(SystemExit) as ended:
            batch(*words)
        assert ended.value.code == 2 and said in capsys.readouterr().err


def test_ctrl_c_keeps_what_is_done(
    batch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, refined: list[str], capsys: Any
) -> None:
    replace = os.replace

    def interrupted(source: Path, target: Path) -> None:
        replace(source, target)
        if "refined" in str(target):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(refining.os, "replace", interrupted)
        assert batch() == 130
    assert "2 images are left. The same command continues." in capsys.readouterr().err
    assert batch("--estimate") == 0 and refined == IDS
    assert "s an image" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is Unix's")
def test_a_killed_job_continues_and_loses_nothing(
    batch: Callable[..., int],
    images: Path,
    refined: list[str],
    small_process: list[str],
    tmp_path: Path,
) -> None:
    words = ["batch", "set", "--recursive", "--job", "job", "--steps", "4", "--task", "refine"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([*small_process, *words], env=environment, stderr=subprocess.DEVNULL)
    rows = tmp_path / "job" / "rows"
    until = time.monotonic() + 120
    while not any(file.stat().st_size for file in rows.glob("*.jsonl")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    before = set(rows_of("job"))
    assert before
    assert batch() == 0
    assert set(refined) == set(IDS) - before
    assert sorted(path.name for path in Path("job/refined").rglob("*.*")) == [
        *("a.png", "b.png", "c.png"),
    ]
