"""`image-refinery prove`: what it writes down, what it calls real, and what it never overwrites."""

from __future__ import annotations

import getpass
import importlib.util
import json
import platform
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faulty_ollama import GB, Reply, text_model, vision_model
from image_refinery.__main__ import main
from image_refinery.cli import proof as proof_module
from image_refinery.cli import prove, prove_photos, prove_refine, prove_words
from image_refinery.cli.proof import Proof
from image_refinery.cli.prove_photos import PHOTOS, Photo, damaged, default_photos
from image_refinery.llm.llamacpp.pull import PullError
from image_refinery.memory.timeline import Meter
from image_refinery.refine import HubError, ImageRefiner
from image_refinery.refine.errors import DeviceMemoryError
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from faulty_ollama import FaultyOllama

ATTACK = '<script>alert(1)</script> & "A red circle" ![x](http://evil.example/x.png)'


@pytest.fixture(autouse=True)
def environment(
    ollama: FaultyOllama, tiny_default: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Talk to the scripted server; have no configuration and no models of one's own."""
    monkeypatch.setenv("OLLAMA_BASE_URL", ollama.url)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    for name in ("XDG_CONFIG_HOME", "IMAGE_REFINERY_MODELS", "HF_HUB_CACHE", "LLAMA_CACHE", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(prove, "pull", offline_pull)
    monkeypatch.setattr(prove, "fetch", offline_fetch)


def offline_pull(name: str) -> str:
    raise PullError(f"Can't download '{name}' (no connection).")


def offline_fetch(name: str, local_files_only: bool) -> Path:
    raise HubError(f"{name} could not be downloaded (no connection).")


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """A photograph in color and one in gray."""
    folder = tmp_path / "photos"
    folder.mkdir()
    y, x = np.mgrid[:48, :64]
    plane = (128 + 60 * np.sin(x / 3) + 50 * np.cos(y / 4)).astype(np.uint8)
    Image.fromarray(plane).save(folder / "a gray.png")
    Image.fromarray(np.stack([plane, plane.T.repeat(2, 0)[:48, :1] + plane, 255 - plane], 2)).save(
        folder / "b.jpg"
    )
    return [str(folder)]


def read(folder: str = "proof") -> dict[str, Any]:
    return json.loads(Path(folder, "proof.json").read_text("utf-8"))


def test_a_proof_has_texts_measures_times_and_who_held_the_memory(
    photos: list[str], ollama: FaultyOllama, capsys: Any
) -> None:
    ollama.always("chat", Reply(text=ATTACK))
    assert main(["prove", *photos]) == 1, "there is no GPU"
    proof = read()
    assert proof["schema"] == 1 and proof["gpu"] is None and proof["peaks"] == []
    (missing,) = proof["missing"]
    assert missing.startswith("No GPU")
    assert [row["photo"] for row in proof["photos"]] == ["a gray.png", "b.jpg"]
    for row in proof["photos"]:
        assert row["errors"] == [] and set(row["seconds"]) == {"describe", "rewrite", "refine"}
        assert set(row["texts"]) == {"description", "rewrite"} and "texts_by_stand_in" not in row
        assert row["texts"]["description"] == ATTACK
        assert 0 < row["damaged"]["ssim"] < 1 and 0 < row["refined"]["haarpsi"] < 1
        assert row["damaged"]["gmsd"] > 0 and "refined_by_stand_in" not in row
    models = proof["models"]
    assert [models[part]["name"] for part in ("vision", "text")] == [
        "llava:latest",
        "llama3.2:latest",
    ]
    assert models["vision"]["size_bytes"] == 4 * GB and models["vision"]["server"] == "Ollama"
    assert models["refiner"]["settings"]["strength"] == 0.3
    assert not any(models[part]["stand_in"] for part in models)
    refiner = models["refiner"]["name"]
    assert [(one["who"], one["what"]) for one in proof["timeline"]] == [
        *(("llava:latest", what) for what in ("load", "describe", "unload")),
        *(("llama3.2:latest", what) for what in ("load", "rewrite", "unload")),
        *((refiner, what) for what in ("load", "refine", "unload")),
    ]
    gone = [one["gone"] for one in proof["timeline"] if one["what"] == "unload"]
    assert gone == [True, True, None]
    assert ollama.unloads == {"llava:latest": 1, "llama3.2:latest": 1}
    printed = capsys.readouterr().out
    assert printed.startswith("2 of 2 photographs described, 2 rewritten, 2 refined.\n")
    assert f"  - {missing}" in printed


def test_the_files_tell_nothing_of_the_machine_and_the_page_loads_nothing(
    photos: list[str], ollama: FaultyOllama, tmp_path: Path
) -> None:
    ollama.always("chat", Reply(text=ATTACK))
    main(["prove", *photos])
    page = Path("proof/index.html").read_text("utf-8")
    for text in (page, Path("proof/proof.json").read_text("utf-8")):
        secrets = {str(tmp_path), str(Path.home()), platform.node(), ollama.url, getpass.getuser()}
        assert [one for one in secrets - {"root", "user"} if len(one) > 2 and one in text] == []
    assert "<script" not in page and "alert(1)" in page
    assert page.count("<img ") == page.count('<img src="data:image/jpeg;base64,') + page.count(
        '<img class="crop" src="data:image/jpeg;base64,'
    )
    assert page.count("<img ") == 2 * 6
    assert not re.search('(src|href)=(?!"data:)', page)
    assert "default-src 'none'" in page and "no evidence" not in page


def test_what_stand_ins_did_is_never_called_real(
    photos: list[str],
    tiny_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("IMAGE_REFINERY_REFINER")
    monkeypatch.setattr(prove, "STAND_IN", tiny_file)
    monkeypatch.setattr(prove_words, "NUM_PREDICT", 8)
    assert main(["prove", *photos]) == 1
    proof = read()
    assert all(model["stand_in"] for model in proof["models"].values())
    assert all(period["stand_in"] for period in proof["timeline"])
    for row in proof["photos"]:
        assert row["texts_by_stand_in"]["description"] and "texts" not in row
        assert row["refined_by_stand_in"] and "refined" not in row
    _, about_words, about_refiner = proof["missing"]
    assert "no connection" in about_words and "smolvlm" in about_words
    assert "no connection" in about_refiner and "stable-diffusion-xl-refiner" in about_refiner
    page = Path("proof/index.html").read_text("utf-8")
    assert page.count("no evidence for the real model") >= 1 + 2 * 3
    assert "Downloading smolvlm" in capsys.readouterr().err


def test_without_downloads_nothing_is_asked_for_and_the_rest_goes_its_way(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def no_pull(name: str) -> str:
        raise AssertionError(name)

    monkeypatch.setattr(prove, "pull", no_pull)
    monkeypatch.setattr("image_refinery.cli.demo.why_unavailable", lambda: "No engine here.")
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:9")
    whole = Path(photos[0], "a gray.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    assert main(["prove", *photos, "cut.png", "--no-download"]) == 1
    proof = read()
    cut = proof["photos"].pop()
    assert [text.startswith("refine: cut.png is damaged") for text in cut["errors"]] == [True]
    assert [text for text in proof["missing"] if text.startswith("No description: ")]
    assert "No engine here." in proof["missing"][1]
    assert all("refined" in row and "texts" not in row for row in proof["photos"])
    assert capsys.readouterr().out.startswith("0 of 3 photographs described, 0 rewritten, 2 ref")


def test_what_is_missing_is_downloaded_once_for_the_embedded_engine(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("xllamacpp")
    pulled: list[str] = []
    monkeypatch.setattr(prove, "pull", pulled.append)
    monkeypatch.setattr(prove, "describe_photos", lambda proof, server, options: None)
    monkeypatch.setattr(prove, "refine_photos", lambda proof, refiner: None)
    assert main(["prove", *photos, "--server", "embedded"]) == 1
    assert pulled == ["smolvlm"] and len(read()["missing"]) == 1
    monkeypatch.setattr(prove, "pull", offline_pull)
    words = ["--server", "embedded", "--vision-model", "smolvlm2", "-o", "second"]
    assert main(["prove", *photos, *words]) == 1
    assert "Error: Can't download 'smolvlm2' (no connection). (R208)" in capsys.readouterr().err
    assert not Path("second").exists()


def test_an_error_of_every_photo_is_told_once_and_one_of_a_photo_with_it(
    photos: list[str], make_ollama: Callable[..., FaultyOllama], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "refine_photos", lambda proof, refiner: None)
    server = make_ollama([vision_model(), text_model("llama3.2")])
    monkeypatch.setenv("OLLAMA_BASE_URL", server.url)
    assert main(["prove", *photos, "--text-model", "gone"]) == 1
    (_, missing), rows = read()["missing"], read()["photos"]
    assert missing.startswith("rewrite: ") and '"gone"' in missing and "127.0.0.1" not in missing
    assert all(row["errors"] == [] and "description" in row["texts"] for row in rows)
    server.script("chat", Reply(status=400, error="bad picture"))
    assert main(["prove", *photos, "-o", "second"]) == 1
    first, second = read("second")["photos"]
    assert first["errors"][0].startswith("description: ") and "texts" not in first
    assert set(second["texts"]) == {"description", "rewrite"}
    assert "rewrite" in second["seconds"] and "rewrite" not in first["seconds"]


def test_nothing_is_overwritten_unasked(photos: list[str], capsys: Any) -> None:
    Path("proof").mkdir()
    Path("proof/index.html").write_text("mine")
    assert main(["prove", *photos]) == 1
    assert "index.html exists already. Add --overwrite" in capsys.readouterr().err
    assert [file.name for file in Path("proof").iterdir()] == ["index.html"]
    Path("a file").write_text("")
    assert main(["prove", *photos, "-o", "a file"]) == 1
    assert "a file is a file. Choose a folder" in capsys.readouterr().err


def test_what_is_named_must_be_there(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for words, error in (
        (["--model", "gone.safetensors"], "gone.safetensors"),
        (["--model", "nobody/nothing"], "nobody/nothing could not be downloaded"),
        (["--server", "nowhere"], "nowhere"),
        (["--checkpoint", "x"], "Did you mean --model?"),
    ):
        try:
            assert main(["prove", *photos, *words]) == 1
        except SystemExit as ended:
            assert ended.code == 2
        assert error in capsys.readouterr().err
    assert not Path("proof").exists()


def test_bad_files_are_named_and_the_others_are_used(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(prove, "refine_photos", lambda proof, refiner: None)
    Path("cut.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("L", (400, 31)).save("thin.png")
    assert main(["prove", "cut.jpg", "thin.png", "gone.png"]) == 1
    assert "There is no photograph to work on." in capsys.readouterr().err
    assert main(["prove", "cut.jpg", "thin.png", *photos]) == 1
    err = capsys.readouterr().err
    assert "thin.png is too small: both sides must have 32 px or more." in err
    assert "Error: cut.jpg " in err and len(read()["photos"]) == 2


def test_ctrl_c_keeps_what_is_done(
    photos: list[str], ollama: FaultyOllama, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    note, refine = prove_words._note_text, prove_refine._refine_photo

    def note_and_stop(*args: Any) -> None:
        note(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(prove_words, "_note_text", note_and_stop)
    assert main(["prove", *photos]) == 130
    first, second = read()["photos"]
    assert first["texts"]["description"] and "texts" not in second
    assert "Cancelled: 1 of 2 photographs described, 0 rewritten, 0 refined." in (
        capsys.readouterr().err
    )
    assert ollama.wait_until(lambda: not ollama.loaded)
    monkeypatch.setattr(prove_words, "_note_text", note)

    def refine_and_stop(*args: Any) -> None:
        refine(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(prove_refine, "_refine_photo", refine_and_stop)
    assert main(["prove", *photos, "--overwrite"]) == 130
    first, second = read()["photos"]
    assert "refined" in first and "refined" not in second and second["texts"]
    assert read()["timeline"][-1]["what"] == "unload"


def test_the_peak_of_each_memory_mode_is_measured_on_a_gpu(
    photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    peaks = {"gpu": 7 * GB, "low_vram": 2 * GB}
    current: list[str] = []

    def refine(refiner: Any, image: Any, settings: Any, name: str, **_: Any) -> None:
        assert image.size == (1024, 1024) and refiner.memory_mode == name
        current.append(name)
        if name not in peaks:
            raise DeviceMemoryError("Out of memory.")

    monkeypatch.setattr(prove_refine, "refine_one", refine)
    meter = Meter("VRAM", 8 * GB, lambda: 1)
    monkeypatch.setattr(proof_module, "meter_of", lambda device: meter)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peaks[current[-1]])
    paths = [Photo(path) for path in sorted(Path(photos[0]).iterdir())]
    proof = Proof(Path("proof"), paths, "cpu")
    proof.models["refiner"] = {"name": "sdxl", "stand_in": False}
    with proof.timeline:
        prove_refine.measure_peaks(proof, str(prove.STAND_IN), lambda: False)
    gpu, offload, low = proof.peaks
    assert (gpu["peak_bytes"], low["peak_bytes"]) == (7 * GB, 2 * GB)
    assert offload == {"mode": "offload", "error": "Out of memory."}
    proof.write()
    page = Path("proof/index.html").read_text("utf-8")
    assert "7 GB" in page and "Out of memory." in page and "sdxl, low_vram" in page


def test_peaks_are_those_of_a_real_checkpoint_on_cuda(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(
        prove_refine, "measure_peaks", lambda _, model, stop: measured.append(model)
    )
    for device, stand_in in (("cpu", False), ("cuda", True), ("cuda", False)):
        proof = Proof(Path("proof"), [], "cpu")
        proof.device = device
        proof.models["refiner"] = {"name": "sdxl", "stand_in": stand_in}
        with proof.timeline:
            prove_refine.refine_photos(proof, ImageRefiner("cpu", model=tiny_file))
        assert [one.what for one in proof.timeline.periods] == ["load", "unload"]
        assert len(measured) == (device == "cuda" and not stand_in)


def test_a_gpu_has_a_plain_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    properties = SimpleNamespace(name="Radeon\u2122 RX 7900", total_memory=24 * GB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert proof_module._gpu("cuda") == {"name": "Radeon RX 7900", "memory_bytes": 24 * GB}
    assert proof_module._gpu("cpu") is None


def test_damage_is_the_same_each_time_and_keeps_size_and_mode() -> None:
    for mode, size in (("RGB", (65, 40)), ("L", (33, 48))):
        image = Image.effect_noise(size, 60).convert(mode)
        first, second = damaged(image), damaged(image)
        assert (first.mode, first.size) == (mode, size)
        assert first.tobytes() == second.tobytes() != image.tobytes()


def test_photos_are_made_plain_and_small_enough(tmp_path: Path) -> None:
    Image.new("RGBA", (2048, 512), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    original = Photo(tmp_path / "clear.png").original()
    assert (original.mode, original.size) == ("RGB", (1024, 256))
    assert original.getpixel((9, 9)) == (255, 255, 255)
    Image.fromarray(np.full((40, 50), 65535, np.uint16)).save(tmp_path / "deep.png")
    assert Photo(tmp_path / "deep.png").original().getextrema() == (255, 255)


def test_ten_photographs_of_free_licenses_or_a_sentence_that_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    photos, lacking = default_photos()
    assert [photo.path.name for photo in photos] == ["photo.jpg", "coffee.jpg"]
    assert lacking.startswith("8 of the 10 photographs are not here: ")
    assert "install scikit-image" in lacking
    (tmp_path / "data").mkdir()
    for name in PHOTOS:
        (tmp_path / "data" / name).touch()
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(prove_photos, "_EXAMPLES", tmp_path / "none")
    photos, lacking = default_photos()
    assert len(photos) == 10 == len({photo.path for photo in photos}) and not lacking
    assert all(re.match("public domain|CC0", photo.license) for photo in photos)
