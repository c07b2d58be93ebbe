"""Files, folders and hub ids: local ones load with no network, wrong ones say what they are."""

import json
import os
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from image_refinery.refine import (
    CheckpointError,
    HubError,
    ImageRefiner,
    VocabularyError,
    read_checkpoint,
)
from image_refinery.refine.loading import load_components, shipped_config
from image_refinery.refine.tokenizer_files import find_tokenizer_files
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = {"num_inference_steps": 4, "working_size": "keep size"}


@pytest.fixture
def no_vocabulary_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without ComfyUI and with an empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.delitem(sys.modules, "comfy", raising=False)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def write_header(path: Path, shapes: dict[str, list[int]]) -> Path:
    """Write a valid safetensors file with tensors of these names, all zeros."""
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    return path


def test_a_file_loads_with_no_network(tiny_file: Path, no_network: list) -> None:
    refined = ImageRefiner("cpu", model=tiny_file).refine(Image.new("RGB", (64, 64)), **SMALL)
    assert refined.size == (64, 64)
    assert no_network == []


def test_a_load_removes_what_killed_processes_have_left(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long_ago = time.time() - 2 * 86400
    kept = ["image-refinery-checkpoint-new", "image-refinery-0.2.0"]  # the latter may be anything
    for name in ("image-refinery-checkpoint-old", *kept):
        (tmp_path / name / "tokenizer").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time(),) * 2 if name == kept[0] else (long_ago,) * 2)
    load_components(tiny_file)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(kept)


def test_a_folder_loads_with_no_network_and_gives_the_same_picture(
    tiny_file: Path, tiny_folder: Path, no_network: list
) -> None:
    image = Image.radial_gradient("L").convert("RGB").resize((64, 64))
    pictures = [
        ImageRefiner("cpu", model=model).refine(image, **SMALL).tobytes()
        for model in (tiny_file, tiny_folder)
    ]
    assert pictures[0] == pictures[1]
    assert no_network == []


def test_a_hub_id_in_the_hubs_cache_loads_with_no_network(
    tiny_folder: Path, tmp_path: Path, no_network: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repo = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_folder, repo / "snapshots" / "0")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0")
    for weights in (repo / "snapshots" / "0").glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refiner = ImageRefiner("cpu", model="somebody/tiny")
    assert refiner.refine(Image.new("RGB", (64, 64)), **SMALL).size == (64, 64)
    assert no_network == []


def test_a_hub_id_without_network_is_one_sentence(
    tmp_path: Path, no_network: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"^somebody/nothing could not be downloaded .* check"):
        load_components("somebody/nothing")
    assert no_network
    before = len(no_network)
    with pytest.raises(HubError, match="downloads are turned off"):
        load_components("somebody/nothing", local_files_only=True)
    assert len(no_network) == before


def test_the_model_comes_from_the_environment(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_REFINERY_REFINER", str(tiny_file))
    assert ImageRefiner("cpu").model == str(tiny_file)
    monkeypatch.delenv("IMAGE_REFINERY_REFINER")
    assert ImageRefiner("cpu").model == "stabilityai/stable-diffusion-xl-refiner-1.0"


def test_a_second_run_opens_no_file(tiny_file: Path, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows does not rename a mapped file")
    shutil.copy(tiny_file, tmp_path / "moved.safetensors")
    shutil.copytree(tiny_file.with_suffix(""), tmp_path / "moved")
    refiner = ImageRefiner("cpu", model=tmp_path / "moved.safetensors")
    image = Image.radial_gradient("L").convert("RGB").resize((64, 64))
    first = refiner.refine(image, **SMALL).tobytes()
    (tmp_path / "moved.safetensors").rename(tmp_path / "gone")
    assert refiner.refine(image, **SMALL).tobytes() == first
    refiner.unload()
    assert refiner.refine(image, **SMALL).tobytes() == first
    refiner.close()
    with pytest.raises(CheckpointError, match="There is no checkpoint file at"):
        refiner.refine(image, **SMALL)


UNET = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            {"cond_stage_model.transformer.x": [1], UNET: [8, 4, 3, 3]},
            "a Stable Diffusion 1.x model",
        ),
        ({"cond_stage_model.model.x": [1], UNET: [8, 4, 3, 3]}, "a Stable Diffusion 2.x model"),
        ({"double_blocks.0.img_attn.qkv.weight": [1]}, "a FLUX model"),
        ({"model.diffusion_model.double_blocks.0.x": [1]}, "a FLUX model"),
        ({"model.diffusion_model.joint_blocks.0.x": [1]}, "a Stable Diffusion 3 model"),
        ({"lora_unet_down_blocks_0.lora_up.weight": [1]}, "a LoRA"),
        ({"unet.down_blocks.0.to_q.lora_A.weight": [1]}, "a LoRA"),
        ({"control_model.input_hint_block.0.weight": [1]}, "a ControlNet"),
        ({"encoder.conv_in.weight": [1], "decoder.conv_in.weight": [1]}, "a VAE"),
        ({"first_stage_model.encoder.conv_in.weight": [1]}, "a VAE"),
        ({"text_model.embeddings.x": [1]}, "a text encoder"),
        ({"down_blocks.0.resnets.0.conv1.weight": [1]}, "a UNet in diffusers' layout"),
        ({"something": [1]}, "an unknown kind of model"),
    ],
)
def test_other_models_are_named(tmp_path: Path, shapes: dict, words: str) -> None:
    path = write_header(tmp_path / "model.safetensors", shapes)
    with pytest.raises(CheckpointError) as caught:
        load_components(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is {words}, which cannot refine images: choose")
    assert message.count(". ") == 0


@pytest.mark.parametrize(
    ("left_out", "words"), [("conditioner.", "no text encoder"), ("first_stage_model.", "no VAE")]
)
def test_a_checkpoint_with_a_part_missing_says_which(
    tiny_file: Path, tmp_path: Path, left_out: str, words: str
) -> None:
    tensors = load_file(tiny_file)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load_components(tmp_path / "part.safetensors")


def test_an_inpainting_checkpoint_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_file)
    tensors[UNET] = torch.zeros(24, 9, 3, 3)
    save_file(tensors, tmp_path / "inpaint.safetensors")
    with pytest.raises(CheckpointError, match="an inpainting or editing model"):
        load_components(tmp_path / "inpaint.safetensors")


