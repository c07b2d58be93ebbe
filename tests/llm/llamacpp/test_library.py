"""Which files are models, what they are called, and what a name means."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_refinery.llm.llamacpp.gguf_header import GgufError, read_header
from image_refinery.llm.llamacpp.library import Library, UnknownModel, UnreadableModel
from image_refinery.llm.llamacpp.places import (
    BUILT_IN,
    models_folder,
    own_places,
)


@pytest.fixture
def folder(tmp_path: Path, models: Path) -> Path:
    """A folder for `put`, beside the session's models."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def put(models: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(exist_ok=True)
        source = "mmproj-tiny-vision.gguf" if "mmproj" in target.name.lower() else "tiny.gguf"
        shutil.copy(models / source, target)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Moondream2.gguf", "moondream2:latest"),
        ("SmolVLM-256M-Instruct-Q8_0.gguf", "smolvlm:256m"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2:135m"),
        ("qwen2.5-1.5b-instruct-q4_k_m.gguf", "qwen2.5:1.5b"),
        ("gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it:q4_k_m"),
        ("Model.IQ4_XS.GGUF", "model:iq4_xs"),
        ("llava-v1.6-f16.gguf", "llava-v1.6:f16"),
        ("Model-UD-Q4_K_XL.gguf", "model:ud-q4_k_xl"),
        ("big-Q8_0-00001-of-00002.gguf", "big:q8_0"),
        ("My model (1).gguf", "my-model-1-:latest"),
    ],
)
def test_names_come_from_the_file(folder: Path, models: Path, file: str, name: str) -> None:
    put(models, folder / file)
    assert [model.name for model in Library([folder]).models()] == [name]
    assert Library([folder]).find(name).path == folder / file


@pytest.mark.parametrize(
    ("projector", "sees"),
    [
        ("mmproj-Model-7B-Q8_0.gguf", True),
        ("mmproj-model-7b-f16.gguf", True),
        ("mmproj-Model-7B.gguf", True),
        ("Model-7B-mmproj-f16.gguf", True),
        ("mmproj-Model-70B-f16.gguf", False),
        ("mmproj-model-f16.gguf", False),
    ],
)
def test_a_projector_beside_makes_a_vision_model(
    folder: Path, models: Path, projector: str, sees: bool
) -> None:
    put(models, folder / "Model-7B-Q4_K_M.gguf", folder / projector)
    (model,) = Library([folder]).models()
    assert (model.mmproj == folder / projector) is sees
    assert ("vision" in model.capabilities) is sees


def test_in_a_folder_of_its_own_a_projector_needs_no_matching_name(
    folder: Path, models: Path
) -> None:
    put(models, folder / "llava" / "llava-Q4_0.gguf", folder / "llava" / "mmproj-model-f16.gguf")
    put(models, folder / "text.gguf")
    llava, text = Library([folder]).models()
    assert (llava.name, llava.capabilities) == ("llava:q4_0", ["completion", "vision"])
    assert (text.name, text.capabilities) == ("text:latest", ["completion"])


def test_the_projector_of_the_same_quantisation_is_preferred(folder: Path, models: Path) -> None:
    put(models, folder / "m-Q8_0.gguf")
    put(models, folder / "mmproj-m-F16.gguf", folder / "mmproj-m-Q8_0.gguf")
    assert Library([folder]).find("m").mmproj == folder / "mmproj-m-Q8_0.gguf"


