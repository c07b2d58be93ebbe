"""GGUF files of other programs: which are found, what they are called, and how long that takes."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from image_refinery.llm.llamacpp.library import Library, Model
from image_refinery.llm.llamacpp.places import (
    Place,
    comfyui_places,
    other_places,
    read_hugging_face,
    read_llama_cpp,
    read_lm_studio,
)

VARIABLES = ("LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
Put = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without models, and no variable that names another folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", str(tmp_path / "own"))
    return tmp_path


@pytest.fixture
def put(home: Path, models: Path) -> Put:
    """put("a/b.gguf"): a model below the home; `salt` makes its content differ."""

    def put(target: str | Path, salt: str = "") -> Path:
        path = home / target
        path.parent.mkdir(parents=True, exist_ok=True)
        source = "mmproj-tiny-vision.gguf" if "mmproj" in path.name.lower() else "tiny.gguf"
        shutil.copy(models / source, path)
        if salt:
            with path.open("ab") as file:
                file.write(salt.encode())
        return path

    return put


def others(*places: Place) -> dict[str, Model]:
    """The models of other programs by name: those of this package have no interest here."""
    found = Library(places or other_places()).models()
    return {model.name: model for model in found}


def in_words(found: dict[str, Model]) -> dict[str, str]:
    return {name: model.place for name, model in found.items()}


LM_STUDIO = ".lmstudio/models"
HUGGING_FACE = ".cache/huggingface/hub"
LLAMA_CPP = {"win32": "Local/llama.cpp", "darwin": "Library/Caches/llama.cpp"}.get(
    sys.platform, ".cache/llama.cpp"
)


def test_the_folders_of_three_programs_are_searched(put: Put) -> None:
    put(f"{LM_STUDIO}/bartowski/Qwen2.5-7B-GGUF/Qwen2.5-7B-Q4_K_M.gguf", "1")
    put(".cache/lm-studio/models/bartowski/Phi-GGUF/Phi-Q4_K_M.gguf", "22")
    put(f"{LLAMA_CPP}/ggml-org_gemma-3-4b-it-GGUF_gemma-3-4b-it-Q4_K_M.gguf", "333")
    put(f"{HUGGING_FACE}/models--unsloth--Llama-GGUF/snapshots/abc/Llama-Q8_0.gguf", "4444")
    assert in_words(others()) == {
        "qwen2.5-7b:q4_k_m": "LM Studio",
        "phi:q4_k_m": "LM Studio",
        "gemma-3-4b-it:q4_k_m": "llama.cpp's cache",
        "llama:q8_0": "Hugging Face's cache",
    }


@pytest.mark.parametrize(
    ("variable", "value", "file"),
    [
        ("LLAMA_CACHE", "cache", "cache/o_m-GGUF_m-Q8_0.gguf"),
        ("LLAMA_CACHE", "cache", "cache/models--o--m-GGUF/snapshots/abc/m-Q8_0.gguf"),
        ("HF_HUB_CACHE", "cache", "cache/models--o--m-GGUF/snapshots/abc/m-Q8_0.gguf"),
        ("HF_HOME", "cache", "cache/hub/models--o--m-GGUF/snapshots/abc/m-Q8_0.gguf"),
        ("HF_HOME", "~/cache", "cache/hub/models--o--m/snapshots/abc/m-Q8_0.gguf"),
    ],
)
def test_their_variables_move_them(
    put: Put, home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, file: str
) -> None:
    monkeypatch.setenv(variable, value if value.startswith("~") else str(home / value))
    put(file)
    assert list(others()) == ["m:q8_0"]


def test_depth_is_bounded(put: Put) -> None:
    put(f"{LM_STUDIO}/too-high.gguf")
    put(f"{LM_STUDIO}/publisher/too-high.gguf")
    put(f"{LM_STUDIO}/publisher/repository/folder/too-deep.gguf")
    put(f"{HUGGING_FACE}/models--o--m/snapshots/abc/folder/too-deep.gguf")
    put(f"{HUGGING_FACE}/datasets--o--m/snapshots/abc/no-model.gguf")
    assert others() == {}


def test_comfyui_folders_come_from_the_caller(put: Put, home: Path) -> None:
    put("models/LLM/a.gguf", "1")
    put("models/LLM/GGUF/b.gguf", "22")
    put("models/LLM/GGUF/repository/c.gguf", "333")
    put("models/llm_gguf/d.gguf", "4444")
    put("models/text_encoders/e.gguf", "55555")
    library = Library([], extra=comfyui_places(home / "models"))
    assert {model.name: model.place for model in library.models()} == {
        "a:latest": "ComfyUI models/LLM",
        "b:latest": "ComfyUI models/LLM",
        "c:latest": "ComfyUI models/LLM/GGUF",
        "d:latest": "ComfyUI models/llm_gguf",
        "e:latest": "ComfyUI models/text_encoders",
    }


@pytest.mark.parametrize(
    ("architecture", "values", "counts"),
    [
        ("qwen2", {"tokenizer.chat_template": "x"}, True),
        ("qwen2", {}, False),  # such as a base model
        ("t5encoder", {"tokenizer.chat_template": "x"}, False),
        ("clip", {}, False),
        ("flux", {}, False),
        ("qwen3", {"tokenizer.chat_template": "x", "qwen3.pooling_type": 3}, False),
        ("llada", {"tokenizer.chat_template": "x", "llada.attention.causal": False}, False),
        ("llama", {"tokenizer.chat_template": "x", "llama.attention.causal": True}, True),
    ],
)
def test_only_decoders_with_a_chat_template_count(
    home: Path, architecture: str, values: dict[str, str | int | bool], counts: bool
) -> None:
    folder = home / "models" / "text_encoders"
    folder.mkdir(parents=True)
    writer = gguf.GGUFWriter(str(folder / "some.gguf"), architecture)
    for key, value in values.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}[type(value)]
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert (len(Library([], extra=comfyui_places(home / "models")).models()) == 1) is counts
    assert len(Library([folder]).models()) == 1, "in an own folder everything counts"


@pytest.mark.parametrize(
    ("model", "projectors", "chosen"),
    [
        ("m-Q4_K_M.gguf", ["mmproj-model-f16.gguf"], 0),
        ("m-Q4_K_M.gguf", ["m.mmproj-Q8_0.gguf"], 0),
        ("m-Q4_K_M.gguf", ["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], 1),
        ("m-Q8_0.gguf", ["mmproj-m-f16.gguf", "mmproj-m-Q8_0.gguf"], 1),
        ("m-Q8_0.gguf", ["mmproj-one-f16.gguf", "mmproj-two-f16.gguf"], None),
    ],
)
def test_a_projector_in_the_same_repository_makes_a_vision_model(
    put: Put, model: str, projectors: list[str], chosen: int | None
) -> None:
    put(f"{LM_STUDIO}/o/m-GGUF/{model}")
    paths = [put(f"{LM_STUDIO}/o/m-GGUF/{projector}") for projector in projectors]
    (found,) = others().values()
    assert found.mmproj == (None if chosen is None else paths[chosen])


def test_llama_cpps_flat_cache_holds_many_repositories(put: Put) -> None:
    put(f"{LLAMA_CPP}/ggml-org_SmolVLM-256M-Instruct-GGUF_SmolVLM-256M-Instruct-Q8_0.gguf", "1")
    put(f"{LLAMA_CPP}/ggml-org_SmolVLM-256M-Instruct-GGUF_mmproj-model-f16.gguf")
    put(f"{LLAMA_CPP}/ggml-org_other-GGUF_other_one-Q8_0.gguf", "22")
    put(f"{LLAMA_CPP}/by-url-Q8_0.gguf", "333")
    found = others()
    assert {name: bool(model.mmproj) for name, model in found.items()} == {
        "smolvlm:256m": True,
        "other_one:q8_0": False,
        "by-url:q8_0": False,
    }


def test_a_file_is_listed_once_and_the_users_folder_comes_first(put: Put, home: Path) -> None:
    own = put("own/Model-Q8_0.gguf")
    put(f"{LM_STUDIO}/o/m-GGUF/Model-Q8_0.gguf")  # a copy
    put(f"{HUGGING_FACE}/models--o--m/snapshots/abc/another-name-Q8_0.gguf")
    linked = home / LLAMA_CPP / "o_m-GGUF_linked-Q8_0.gguf"
    linked.parent.mkdir(parents=True)
    os.link(own, linked)
    found = {model.name: model for model in Library().models()}
    assert found["model:q8_0"].path == own
    assert found["model:q8_0"].place == "your models folder"
    assert "LM Studio" not in in_words(found).values()
    assert "Hugging Face's cache" not in in_words(found).values()
    assert "llama.cpp's cache" not in in_words(found).values()


def test_a_copy_that_has_a_projector_is_no_repetition(put: Put) -> None:
    put(f"{LM_STUDIO}/text/m-GGUF/m-Q8_0.gguf")
    put(f"{LM_STUDIO}/vision/m-GGUF/m-Q8_0.gguf")
    put(f"{LM_STUDIO}/vision/m-GGUF/mmproj-m-f16.gguf")
    found = others()
    assert {name: model.capabilities for name, model in found.items()} == {
        "m:q8_0": ["completion"],
        "vision/m:q8_0": ["completion", "vision"],
    }


def test_different_files_of_one_name_get_their_publisher(
    put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    first = put(f"{LM_STUDIO}/Qwen/Qwen2.5-GGUF/qwen2.5-Q4_K_M.gguf")
    second = put(f"{LM_STUDIO}/bartowski/Qwen2.5-GGUF/Qwen2.5-Q4_K_M.gguf", "1")
    third = put(f"{HUGGING_FACE}/models--unsloth--Qwen/snapshots/abc/Qwen2.5-Q4_K_M.gguf", "22")
    fourth = put(f"{HUGGING_FACE}/models--unsloth--Twin/snapshots/abc/Qwen2.5-Q4_K_M.gguf", "333")
    library = Library(other_places())
    assert {model.name: model.path for model in library.models()} == {
        "qwen2.5:q4_k_m": first,
        "bartowski/qwen2.5:q4_k_m": second,
        "unsloth/qwen2.5:q4_k_m": third,
    }
    assert library.find("bartowski/qwen2.5").path == second
    assert library.find("Bartowski/Qwen2.5:Q4_K_M").path == second
    (record,) = caplog.records
    assert str(fourth) in record.getMessage()


def test_of_two_snapshots_the_newer_counts_and_the_older_completes_it(put: Put) -> None:
    snapshots = Path(HUGGING_FACE, "models--o--m", "snapshots")
    old, new = put(snapshots / "f" / "m-Q8_0.gguf"), put(snapshots / "a" / "m-Q8_0.gguf", "1")
    projector = put(snapshots / "f" / "mmproj-m-f16.gguf")
    os.utime(old.parent, (1, 1))
    (model,) = others().values()
    assert (model.path, model.mmproj) == (new, projector)


def test_links_into_blobs_are_followed(put: Put, home: Path) -> None:
    blob = put(f"{HUGGING_FACE}/models--o--m/blobs/0123")
    for snapshot in ("one", "two"):
        link = home / HUGGING_FACE / "models--o--m" / "snapshots" / snapshot / "m-Q8_0.gguf"
        link.parent.mkdir(parents=True)
        try:
            link.symlink_to(blob)
        except OSError:
            pytest.skip("this user makes no links")
    (model,) = others().values()
    assert model.size == blob.stat().st_size


def test_broken_links_and_folders_are_reported_once(
    put: Put, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = put(f"{LM_STUDIO}/o/m-GGUF/good.gguf")
    try:
        good.with_name("broken.gguf").symlink_to(home / "missing")
        (home / LM_STUDIO / "loop").symlink_to(home / LM_STUDIO / "loop")
    except OSError:
        pytest.skip("this user makes no links")
    good.with_name("noise.gguf").write_bytes(b"this is no model")
    (home / HUGGING_FACE).parent.mkdir(parents=True)
    (home / HUGGING_FACE).write_bytes(b"this is no folder")
    library = Library(other_places())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [model.name for model in library.models()] == ["good:latest"]
    text = [record.getMessage() for record in caplog.records]
    assert len(text) == 3
    for name in ("broken.gguf", "noise.gguf", "hub"):
        assert sum(name in line and line.startswith("Can't read ") for line in text) == 1


def test_a_large_cache_without_gguf_files_is_listed_and_nothing_more(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 200 repositories of 50 files took 30 ms on one slow core."""
    for repository in range(20):
        snapshot = home / HUGGING_FACE / f"models--o--m{repository}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        for file in range(50):
            (snapshot / f"model-{file}.safetensors").touch()
    listed: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("a file is looked at"))
    (place,) = (p for p in other_places() if p.label == "Hugging Face's cache")
    assert [f for f in place.folders(pytest.fail) if f.files] == []
    assert len(listed) == 1 + 20 + 20


def test_layouts_need_no_folder(home: Path) -> None:
    for layout in (read_lm_studio, read_llama_cpp, read_hugging_face):
        assert [f for f in layout(home / "missing", pytest.fail) if f.files] == []