def test_missing_unet_weights_are_one_sentence(tiny_file: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_file)
    kept = {name: t for name, t in tensors.items() if "output_blocks.3" not in name}
    save_file(kept, tmp_path / "holes.safetensors")
    shutil.copytree(tiny_file.with_suffix(""), tmp_path / "holes")
    with pytest.raises(CheckpointError, match=r"could not be loaded as an SDXL checkpoint \(.+\):"):
        load_components(tmp_path / "holes.safetensors")


def test_a_checkpoint_of_other_dimensions_misses_its_folder(
    tiny_file: Path, tmp_path: Path
) -> None:
    lone = shutil.copy2(tiny_file, tmp_path / "lone.safetensors")
    vocabulary = tiny_file.with_suffix("") / "tokenizer_2"
    with pytest.raises(CheckpointError, match=r"needs its folder lone of JSON beside it\.$"):
        load_components(lone, vocabulary=vocabulary)


@pytest.mark.parametrize("length", [0, 5, 100, 20_000, -1])
def test_a_truncated_file_is_named_as_such(tiny_file: Path, tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="damaged or not fully downloaded"):
        load_components(path)


@pytest.mark.parametrize(
    "header",
    ["[]", "null", '"x"', '{"a": 1}', '{"a": {"dtype": "F16", "shape": [1]}}', "[" * 100_000,
     '{"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, "2"]}}'],
)  # fmt: skip
def test_json_that_is_no_header_is_named_as_such(tmp_path: Path, header: str) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(CheckpointError, match="it has no safetensors header"):
        load_components(path)


def test_a_part_without_all_its_weights_says_what_it_lacks(tiny_file: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_file)
    del tensors["conditioner.embedders.0.model.ln_final.weight"]
    save_file(tensors, tmp_path / "lacks.safetensors")
    shutil.copytree(tiny_file.with_suffix(""), tmp_path / "lacks")
    with pytest.raises(CheckpointError, match=r"lacks weights of its text_encoder_2 \(such as "):
        load_components(tmp_path / "lacks.safetensors")


def test_junk_is_named_as_such(tmp_path: Path) -> None:
    for number, junk in enumerate((b"<html>404</html>" * 99, struct.pack("<Q", 9) + b"{not json")):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(junk)
        with pytest.raises(CheckpointError, match="damaged"):
            load_components(path)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    for name in ("model.ckpt", "model.pt", "model.bin"):
        with pytest.raises(CheckpointError, match="can run code when it is opened"):
            ImageRefiner("cpu", model=tmp_path / name)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="pickled weights are not loaded"):
        load_components(tmp_path)


