"""What the engine says without a process: models, refusals, options of a load."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_refinery.llm.errors import (
    BadRequest,
    LoadFailed,
    ModelNotFound,
    NoVision,
    ServerConfigError,
)
from image_refinery.llm.llamacpp import installed
from image_refinery.llm.llamacpp.backend import EmbeddedEngine, keep_alive_s, load_options
from image_refinery.llm.llamacpp.library import Library
from image_refinery.llm.llamacpp.process import LoadOptions

pytestmark = pytest.mark.embedded


def test_every_usable_model_is_listed_with_what_it_can_do(shared: Any) -> None:
    models = {model.name.removesuffix(":latest"): model for model in shared.engine.list()}
    # `cut` has a whole header and shows its damage only when loaded; `noise` is no GGUF file.
    assert sorted(models) == ["cut", "other", "slow", "thinker", "tiny", "tiny-vision"]
    assert models["tiny"].capabilities == {"completion"}
    assert models["tiny-vision"].capabilities == {"completion", "vision"}
    assert models["thinker"].capabilities == {"completion", "thinking"}
    assert models["tiny"].context_length == 4096
    assert models["tiny"].digest != models["other"].digest
    assert models["tiny"].note == ""


def test_the_size_of_a_vision_model_counts_both_files(shared: Any, models: Path) -> None:
    files = [models / "tiny-vision.gguf", models / "mmproj-tiny-vision.gguf"]
    assert shared.engine.find("tiny-vision").size_bytes == sum(f.stat().st_size for f in files)


def test_a_model_is_found_without_its_tag(shared: Any) -> None:
    engine = shared.engine
    found = engine.find("TINY-vision")
    assert found in engine.list()
    assert engine.show(found) == found
    assert engine.same_model("tiny", "Tiny:latest")
    assert not engine.same_model("tiny", "other")
    assert engine.same_model("gone", "GONE ") and not engine.same_model("gone", "tiny")


@pytest.mark.parametrize("method", ["find", "load", "unload"])
def test_a_name_without_a_model(shared: Any, method: str) -> None:
    with pytest.raises(ModelNotFound, match='"nope" is not installed in the embedded engine'):
        getattr(shared.engine, method)("nope")
    with pytest.raises(ModelNotFound):
        shared.chat("nope")


def test_a_file_that_is_no_model(shared: Any) -> None:
    with pytest.raises(LoadFailed, match="does not begin with the letters GGUF"):
        shared.chat("noise")
    with pytest.raises(LoadFailed, match=r'The embedded engine could not load "noise" \(.*\)\.$'):
        shared.engine.find("noise")


def test_a_text_model_refuses_images_before_it_is_loaded(
    user: Any, image: Callable[..., str]
) -> None:
    with pytest.raises(NoVision, match='"tiny:latest" in the embedded engine does not take images'):
        user.chat("tiny", images=[image("red")])
    assert user.ps() == {}


def test_the_stand_in_refuses_text_before_it_is_loaded(make_user: Callable[..., Any]) -> None:
    user = make_user(Library())
    with pytest.raises(
        BadRequest, match=r"^toy-vision:latest is a stand-in model .* Choose a text model\.$"
    ):
        user.chat("toy-vision", "Shorten: a red circle.")
    assert user.ps() == {}
    assert "stand-in model" in user.engine.find("toy-vision").note


def test_an_embedding_model_refuses_to_chat(make_user: Callable[..., Any], tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(tmp_path / "embed.gguf"), "bert")
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    user = make_user(Library([tmp_path]))
    assert user.engine.find("embed").capabilities == {"embedding"}
    with pytest.raises(BadRequest, match="is not a chat model"):
        user.chat("embed")
    assert user.ps() == {}


def test_models_are_fetched_elsewhere(shared: Any) -> None:
    with pytest.raises(BadRequest, match=r"llamacpp\.pull"):
        shared.engine.pull("smolvlm")


def test_options_that_are_left_out(shared: Any) -> None:
    options = {"mirostat": 1, "num_ctx": 512, "use_mmap": False, "seed": 1, "low_vram": None}
    assert list(shared.engine.ignored(options)) == ["mirostat"]
    assert shared.say("tiny", options={"mirostat": 1})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, LoadOptions(num_ctx=4096)),
        ({"num_ctx": 512}, LoadOptions(num_ctx=512)),
        ({"num_ctx": 100_000}, LoadOptions(num_ctx=4096)),
        ({"num_gpu": -1, "num_thread": 0}, LoadOptions(num_ctx=4096)),
        ({"num_gpu": 0, "num_thread": 3}, LoadOptions(num_ctx=4096, num_gpu=0, num_thread=3)),
        ({"num_batch": 64}, LoadOptions(num_ctx=4096, num_batch=64)),
        ({"use_mmap": False}, LoadOptions(num_ctx=4096, use_mmap=False)),
    ],
)
def test_options_of_a_load(models: Path, options: dict[str, Any], expected: LoadOptions) -> None:
    assert load_options(Library([models]).find("tiny"), options) == expected


def test_a_vision_model_has_room_for_an_image(models: Path) -> None:
    model = Library([models]).find("tiny-vision")
    assert load_options(model, {"num_ctx": 256}).num_ctx == 2048


@pytest.mark.parametrize("text", ["", "300", "-1", "5 m", "m", "5x", "1h-5m"])
def test_a_keep_alive_that_ollama_would_refuse(shared: Any, text: str) -> None:
    with pytest.raises(BadRequest, match="keep_alive"):
        shared.chat("tiny", keep_alive=text)


def test_a_negative_keep_alive_is_without_end() -> None:
    assert keep_alive_s(-0.5) == keep_alive_s("-1s") == math.inf


def test_without_the_binding_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    assert installed.available() == bool(find("xllamacpp"))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else find(name)
    )
    installed.available.cache_clear()
    try:
        assert not installed.available()
    finally:
        installed.available.cache_clear()
    with pytest.raises(ServerConfigError, match="python -m pip install xllamacpp"):
        EmbeddedEngine()
