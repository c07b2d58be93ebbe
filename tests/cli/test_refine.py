"""`image-refinery refine` as it is typed: files, metadata, comparison, errors, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty_ollama import Reply
from image_refinery.__main__ import main
from image_refinery._version import __version__
from image_refinery.cli.compare import busiest_box, comparison
from image_refinery.cli.refine import save, target_files
from image_refinery.refine.saving import METADATA_KEY
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("tiny_default")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Noise, of which nothing can come back by chance."""
    path = tmp_path / "a photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def test_a_picture_becomes_a_png_of_its_size_with_its_settings(
    photo: Path, tiny_file: Path, capsys: Any
) -> None:
    before = photo.read_bytes()
    words = ["--prompt", "M\u00e4rz", "--strength", "0.2", "--steps", "10", "--seed", "7"]
    assert main(["refine", str(photo), *words]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{Path('refined', 'a photo-refined.png')}\n"
    assert photo.name in printed.err
    assert photo.read_bytes() == before
    with Image.open("refined/a photo-refined.png") as refined:
        assert refined.format == "PNG" and refined.size == (80, 48)
        about = json.loads(refined.text[METADATA_KEY])
    assert about["software"] == f"image-refinery {__version__}"
    assert about["model"] == tiny_file.name, "no path of this computer"
    assert about["prompt"] == "M\u00e4rz" and about["seed"] == 7
    assert about["strength"] == 0.2 and about["num_inference_steps"] == 10


def test_the_same_settings_give_the_same_picture(photo: Path) -> None:
    for folder in ("one", "two"):
        assert main(["refine", str(photo), "-o", folder, "--steps", "4"]) == 0
    first, second = (Path(f, "a photo-refined.png").read_bytes() for f in ("one", "two"))
    assert first == second


def test_compare_writes_a_sheet(photo: Path, capsys: Any) -> None:
    assert main(["refine", str(photo), "--compare", "-o", ".", "--steps", "4"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("a photo-refined.png", "a photo-refined-compare.png"),
    ]
    with Image.open("a photo-refined-compare.png") as sheet:
        assert sheet.width > 2 * 600 and sheet.height > 600


def test_a_bad_file_is_named_and_the_others_are_refined(photo: Path, capsys: Any) -> None:
    cut = photo.with_name("cut.jpg")
    cut.write_bytes(photo.read_bytes()[:300])
    assert main(["refine", "gone.png", str(cut), str(photo), "--steps", "4"]) == 1
    printed = capsys.readouterr()
    assert "Error: gone.png does not exist." in printed.err
    assert f"Error: {cut} is damaged" in printed.err
    assert printed.out == f"{Path('refined', 'a photo-refined.png')}\n"


def profile(space: bytes) -> bytes:
    return bytes(16) + space + bytes(108)


def test_a_cmyk_photo_becomes_a_png_in_rgb_without_its_cmyk_profile(photo: Path) -> None:
    with Image.open(photo) as image:
        image.convert("CMYK").save("print.jpg", icc_profile=profile(b"CMYK"), quality=95)
    assert main(["refine", "print.jpg", "--compare", "--steps", "4"]) == 0
    with Image.open("refined/print-refined.png") as refined:
        assert (refined.mode, refined.size) == ("RGB", (80, 48))
        assert "icc_profile" not in refined.info
        refined.load()


def test_16_bit_gray_is_refined_and_float_tiffs_are_refused_for_users(
    photo: Path, capsys: Any
) -> None:
    ramp = np.linspace(0, 65535, 48 * 80).reshape(48, 80)
    Image.fromarray(ramp.astype(np.uint16)).save("gray.png")
    Image.fromarray((ramp / 65535).astype(np.float32)).save("float.tif")
    assert main(["refine", "gray.png", "float.tif", "--compare", "--steps", "4"]) == 1
    with Image.open("refined/gray-refined.png") as refined:
        assert refined.mode == "L"
        assert np.abs(np.asarray(refined) - ramp / 257).mean() < 10
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "Error: float.tif holds 32-bit float values, whose range is unknown. "
        "Save it as an 8-bit image. (R503)"
    )


def test_a_file_that_pillow_cannot_write_says_why(
    photo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("encoder error -2 when writing image file")  # without errno, as Pillow's

    monkeypatch.setattr(Image.Image, "save", refuse)
    assert main(["refine", str(photo), "--strength", "0"]) == 1
    assert "cannot be written (encoder error -2 when writing" in capsys.readouterr().err


def test_a_result_that_is_half_written_is_under_no_name_of_a_result(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Else a later run with --skip-existing would take what a killed one has left for a result."""
    target = Path("refined", "a photo-refined.png")

    def write_half(image: Image.Image, file: Path, *_: Any, **__: Any) -> None:
        Path(file).write_bytes(b"half")
        assert not target.exists()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", write_half)
    assert main(["refine", str(photo), "--strength", "0"]) == 1
    assert f"{target} cannot be written (No space left on device)" in capsys.readouterr().err
    assert list(Path("refined").iterdir()) == []


def test_a_folder_is_its_pictures(photo: Path, capsys: Any) -> None:
    (photo.parent / "notes.txt").write_text("no picture")
    assert main(["refine", ".", "--steps", "4"]) == 0
    assert capsys.readouterr().out == f"{Path('refined', 'a photo-refined.png')}\n"


def test_no_input_is_ever_a_target(tmp_path: Path) -> None:
    names = ["x.png", "x-refined.png", "x-refined-2-compare.png", "deep/x.png"]
    paths = [tmp_path / name for name in names]
    targets = target_files(paths, tmp_path)
    sheets = [target.with_name(f"{target.stem}-compare.png") for target in targets]
    assert len({*paths, *targets, *sheets}) == 3 * len(paths)
    assert targets[0].name == "x-refined-3.png"


def test_a_mask_limits_the_change(photo: Path) -> None:
    mask = np.zeros((48, 80), np.uint8)
    mask[8:40, 8:40] = 255
    Image.fromarray(mask).save("mask.png")
    assert main(["refine", str(photo), "--mask", "mask.png", "--steps", "4"]) == 0
    with Image.open(photo) as before, Image.open("refined/a photo-refined.png") as after:
        changed = np.abs(np.asarray(before).astype(int) - np.asarray(after).astype(int)).max(2) > 0
    assert changed[:, 40:].sum() == 0 and changed[8:40, 8:40].mean() > 0.5


def test_a_missing_file_is_found_before_the_checkpoint_loads(
    photo: Path, capsys: Any, loads: list[str]
) -> None:
    Path("notes.png").write_text("no image")
    assert main(["refine", "nothere.jpg", "notes.png"]) == 1
    assert loads == []
    assert capsys.readouterr().err.splitlines() == [
        "Error: nothere.jpg does not exist. (R503)",
        "Error: notes.png is not an image that Pillow can read. (R503)",
    ]
    assert main(["refine", "nothere.jpg", str(photo), "--steps", "4"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Error: nothere.jpg does not exist. (R503)" and len(loads) == 1
    with Image.open("refined/a photo-refined.png") as refined:
        about = json.loads(refined.text[METADATA_KEY])
    assert about["seed"] == 1, "that of its place"


def test_a_mask_of_another_size_is_refused_before_the_checkpoint_loads(
    photo: Path, capsys: Any, loads: list[str]
) -> None:
    Image.new("L", (40, 60), 255).save("mask.png")
    assert main(["refine", str(photo), "--mask", "mask.png"]) == 1
    assert loads == []
    assert capsys.readouterr().err.splitlines() == [
        f"Error: {photo}: The mask is 40 x 60 px, but the image is 80 x 48 px: scale the mask to "
        "the size of the image. (R402)"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strength", "0.01"], "or the number of steps to 100"),
        (["--strength", "2"], "strength must be a number from 0 to 1"),
        (["--model", "gone.safetensors"], "There is no checkpoint file at gone.safetensors"),
        (["--model", "old.ckpt"], "pickled checkpoint"),
        (["--mask", "gone.png"], "gone.png does not exist"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_1(
    photo: Path, capsys: Any, words: list[str], said: str
) -> None:
    assert main(["refine", str(photo), *words]) == 1
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("Error: ") and said in last
    assert printed.out == "" and not Path("refined").exists()


def test_wrong_arguments_are_exit_code_2(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["refine", "x.png", "--memory-mode", "tiny"])
    assert ended.value.code == 2
    assert "low_vram" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process on Windows")
def test_ctrl_c_ends_it_with_130_and_leaves_no_half_file(
    photo: Path, small_process: list[str]
) -> None:
    words = ["refine", str(photo), "--steps", "1000", "--strength", "1"]
    with subprocess.Popen([*small_process, *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == photo.name:
                break
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        process.wait(timeout=120)
        took = time.monotonic() - began
    assert process.returncode == 130
    assert rest.endswith("Cancelled: 0 of 1 images refined.\n") and "Traceback" not in rest
    assert took < 30, "most of it is Python's own end; the steps that are left take a minute"
    assert not Path("refined").exists()


def test_existing_results_are_kept_unless_they_may_be_overwritten(
    photo: Path, capsys: Any, loads: list[str]
) -> None:
    words = ["refine", str(photo), "--steps", "4"]
    target = Path("refined", "a photo-refined.png")
    target.parent.mkdir()
    target.write_text("mine")
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == (
        f"Error: {target} exists already. Add --skip-existing to leave out such images, or "
        "--overwrite to replace the files. (R507)\n"
    )
    assert main([*words, "--skip-existing"]) == 0
    assert capsys.readouterr().err == "1 of 1 are refined already.\n"
    assert loads == [] and target.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    with Image.open(target) as refined:
        assert refined.size == (80, 48)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--overwrite", "--skip-existing"])
    assert ended.value.code == 2


def test_an_existing_comparison_is_kept_too(photo: Path, capsys: Any, loads: list[str]) -> None:
    Image.new("RGB", (8, 8)).save("b.png")
    for name in ("a photo-refined.png", "b-refined-compare.png"):
        Path(name).touch()
    words = ["refine", str(photo), "b.png", "-o", "."]
    assert main([*words, "--compare"]) == 1
    assert f"Error: {Path('a photo-refined.png')} and 1 more exist already." in (
        capsys.readouterr().err
    )
    assert main([*words, "--compare", "--skip-existing"]) == 0
    assert loads == []


def test_an_output_that_is_a_file_is_refused_before_the_checkpoint_loads(
    photo: Path, capsys: Any, loads: list[str]
) -> None:
    assert main(["refine", str(photo), "-o", str(photo)]) == 1
    said = f"Error: {photo} is a file. Choose a folder with --output. (R506)\n"
    assert capsys.readouterr().err == said
    assert loads == []


def test_a_cancelled_run_tells_what_is_done_and_how_to_continue(
    photo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_and_interrupt(*arguments: Any) -> None:
        save(*arguments)
        signal.raise_signal(signal.SIGINT)

    Image.new("RGB", (64, 64)).save("b.png")
    words = ["refine", str(photo), "b.png", "--steps", "4"]
    with monkeypatch.context() as patch:
        patch.setattr("image_refinery.cli.refine.save", save_and_interrupt)
        assert main(words) == 130
    printed = capsys.readouterr()
    assert printed.out == f"{Path('refined', 'a photo-refined.png')}\n"
    assert printed.err.endswith(
        "Cancelled: 1 of 2 images refined, in refined. Run again with --skip-existing for the "
        "others.\n"
    )
    assert main([*words, "--skip-existing"]) == 0
    assert capsys.readouterr().out == f"{Path('refined', 'b-refined.png')}\n"
    with Image.open("refined/b-refined.png") as refined:
        assert json.loads(refined.text[METADATA_KEY])["seed"] == 1, "as in one run"


def test_the_magnified_crop_is_where_most_changed() -> None:
    before = Image.new("RGB", (200, 100), "grey")
    after = before.copy()
    after.paste("red", (150, 60, 165, 75))
    left, top, right, bottom = busiest_box(before, after)
    assert left <= 150 and right >= 165 and top <= 60 and bottom >= 75
    sheet = np.asarray(comparison(before, after))
    crop = sheet[sheet.shape[0] // 2 + 60 :, sheet.shape[1] // 2 :]
    red = (crop[..., 0] > 200) & (crop[..., 1] < 60)
    assert red.mean() > 0.2, "the changed place fills much of the lower right"


def test_a_comparison_takes_any_two_pictures() -> None:
    see_through = Image.new("RGBA", (3, 50), (0, 0, 0, 0))
    larger = Image.new("L", (6, 100), 10)
    assert comparison(see_through, larger).mode == "RGB"


def test_each_region_is_described_for_its_own_prompt(
    photo: Path,
    ollama: FaultyOllama,
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    ollama.script("chat", Reply(text="A red ball."), Reply(text="A blue box."))
    image, mask = Image.new("RGB", (300, 200), "white"), Image.new("L", (300, 200))
    image.paste((200, 0, 0), (10, 10, 40, 40))
    image.paste((0, 0, 200), (240, 150, 280, 190))
    mask.paste(255, (10, 10, 40, 40))
    mask.paste(255, (240, 150, 280, 190))
    image.save("two.png")
    mask.save("mask.png")
    words = ["refine", "two.png", "--mask", "mask.png", "--prompt", "{tile} on white"]
    asked = [*words, "--steps", "4", "--describe-tiles", "--vision-model", "llava"]
    assert main(asked) == 0
    assert encoded == ["A red ball. on white", "A blue box. on white"]
    assert len([one for one in ollama.requests if one.images]) == 2
    ollama.always("chat", "empty")
    photo_words = ["refine", str(photo), "--describe-tiles", "--vision-model", "llava"]
    capsys.readouterr()
    assert main(photo_words) == 1
    assert "Empty response from model" in capsys.readouterr().err


def test_scale_writes_a_larger_image(photo: Path) -> None:
    assert main(["refine", str(photo), "--scale", "1.5", "--steps", "4", "--compare"]) == 0
    with Image.open("refined/a photo-refined.png") as refined:
        assert refined.size == (120, 72)
        assert json.loads(refined.text[METADATA_KEY])["scale"] == 1.5