def test_the_parts_of_a_split_model_are_one_model(folder: Path, models: Path) -> None:
    parts = [folder / f"big-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2)]
    put(models, *parts)
    (model,) = Library([folder]).models()
    assert model.path == parts[0]
    assert model.size == sum(part.stat().st_size for part in parts)


def test_resolution_of_names(folder: Path, models: Path) -> None:
    put(models, folder / "a.gguf", folder / "b-Q8_0.gguf")
    put(models, folder / "c-Q4_0.gguf", folder / "c-Q8_0.gguf")
    library = Library([folder])
    for asked, meant in {
        "a": "a:latest",
        "a:latest": "a:latest",
        " A ": "a:latest",
        "b": "b:q8_0",
        "b:Q8_0": "b:q8_0",
        "c:q4_0": "c:q4_0",
    }.items():
        assert library.find(asked).name == meant
    for asked in ("a:q8_0", "b:latest", "c", "d", "", "../a"):
        with pytest.raises(UnknownModel, match="not found"):
            library.find(asked)


def test_short_names_mean_the_smallest(folder: Path, models: Path) -> None:
    put(models, folder / "SmolVLM-256M-Instruct-Q8_0.gguf")
    put(models, folder / "SmolVLM-500M-Instruct-Q8_0.gguf")
    library = Library([folder])
    assert library.find("smolvlm").name == "smolvlm:256m"
    assert library.find("smolvlm:latest").name == "smolvlm:256m"
    assert library.find("smolvlm:500m").name == "smolvlm:500m"
    put(models, folder / "smolvlm.gguf")
    assert Library([folder]).find("smolvlm").name == "smolvlm:latest", "a file of that name"


def test_the_first_place_wins(tmp_path: Path, models: Path) -> None:
    put(models, tmp_path / "one" / "a.gguf", tmp_path / "two" / "a.gguf")
    library = Library([tmp_path / "missing", tmp_path / "one", tmp_path / "two"])
    assert library.find("a").path.parent.name == "one"
    assert len(library.models()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_folder_that_cannot_be_read_is_left_out(
    tmp_path: Path, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    try:
        if os.access(locked, os.R_OK):
            pytest.skip("this user reads everything")
        assert Library([locked, models / "tiny.gguf"]).models()[0].name == "tiny:latest"
        assert f"Can't read {locked} (" in caplog.text
    finally:
        locked.chmod(0o700)


def test_a_single_file_can_be_a_place(models: Path) -> None:
    assert [model.name for model in Library([models / "tiny.gguf"]).models()] == ["tiny:latest"]


def test_the_digest_is_of_the_content(folder: Path, models: Path) -> None:
    put(models, folder / "a.gguf", folder / "sub" / "b.gguf")
    library = Library([folder])
    digest = library.find("a").digest
    assert library.find("b").digest == digest
    with (folder / "a.gguf").open("ab") as file:
        file.write(b"\0" * 32)
    assert library.find("a").digest != digest


def test_new_files_are_seen_without_a_restart(folder: Path, models: Path) -> None:
    library = Library([folder])
    assert library.models() == []
    put(models, folder / "a.gguf")
    assert [model.name for model in library.models()] == ["a:latest"]


def test_the_folder_comes_from_the_environment_or_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", str(tmp_path))
    assert models_folder() == tmp_path
    assert [place.path for place in own_places()][:2] == [tmp_path, BUILT_IN]
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", "~/models")
    assert models_folder() == Path.home() / "models"
    monkeypatch.setenv("IMAGE_REFINERY_MODELS", "")
    assert models_folder().parts[-1] == "models"
    assert "image-refinery" in models_folder().parts[-3:-1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not begin"),
        (b"GGUF", "ends within"),
        (b"GGUF" + struct.pack("<I", 1), "version is 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "ends within"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "ends within"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "type 99"),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 60),
            "ends within",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
            "array of arrays",
        ),
    ],
)
def test_damaged_headers_are_told_apart(
    tmp_path: Path, content: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=reason):
        read_header(path)
    library = Library([tmp_path])
    with caplog.at_level(logging.WARNING):
        assert library.models() == []
        assert library.models() == []
    assert len(caplog.records) == 1  # said once, though lists are asked for again and again
    with pytest.raises(UnreadableModel, match=f"bad.gguf: .*{reason}"):
        library.find("bad")


def test_every_cut_of_a_real_header_is_an_error_and_no_crash(tmp_path: Path, models: Path) -> None:
    whole = (models / "mmproj-tiny-vision.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(0, 2000, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(GgufError):
            read_header(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 1500), st.binary(max_size=9)), max_size=6),
    cut=st.integers(0, 3000),
)
def test_no_header_raises_anything_else_or_takes_long(
    tmp_path: Path, models: Path, changes: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray((models / "mmproj-tiny-vision.gguf").read_bytes()[:3000])
    for place, new in changes:
        data[place : place + len(new)] = new
    path = tmp_path / "fuzzed.gguf"
    path.write_bytes(data[:cut])
    began = time.monotonic()
    with contextlib.suppress(GgufError, OSError):
        header = read_header(path)
        assert header.parameters >= 0 and isinstance(header.can_chat, bool)
        assert header.context_length >= 0 and header.quantization
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("value", [[1, 2], "4096 tokens", True, 1.5, -3])
def test_values_of_the_wrong_type_are_as_if_missing(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    kind = gguf.GGUFValueType.ARRAY if isinstance(value, list) else None
    for key in ("llama.context_length", "general.file_type", "tokenizer.chat_template"):
        writer.add_key_value(key, value, kind or gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    header = read_header(path)
    assert header.context_length in (0, 1), "1.5 and True are numbers"
    assert header.quantization in ("unknown", "F16"), "True is 1"
    assert header.chat_template == (value if isinstance(value, str) else "")


def test_a_tensor_of_a_million_dimensions_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    count = 1_000_000
    name = struct.pack("<Q", 1) + b"t"
    data = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + name + struct.pack("<I", count)
    path.write_bytes(data + b"\xff" * 8 * count + bytes(12))
    with pytest.raises(GgufError, match="1000000 dimensions"):
        read_header(path)