def test_missing_paths_are_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint file at"):
        ImageRefiner("cpu", model=tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        ImageRefiner("cpu", model=tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        load_components(tmp_path)
    with pytest.raises(CheckpointError, match="or a Hugging Face id"):
        load_components("three/part/name")


def test_the_vocabulary_is_found_beside_in_comfyui_and_in_the_hubs_cache(
    tiny_file: Path, tmp_path: Path, no_vocabulary_anywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_file.with_suffix("") / "tokenizer_2"
    checkpoint = tmp_path / "models" / "alone.safetensors"

    cached = (
        tmp_path / "cache/models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/0/tokenizer_2"
    )
    shutil.copytree(files, cached)
    (cached.parents[2] / "refs").mkdir()
    (cached.parents[2] / "refs" / "main").write_text("0")
    assert find_tokenizer_files(checkpoint) == cached

    comfy = ModuleType("comfy")
    comfy.__path__ = [str(tmp_path / "ComfyUI" / "comfy")]
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    assert find_tokenizer_files(checkpoint) == cached
    shutil.copytree(files, tmp_path / "ComfyUI" / "comfy" / "sd1_tokenizer")
    assert find_tokenizer_files(checkpoint) == tmp_path / "ComfyUI" / "comfy" / "sd1_tokenizer"

    shutil.copytree(files, tmp_path / "models" / "alone" / "tokenizer_2")
    assert find_tokenizer_files(checkpoint) == tmp_path / "models" / "alone" / "tokenizer_2"
    assert find_tokenizer_files(checkpoint, files) == files


def test_without_a_vocabulary_one_sentence_says_where_to_put_it(
    tiny_file: Path, tmp_path: Path, no_vocabulary_anywhere: None, no_network: list
) -> None:
    shutil.copy(tiny_file, tmp_path / "alone.safetensors")
    with pytest.raises(VocabularyError) as caught:
        load_components(tmp_path / "alone.safetensors")
    assert str(tmp_path / "alone" / "tokenizer_2") in str(caught.value)
    with pytest.raises(VocabularyError, match=r"does not have vocab\.json"):
        load_components(tmp_path / "alone.safetensors", vocabulary=tmp_path)
    assert no_network == []


def test_the_shipped_configuration_is_the_published_architecture() -> None:
    """Parameter counts of the models as published; built without memory."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    expected = {"refiner": 2_259_526_660, "base": 2_567_463_684, "ssd-1b": 1_331_334_404}
    for family, count in expected.items():
        config = shipped_config(family)
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config["unet/config.json"])
            vae = AutoencoderKL.from_config(config["vae/config.json"])
        assert sum(p.numel() for p in unet.parameters()) == count
        assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    size = sum(file.stat().st_size for file in Path(__file__).parents[2].glob("refine/configs/*"))
    assert size < 8_000


@pytest.mark.parametrize("name", ["sdxl_lightning_8step", "SDXL-Turbo"])
def test_turbo_and_lightning_are_told_by_name_and_advised(
    open_refiner: Any, tiny_file: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(tiny_file, tmp_path / f"{name}.safetensors")
    shutil.copytree(tiny_file.with_suffix(""), tmp_path / name)
    (tmp_path / name / "scheduler" / "scheduler_config.json").unlink()
    (tmp_path / name / "model_index.json").unlink()
    info = read_checkpoint(tmp_path / f"{name}.safetensors")
    assert info.variant in name.lower()
    assert "guidance_scale 1 or less" in info.advice
    refiner = open_refiner("cpu", model=info.path)
    image = Image.radial_gradient("L").convert("RGB").resize((64, 64))
    settings = {"guidance_scale": 1.0, "num_inference_steps": 8, "working_size": "keep size"}
    first = refiner.refine(image, **settings)
    assert first.tobytes() == refiner.refine(image, **settings).tobytes()
    assert refiner.components.scheduler.config.timestep_spacing == "trailing"
    assert info.advice in caplog.text


def test_the_tiny_refiner_is_told_to_be_a_refiner(trained_file: Path) -> None:
    info = read_checkpoint(trained_file)
    assert (info.family, info.variant, info.dtype, info.advice) == ("refiner", "", "F16", "")
    assert info.size_bytes == trained_file.stat().st_size < 10_000_000


def test_a_checkpoint_is_named_by_a_path_or_a_text(tiny_file: Path, tmp_path: Path) -> None:
    assert read_checkpoint(str(tiny_file)) == read_checkpoint(tiny_file)
    for name in ("gone.safetensors", "old.ckpt"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(str(tmp_path / name))


def test_weights_stay_mapped_in_their_stored_type(tiny_file: Path) -> None:
    components = load_components(tiny_file)
    assert {p.dtype for module in components.modules().values() for p in module.parameters()} == {
        torch.float16
    }
    if sys.platform == "linux":
        assert str(tiny_file) in Path("/proc/self/maps").read_text()


def test_nothing_is_divided_by_one(tiny_file: Path) -> None:
    divided: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            by = args[1] if func.overloadpacket.__name__ == "div" else None
            if isinstance(by, float) and by == 1:
                divided.append(str(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Count():
        ImageRefiner("cpu", model=tiny_file).refine(Image.new("RGB", (64, 64)), **SMALL)
    assert divided == []
    vae = load_components(tiny_file).vae.float()
    with torch.no_grad():
        decoded = vae.decode(torch.zeros(1, 4, 8, 8)).sample
    plain = AutoencoderKL.from_config(vae.config)
    plain.load_state_dict(vae.state_dict())
    with torch.no_grad(), Count():
        expected = plain.eval().decode(torch.zeros(1, 4, 8, 8)).sample
    assert len(divided) > 5
    assert torch.equal(decoded, expected)


def test_json_beside_a_file_overrides_what_ships(tiny_file: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_file, tmp_path / "other.safetensors")
    shutil.copytree(tiny_file.with_suffix(""), tmp_path / "other")
    scheduler = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "steps_offset": 0}))
    assert load_components(tmp_path / "other.safetensors").scheduler.config.steps_offset == 0
    assert load_components(tiny_file).scheduler.config.steps_offset == 1
