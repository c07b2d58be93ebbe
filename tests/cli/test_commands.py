"""The commands as a user types them: output, exit codes, and nothing left loaded."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest
from image_refinery.__main__ import main
from image_refinery._program import program
from image_refinery._setup import default_refiner
from image_refinery._version import __version__
from image_refinery.refine import DEFAULT_MODEL, hugging_face
from PIL import Image

if TYPE_CHECKING:
    from faulty_ollama import FaultyOllama

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def environment(ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Talk to the scripted server; have no configuration and no embedded models of one's own."""
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", str(tmp_path / "gguf"))
    monkeypatch.delenv("IMAGE_REFINERY_REFINER", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama.cpp"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.jpg"
    Image.new("RGB", (400, 300), "teal").save(path)
    return path


def test_describe_prints_the_description_alone(photo: Path, capsys: Any) -> None:
    assert main(["describe", str(photo)]) == 0
    printed = capsys.readouterr()
    assert printed.out == "A red circle on a white background.\n"
    assert "Describing with llava:latest: 1 image\n" in printed.err


def test_describe_and_rewrite_as_json_lines(photo: Path, ollama: FaultyOllama, capsys: Any) -> None:
    assert main(["describe", str(photo), str(photo), "--instructions", "Shorten.", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == second
    assert first == {
        "image": str(photo),
        "vision_model": "llava:latest",
        "text_model": "llama3.2:latest",
        "description": "A red circle on a white background.",
        "refined_output": "A crimson disc floats on snow.",
    }
    assert ollama.unloads == {"llava:latest": 1, "llama3.2:latest": 1}


def test_a_preset_gives_the_rewrite_its_text_length_and_form(
    photo: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    assert main(["describe", str(photo), "--preset", "tag list as json"]) == 0
    describing, rewriting = (r.body for r in ollama.requests if r.kind == "chat")
    assert "format" not in describing and describing["options"]["num_predict"] == 512
    assert list(rewriting["format"]["properties"]) == ["tags"]
    assert rewriting["options"]["num_predict"] == 900
    assert "lower-case tags" in rewriting["messages"][-1]["content"]
    assert "---" not in rewriting["messages"][-1]["content"]


def test_options_that_are_typed_win_over_a_preset(photo: Path, ollama: FaultyOllama) -> None:
    arguments = ["--instructions", "Shorten.", "--num-predict", "9"]
    assert main(["describe", str(photo), "--preset", "JSON prompt", *arguments]) == 0
    (*_, rewriting) = (r.body for r in ollama.requests if r.kind == "chat")
    assert rewriting["options"]["num_predict"] == 9
    assert rewriting["messages"][-1]["content"].endswith("Instructions: Shorten.")
    assert "prompt" in rewriting["format"]["properties"]


def test_a_preset_of_one_s_own_is_beside_the_configuration(
    photo: Path, ollama: FaultyOllama, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (
        tmp_path / "image-refinery" / "image-refinery.toml",
        tmp_path / "user" / "image-refinery.toml",
    ):
        monkeypatch.setattr("image_refinery.cli.describe.config_path", lambda file=file: file)
        own = tmp_path / ("user/image-refinery" if "user" in file.parts else "image-refinery")
        (own / "instructions").mkdir(parents=True)
        (own / "instructions" / "haiku.txt").write_text("---\nnum_predict: 33\n---\nA haiku.")
        assert main(["describe", str(photo), "--preset", "haiku"]) == 0
        (*_, rewriting) = (r.body for r in ollama.requests if r.kind == "chat")
        assert rewriting["options"]["num_predict"] == 33
    (own / "instructions" / "haiku.txt").write_text("---\nnum_predict: x\n---\nA haiku.")
    assert main(["describe", str(photo), "--preset", "haiku"]) == 2
    assert 'Error: The header of the preset "haiku" cannot be used' in capsys.readouterr().err


def test_a_wrong_preset_is_corrected(photo: Path, ollama: FaultyOllama, capsys: Any) -> None:
    assert main(["describe", str(photo), "--preset", "prompt for flux2"]) == 2
    assert 'Did you mean "Prompt for FLUX.2"? (R509)' in capsys.readouterr().err
    assert main(["describe", str(photo), "--preset", "xyzzy"]) == 2
    assert "There are: Alt text, Alt text as JSON, " in capsys.readouterr().err
    assert not [r for r in ollama.requests if r.kind == "chat"]


def test_bad_files_are_named_and_the_others_go_on(photo: Path, capsys: Any) -> None:
    cut = photo.with_name("cut.jpg")
    cut.write_bytes(photo.read_bytes()[:400])
    text = photo.with_name("text.png")
    text.write_text("not a picture")
    gone = photo.with_name("gone.png")
    assert main(["describe", str(cut), str(text), str(gone), str(photo)]) == 1
    printed = capsys.readouterr()
    assert "A red circle" in printed.out
    for path, words in ((cut, "damaged"), (text, "not an image"), (gone, "does not exist")):
        (line,) = [line for line in printed.err.splitlines() if f"Error: {path}" in line]
        assert words in line and line.count(str(path)) == 1


def test_an_upside_down_photo_is_sent_upright(photo: Path, ollama: FaultyOllama) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    with Image.open(photo) as image:
        image.save(photo, exif=exif)
    assert main(["describe", str(photo)]) == 0
    (chat,) = [r for r in ollama.requests if r.kind == "chat"]
    assert chat.image_sizes == [(300, 400)]


def test_a_missing_model_is_one_sentence_and_exit_code_1(photo: Path, capsys: Any) -> None:
    assert main(["describe", str(photo), "--vision-model", "bakllava"]) == 1
    assert "ollama pull bakllava" in capsys.readouterr().err
    assert main(["describe", str(photo), str(photo), "--vision-model", "bakllava"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("ollama pull bakllava") == 1
    assert printed.endswith("The same error for 1 more image.\n")


def test_the_checkout_s_folder_is_a_command_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "image-refinery"
    try:
        folder.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        pytest.skip("no permission for links here")
    run = subprocess.run(
        [sys.executable, str(folder), "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (run.returncode, run.stdout.strip(), run.stderr) == (0, __version__, "")


def test_a_pack_that_is_linked_into_custom_nodes_is_named_by_the_link(tmp_path: Path) -> None:
    folder = tmp_path / "custom_nodes" / "my-refinery"
    folder.parent.mkdir()
    try:
        folder.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        pytest.skip("no permission for links here")
    short = Path("custom_nodes", "my-refinery")
    run = subprocess.run(
        [sys.executable, str(short), "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert f" {short} [-h] " in " ".join(run.stdout.split())


def test_the_options_know_what_is_imported_later() -> None:
    from image_refinery import jobs
    from image_refinery.cli import main as options
    from image_refinery.jobs.flags import MAX_TOKENS
    from image_refinery.refine.settings import MemoryMode

    assert (options.KINDS, options.MAX_TOKENS) == (jobs.KINDS, MAX_TOKENS)
    assert get_args(MemoryMode) == options.MEMORY_MODES


def test_wrong_arguments_are_exit_code_2(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["describe"])
    assert ended.value.code == 2
    assert "IMAGE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("describe x.png --model llava", "option: --model. Did you mean --vision-model?"),
        ("describe x.png --vison-model=llava", "--vison-model. Did you mean --vision-model?"),
        ("describe x.png --prompt Why?", "--prompt. Did you mean --vision-prompt?"),
        ("refine x.png --denoise 0.4", "--denoise. Did you mean --strength?"),
        ("refine x.png --cfg 7", "--cfg. Did you mean --guidance-scale?"),
        ("models --checkpoint x", "option: --checkpoint. -h lists the options."),
        ("doctor now", "unrecognized arguments: now"),
        ("describe x.png --seed -1", "--seed: must be 0 or more, not -1"),
        ("describe x.png --keep-loaded-minutes nan", "must be 0 or more, not nan"),
        ("describe x.png --num-predict many", "invalid int value: 'many'"),
    ],
)
def test_a_wrong_argument_prints_the_usage_of_its_command(
    words: str, said: str, capsys: Any
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: {program()} {words.split()[0]} [") and said in printed


def test_a_wrong_option_without_a_command_prints_the_usage_of_all(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--model"])
    printed = capsys.readouterr().err
    assert "COMMAND" in printed and "unrecognized option: --model. -h lists the options." in printed


def test_no_command_prints_the_help(capsys: Any) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.err == "" and printed.out.startswith("usage: ")
    for command in ("describe", "refine", "models", "doctor", "demo", "prove"):
        assert f"\n    {command} " in printed.out


@pytest.mark.parametrize("command", ["", "describe", "refine", "models", "doctor", "demo", "prove"])
def test_help_fits_80_columns(command: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


@pytest.mark.usefixtures("nothing_is_kept")
def test_verbose_may_be_before_or_after_the_command(
    photo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["-v", "describe", str(photo)], ["describe", str(photo), "-v"]):
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own keep ours away
        monkeypatch.setattr(logging.root, "level", logging.WARNING)
        assert main(words) == 0
        assert logging.root.level == logging.INFO
        assert "freed" in capsys.readouterr().err


def test_no_server_is_one_sentence(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    assert main(["describe", str(photo)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: Can't reach the server at ") and not printed.out
    assert (
        printed.err.removesuffix(" (R101)\n").count(". ") == 1 and "ollama serve" in printed.err
    ), "what to do"


def test_the_toy_says_that_it_is_one(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("OLLAMA_BASE_URL", "embedded")
    assert main(["describe", str(ROOT / "examples" / "scene.png")]) == 0
    printed = capsys.readouterr()
    warnings = [line for line in printed.err.splitlines() if "is a stand-in model" in line]
    assert len(warnings) == 1 and "image-refinery models --pull smolvlm" in warnings[0]
    assert "triangle" in printed.out and "toy-vision is" not in printed.out
    assert main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "vision: toy-vision:latest (a stand-in model)" in printed.out
    assert "with: image-refinery models --pull smolvlm" in printed.out.partition("To do:")[2]


def test_no_other_model_is_called_a_toy(photo: Path, ollama: FaultyOllama, capsys: Any) -> None:
    from faulty_ollama import vision_model

    ollama.models = {"toy-vision:latest": vision_model("toy-vision")}
    assert main(["describe", str(photo)]) == 0
    assert "is a stand-in model" not in capsys.readouterr().err, "somebody's own model of that name"


def test_models_lists_what_the_server_has(capsys: Any) -> None:
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "llava:latest" in printed and "completion, vision" in printed


def test_models_and_doctor_name_the_place_of_each_embedded_model(
    tmp_path: Path, capsys: Any
) -> None:
    toy = ROOT / "llm" / "llamacpp" / "models" / "toy-vision.gguf"
    found = tmp_path / "home" / ".lmstudio" / "models" / "someone" / "repository" / "other.gguf"
    found.parent.mkdir(parents=True)
    found.write_bytes(toy.read_bytes() + b" ")
    assert main(["models"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert listed["other:latest"].endswith("LM Studio")
    assert listed["toy-vision:latest"].endswith("built in")
    if importlib.util.find_spec("xllamacpp"):
        main(["doctor"])
        printed = capsys.readouterr().out
        assert "  other:latest: LM Studio\n" in printed
        assert "  toy-vision:latest: built in\n" in printed


def test_doctor_tells_about_a_gpu_that_the_engine_does_not_use(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from image_refinery import _setup

    monkeypatch.setattr(_setup, "why_unavailable", lambda: "")
    monkeypatch.setattr(_setup, "gpu_remark", lambda: "Install a build for it.")
    assert main(["doctor"]) == 0
    assert "\n  Install a build for it.\n" in capsys.readouterr().out


def test_models_pull_fetches_for_ollama(ollama: FaultyOllama, capsys: Any) -> None:
    assert main(["models", "--pull", "llava"]) == 0
    assert "llava is installed" in capsys.readouterr().out
    assert main(["models", "--pull", "no-such-model"]) == 1
    assert "Check the spelling." in capsys.readouterr().err


def test_doctor_says_what_is_missing(ollama: FaultyOllama, capsys: Any) -> None:
    assert main(["doctor"]) == 0
    assert "vision: llava:latest" in capsys.readouterr().out
    del ollama.models["llava:latest"]
    assert main(["doctor"]) == 1
    assert "ollama pull llava" in capsys.readouterr().out


def test_doctor_says_a_problem_once_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    before, _, to_do = printed.partition("To do:")
    assert 'Server "default": not usable' in before
    assert printed.count("http://127.0.0.1:9") == 1 and "ollama serve" in to_do


TINY = ROOT / "tools" / "tiny_refiner" / "weights" / "tiny_refiner.safetensors"


def test_doctor_says_which_refiner_is_used_and_what_comfyui_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "stable-diffusion-xl-refiner-1.0, because IMAGE_REFINERY_REFINER is not set" in printed
    assert "when first used" in printed and "no ComfyUI was found" in printed

    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    folder = tmp_path / "models" / "checkpoints" / "sdxl"
    folder.mkdir(parents=True)
    assert main(["doctor"]) == 0
    assert f"in {folder.parent}: no checkpoint that can refine" in capsys.readouterr().out

    for name in ("another.SFT", "my-refiner.safetensors"):
        shutil.copy2(TINY, folder / name)
    (folder / "cut.safetensors").write_bytes(TINY.read_bytes()[:5000])
    (folder / "list.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "sdxl/my-refiner.safetensors, sdxl/another.SFT\n" in printed
    assert "CLIP vocabulary for such files, outside ComfyUI: none" in printed

    monkeypatch.setenv("IMAGE_REFINERY_REFINER", str(TINY))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert f"Refiner: {TINY}, named by IMAGE_REFINERY_REFINER" in printed
    assert f"CLIP vocabulary for such files: {TINY.with_suffix('') / 'tokenizer_2'}" in printed


def test_comfyui_s_file_of_the_refiner_is_used_before_a_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setattr(hugging_face, "is_cached", lambda name: False)
    checkpoints = tmp_path / "models" / "checkpoints"
    shutil.copytree(TINY.with_suffix(""), checkpoints / "mine")
    shutil.copy2(TINY, checkpoints / "mine.safetensors")
    (checkpoints / "other.safetensors").write_bytes(b"no checkpoint")
    mine = str(checkpoints / "mine.safetensors")
    assert default_refiner() == mine
    main(["doctor"])
    assert f"Refiner: {mine}, a file of ComfyUI" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["refine", str(folder / "2.png"), "-o", str(out), "--steps", "4"]) == 0
    assert f"Loading {mine}" in capsys.readouterr().err and (out / "2-refined.png").is_file()
    monkeypatch.setattr(hugging_face, "is_cached", lambda name: True)
    assert default_refiner() == DEFAULT_MODEL
    monkeypatch.setenv("IMAGE_REFINERY_REFINER", "named")
    assert default_refiner() == "named"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("gone.safetensors", "There is no checkpoint file at gone.safetensors"),
        ("no/such/folder", "no/such/folder is not a .safetensors file"),
        ("../folder", "../folder is not a .safetensors file"),
        ("bare.safetensors", "No CLIP vocabulary was found for bare.safetensors"),
    ],
)
def test_doctor_finds_a_refiner_that_cannot_be_used(
    named: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    shutil.copy2(TINY, tmp_path / "bare.safetensors")
    monkeypatch.setenv("IMAGE_REFINERY_REFINER", named)
    assert main(["doctor"]) == 1
    _, _, to_do = capsys.readouterr().out.partition("To do:")
    assert f"Refiner: {said}" in to_do


def test_doctor_never_prints_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, ollama: FaultyOllama
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "very-secret")
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url.replace("//", "//me:hidden@"))
    main(["doctor"])
    printed = "".join(capsys.readouterr())
    assert "OLLAMA_API_KEY is set" in printed
    assert "very-secret" not in printed and "hidden" not in printed


@pytest.mark.usefixtures("sixteenth_megapixel")
def test_demo_leaves_pictures_and_a_text(photo: Path, capsys: Any) -> None:
    assert main(["demo", str(photo)]) == 0
    output = photo.parent / "demo-output"
    assert "A crimson disc floats on snow." in (output / "demo.txt").read_text("utf-8")
    with Image.open(output / "demo.png") as sheet:
        left = sheet.convert("RGB").getpixel((100, 100))
        assert left == Image.open(photo).convert("RGB").getpixel((50, 50))
    with Image.open(output / "refined.png") as refined, Image.open(photo) as before:
        assert refined.size == before.size
    assert (output / "refined-compare.png").is_file()
    printed = capsys.readouterr()
    assert "A red circle" in printed.out
    assert "a stand-in model of a few MB" in printed.err
    assert "the demo downloads nothing" in printed.err and "loading stabilityai" not in printed.err
    assert "a stand-in model that describes drawn" not in printed.err + printed.out, (
        "a real vision model"
    )


@pytest.mark.usefixtures("sixteenth_megapixel")
def test_demo_says_that_the_vision_model_is_a_stand_in(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("xllamacpp")
    from image_refinery.cli.demo import OPTIONS

    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(OPTIONS, "num_predict", 16)
    assert main(["demo", str(photo)]) == 0
    printed = capsys.readouterr().err
    before, described, _ = printed.partition("Describing with toy-vision")
    assert described and "Expect a wrong description of a photo.jpg" in before
    assert "image-refinery models --pull smolvlm\n" in printed
    caption = "(toy-vision:latest is a stand-in model that describes drawn shapes and colors only.)"
    assert caption in Path("demo-output", "demo.txt").read_text("utf-8")


@pytest.mark.usefixtures("quarter_megapixel")
def test_demo_shows_an_example_that_the_stand_ins_handle(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("OLLAMA_BASE_URL", "embedded")
    assert main(["demo"]) == 0
    printed = capsys.readouterr()
    assert "Expect a wrong description" not in printed.err
    assert "\nA medium green circle at the top left" in printed.out and '"' not in printed.out
    found = re.search(r"([\d.]+) dB damaged, ([\d.]+) dB refined", printed.out)
    assert found and float(found[2]) > float(found[1]) + 4


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process on Windows")
def test_ctrl_c_stops_the_server_and_unloads(photo: Path, ollama: FaultyOllama) -> None:
    from faulty_ollama import Reply

    ollama.script("chat", Reply(prompt_s=30.0))
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('image_refinery', r'{ROOT}/__init__.py', "
        f"submodule_search_locations=[r'{ROOT}'])\n"
        "package = sys.modules['image_refinery'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(package)\n"
        "from image_refinery.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "describe", str(photo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(r.kind == "chat" for r in ollama.requests):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("Cancelled: 0 of 1 images described.\n") and "Traceback" not in err
    assert ollama.unloads == {"llava:latest": 1}
    (chat,) = ollama.of("chat")
    assert ollama.wait_until(lambda: chat.client_closed)


@pytest.fixture
def folder(tmp_path: Path, nothing_is_kept: None) -> Path:
    top = tmp_path / "set"
    (top / "inner").mkdir(parents=True)
    for name in ("10.png", "2.png", "inner/3.png"):
        Image.new("RGB", (60, 40), "teal").save(top / name)
    (top / "notes.md").write_text("no picture")
    return top


def test_captions_are_written_beside_the_images(folder: Path, capsys: Any) -> None:
    command = ["describe", str(folder), "--txt", "--recursive", "--prefix", "ohwx, "]
    assert main(command) == 0
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")}
    assert written == {"2.txt", "10.txt", "inner/3.txt"}
    assert (folder / "2.txt").read_bytes() == b"ohwx, A red circle on a white background."
    printed = capsys.readouterr()
    assert printed.out == "" and "3 captions written." in printed.err


def test_images_with_a_caption_are_not_asked_about(
    folder: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    (folder / "2.txt").write_text("mine")
    assert main(["describe", str(folder), "--txt", "--skip-existing"]) == 0
    assert (folder / "2.txt").read_text() == "mine"
    assert len([r for r in ollama.requests if r.kind == "chat"]) == 1, "inner/ was not asked for"
    assert "1 of 2 have a caption already." in capsys.readouterr().err
    assert main(["describe", str(folder), "--txt", "--skip-existing"]) == 0
    assert "nothing to describe" in capsys.readouterr().err


def test_a_caption_is_replaced_only_when_told(
    folder: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    (folder / "2.txt").write_text("mine")
    assert main(["describe", str(folder), "--txt"]) == 1
    assert capsys.readouterr().err == (
        f"Error: {folder / '2.txt'} exists already. Add --skip-existing to leave out such images, "
        "or --overwrite to replace the files. (R507)\n"
    )
    assert (folder / "2.txt").read_text() == "mine" and not ollama.of("chat")
    assert main(["describe", str(folder), "--txt", "--overwrite"]) == 0
    assert (folder / "2.txt").read_text() == "A red circle on a white background."


def test_a_rewrite_is_the_caption_and_a_failure_writes_none(
    folder: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    assert main(["describe", str(folder), "--txt", "--instructions", "Shorten."]) == 1
    assert (folder / "10.txt").read_text() == "A crimson disc floats on snow."
    assert not (folder / "2.txt").exists()
    assert "2.png is damaged" in capsys.readouterr().err


def test_captions_that_are_there_stay_when_a_later_image_cancels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bool] = []

    def cancelled_after_the_first(self: Any) -> bool:
        written.append((folder / "2.txt").exists())
        return written[-1]

    monkeypatch.setattr("image_refinery.cli.progress.TerminalWatcher.cancelled",
                        cancelled_after_the_first)  # fmt: skip
    assert main(["describe", str(folder), "--txt"]) == 130
    assert (folder / "2.txt").read_text() == "A red circle on a white background."
    assert not (folder / "10.txt").exists()


@pytest.fixture
def cancel_at(ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Cancels at the request of the given number, counted from 1, which gets no answer."""
    from faulty_ollama import Reply

    def cancel(number: int) -> None:
        ollama.script("chat", *[Reply()] * (number - 1), Reply(hang=True))
        monkeypatch.setattr(
            "image_refinery.cli.progress.TerminalWatcher.cancelled",
            lambda self: len(ollama.of("chat")) >= number,
        )

    return cancel


RED, CRIMSON = "A red circle on a white background.", "A crimson disc floats on snow."


@pytest.mark.parametrize(
    ("number", "words", "texts", "said"),
    [
        (1, [], [], "0 of 2 images described."),
        (2, [], ["2.png", RED], "1 of 2 images described."),
        (
            2,
            ["--instructions", "Shorten."],
            ["2.png", RED],
            "1 of 2 images described, 0 rewritten.",
        ),
        (
            4,
            ["--instructions", "Shorten."],
            ["2.png", RED, "", CRIMSON, "10.png", RED],
            "2 of 2 images described, 1 rewritten.",
        ),
    ],
)
def test_a_cancelled_run_prints_what_is_done(
    folder: Path,
    cancel_at: Callable[[int], None],
    capsys: Any,
    number: int,
    words: list[str],
    texts: list[str],
    said: str,
) -> None:
    cancel_at(number)
    assert main(["describe", str(folder), *words]) == 130
    printed = capsys.readouterr()
    lines = [f"== {folder / text}" if text.endswith("png") else text for text in texts]
    assert printed.out.splitlines() == lines
    assert printed.err.splitlines()[-1] == f"Cancelled: {said}"


def test_a_cancelled_run_prints_what_is_done_as_json(
    folder: Path, cancel_at: Callable[[int], None], capsys: Any
) -> None:
    cancel_at(2)
    assert main(["describe", str(folder), "--json"]) == 130
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "image": str(folder / "2.png"),
        "vision_model": "llava:latest",
        "description": RED,
    }


def test_a_cancelled_run_tells_how_to_continue(
    folder: Path, cancel_at: Callable[[int], None], capsys: Any
) -> None:
    cancel_at(2)
    assert main(["describe", str(folder), "--txt"]) == 130
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.endswith(
        "Cancelled: 1 of 2 captions written. Run again with --skip-existing for the others.\n"
    )


def test_a_missing_file_is_found_before_a_model_loads(
    photo: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    assert main(["describe", "nothere.png", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.err == "Error: nothere.png does not exist. (R503)\n"
    assert json.loads(printed.out) == {
        "image": "nothere.png",
        "error": "nothere.png does not exist. (R503)",
    }
    assert ollama.requests == []
    assert main(["describe", "nothere.png", str(photo)]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == "Error: nothere.png does not exist. (R503)"
    assert f"== {photo}" not in printed.out and "A red circle" in printed.out


def test_a_cut_answer_is_reported_once_with_its_image(
    photo: Path, ollama: FaultyOllama, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own keep ours away
    ollama.always("chat", "cut_short")
    assert main(["describe", str(photo), "--num-predict", "5"]) == 0
    (request,) = ollama.of("chat")
    assert request.options["num_predict"] == 5
    printed = capsys.readouterr().err
    assert (
        f"{photo}, description: The answer was cut at num_predict. Raise --num-predict.\n"
        in printed
    )
    assert printed.count("was cut") == 1


def test_a_caption_is_one_line_unless_line_breaks_are_asked_for(
    folder: Path, ollama: FaultyOllama
) -> None:
    from faulty_ollama import Reply

    ollama.always("chat", Reply(text="red, circle,\n\n  white background\n"))
    command = ["describe", str(folder / "2.png"), "--txt", "--prefix", "ohwx, "]
    assert main(command) == 0
    assert (folder / "2.txt").read_bytes() == b"ohwx, red, circle, white background"
    assert main([*command, "--keep-line-breaks", "--overwrite"]) == 0
    assert (folder / "2.txt").read_bytes() == b"ohwx, red, circle,\n\n  white background"


@pytest.fixture
def twins(folder: Path) -> Path:
    Image.new("RGB", (60, 40), "navy").save(folder / "2.jpg")
    return folder


def test_the_second_of_two_images_with_one_caption_file_is_refused(
    twins: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    assert main(["describe", str(twins), "--txt"]) == 1
    assert sorted(path.name for path in twins.glob("*.txt")) == ["10.txt", "2.txt"]
    assert len(ollama.of("chat")) == 2, "the model is not asked about an image that is refused"
    printed = capsys.readouterr().err
    assert "2 captions written." in printed
    (message,) = (line for line in printed.splitlines() if line.startswith("Error: "))
    assert "2.png was left out" in message and "--full-names" in message


def test_or_named_in_full(twins: Path, capsys: Any) -> None:
    command = ["describe", str(twins), "--txt", "--full-names", "--skip-existing"]
    assert main(command) == 0
    assert sorted(path.name for path in twins.glob("*.txt")) == ["10.txt", "2.png.txt", "2.txt"]
    assert "3 captions written." in capsys.readouterr().err
    assert main(command) == 0
    assert "3 of 3 have a caption already." in capsys.readouterr().err


def test_skip_existing_treats_two_images_with_one_caption_file_alike(
    twins: Path, capsys: Any
) -> None:
    for had in (0, 2):
        assert main(["describe", str(twins), "--txt", "--skip-existing"]) == 1
        printed = capsys.readouterr().err
        assert f"{had} of 2 have a caption already." in printed and "2.png was left out" in printed
    assert sorted(path.name for path in twins.glob("*.txt")) == ["10.txt", "2.txt"]


def test_an_image_that_is_named_twice_is_captioned_once(
    folder: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    assert main(["describe", str(folder), str(folder / "2.png"), "--txt"]) == 0
    assert "2 captions written." in capsys.readouterr().err
    assert len(ollama.of("chat")) == 2


@pytest.mark.skipif(os.name == "nt", reason="making links needs a privilege on Windows")
def test_a_folder_of_links_is_read(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    (links / "up").mkdir(parents=True)
    (links / "one.png").symlink_to(folder / "2.png")
    (links / "more").symlink_to(folder / "inner", target_is_directory=True)
    (links / "up" / "again").symlink_to(links, target_is_directory=True)
    assert main(["describe", str(links), "--txt", "--recursive"]) == 0
    assert (links / "one.txt").is_file() and (links / "more" / "3.txt").is_file()
    assert not (folder / "2.txt").exists(), "the caption belongs beside the link"


def test_an_empty_folder_says_which_files_are_read(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "photo.heic").write_bytes(b"")
    assert main(["describe", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert "There is nothing to describe." in printed and ".jpeg, .jpg, .png" in printed


def test_qwens_tags_are_pulled_by_ollama(ollama: FaultyOllama, capsys: Any) -> None:
    from faulty_ollama import text_model

    ollama.pullable["qwen2.5:7b"] = text_model("qwen2.5:7b")
    assert main(["models", "--pull", "qwen2.5:7b"]) == 0
    (request,) = ollama.of("pull")
    assert request.model == "qwen2.5:7b"
    assert (
        f"qwen2.5:7b is installed on the Ollama server at {ollama.url}" in capsys.readouterr().out
    )


def test_what_ollamas_library_lacks_is_pulled_by_the_engine(
    ollama: FaultyOllama, capsys: Any
) -> None:
    assert main(["models", "--pull", "smolvlm:9b"]) == 1
    printed = capsys.readouterr().err
    assert "can't download 'smolvlm:9b'. Choose one of these: smolvlm:256m" in printed
    assert ollama.of("pull") == []


def test_without_a_model_that_can_see_none_is_said_to_have_been_named(
    photo: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    del ollama.models["llava:latest"]
    assert main(["describe", str(photo)]) == 1
    message = capsys.readouterr().err
    assert (
        f"No model for describing images is installed on the Ollama server at {ollama.url}"
        in message
    )
    assert "ollama pull llava" in message and 'model "llava"' not in message


def test_doctor_shows_and_clears_kept_answers(
    tmp_path: Path, ollama: FaultyOllama, capsys: Any
) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (60, 40), "teal").save(image)
    for wanted in (1, 1):  # the second is kept
        assert main(["describe", str(image)]) == 0
        assert len(ollama.of("chat")) == wanted
    assert "1 of 1 answers (describe) were kept" in capsys.readouterr().err
    main(["doctor"])
    assert re.search(r"^Kept answers: 1, .*answers\.db$", capsys.readouterr().out, re.MULTILINE)
    assert main(["doctor", "--clear-answers"]) == 0
    assert "Removed 1 kept answers (" in capsys.readouterr().out
    assert main(["describe", str(image)]) == 0
    assert len(ollama.of("chat")) == 2
