"""SDXL Refiner in a real ComfyUI, with the tiny refiner in its checkpoints folder."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_checkpoint import write_core_checkpoint
from faulty_ollama import FaultyOllama, RecordedRequest, text_model, vision_model
from host import TINY, ComfyHost, FoundHost, Graph, Link, Refused, Run, node, put_tiny
from PIL import Image

NODE = "RefinerySDXLRefiner"
CORE = "core.safetensors"
DOWNLOAD = "stabilityai/stable-diffusion-xl-refiner-1.0 (download)"
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

_salt = iter(range(1_000_000))


@pytest.fixture(scope="module")
def refinery(comfyui: ComfyHost) -> ComfyHost:
    """The running ComfyUI, with the tiny refiner."""
    put_tiny(comfyui)
    return comfyui


def finished(host: ComfyHost, graph: Graph) -> Run:
    """Run a graph; the first run imports diffusers, which takes its time on a busy machine."""
    return host.run(graph, timeout_s=300)


def refine(image: Link, **inputs: Any) -> dict[str, Any]:
    """The node with its required inputs, as a page would send them; small work."""
    usual = {
        "checkpoint": TINY,
        "prompt": "",
        "negative_prompt": "",
        "strength": 0.3,
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "seed": 0,
        "working_size": "keep size",
    }
    return node(NODE, **(usual | inputs), image=image)


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """A new picture each time, so that nothing is cached: red left, blue right, one grey pixel."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2, 0] = 220
    picture[:, width // 2 :, 2] = 220
    picture[0, 0] = next(_salt) % 256
    return Image.fromarray(picture)


def single(host: ComfyHost, picture: Image.Image | None = None, **inputs: Any) -> Graph:
    """LoadImage, our node as "2", SaveImage as "3"."""
    name = host.save_input(scene() if picture is None else picture)
    return {
        "1": node("LoadImage", image=name),
        "2": refine(["1", 0], **inputs),
        "3": node("SaveImage", images=["2", 0], filename_prefix="refined"),
    }


def pictures(*sized: tuple[int, int, str], batch: bool = False) -> dict[str, Any]:
    listed = [[w, h, COLOURS[name]] for w, h, name in sized]
    return node("ProbePictures", pictures=json.dumps(listed), batch=batch, salt=next(_salt))


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def compared(run: Run, node_id: str) -> dict[str, Any]:
    (text,) = run.texts(node_id)
    return json.loads(text)


def sentence(run: Run) -> str:
    assert not run.ok
    return run.error["exception_message"].strip()


# the node itself


def test_the_inputs_are_in_the_design_s_order_and_all_explained(refinery: ComfyHost):
    info = refinery.object_info(NODE)
    assert info["display_name"] == "SDXL Refiner" and info["category"] == "Image Refinery/Image"
    assert info["input_order"]["required"] == [
        *("image", "checkpoint", "prompt", "negative_prompt", "strength"),
        *("num_inference_steps", "guidance_scale", "seed"),
    ]
    assert info["input_order"]["optional"] == [
        *("mask", "enabled", "aesthetic_score", "negative_aesthetic_score", "guidance_end"),
        *("working_size", "output_size", "keep_colours", "memory_mode", "unload_after"),
        *("on_error", "scale", "regions", "prompt_syntax", "upscale_model", "tile_prompts"),
    ]
    everything = info["input"]["required"] | info["input"]["optional"]
    assert [name for name, (_, options) in everything.items() if not options.get("tooltip")] == []
    assert all(info["output_tooltips"])
    assert info["output_name"] == ["image", "mask"] and info["output"] == ["IMAGE", "MASK"]


def test_refiners_come_first_and_the_download_last(refinery: ComfyHost):
    folder = refinery.base / "models" / "checkpoints"
    for name in ("aaa_base.safetensors", "old.ckpt"):
        (folder / name).write_bytes(b"")
    try:
        (_, options) = refinery.object_info(NODE)["input"]["required"]["checkpoint"]
        assert options["options"] == [TINY, "aaa_base.safetensors", DOWNLOAD]
        assert options["default"] == TINY
    finally:
        for name in ("aaa_base.safetensors", "old.ckpt"):
            (folder / name).unlink()


# pictures


def test_load_refine_save_shows_steps_and_previews(refinery: ComfyHost):
    run = finished(refinery, single(refinery))
    assert run.ok, run.error
    (file,) = refinery.saved(run, "3")
    result = pixels(file)
    assert result.shape == (64, 96, 3)
    assert result[:, :32, 0].mean() > result[:, :32, 2].mean() + 50, "red stays on the left"
    assert result[:, -32:, 2].mean() > result[:, -32:, 0].mean() + 50, "blue stays on the right"
    texts = [event.data["text"] for event in run.of("progress_text", node="2")]
    assert "step 2 of 6 (20 x 0.3)" in texts
    bars = [(event.data["value"], event.data["max"]) for event in run.of("progress", node="2")]
    assert bars[-1] == (6, 6)
    shown = [event.data["image"] for event in run.of("preview")]
    assert len(shown) >= 6
    assert all(image.startswith(b"\xff\xd8") for image in shown), "JPEG pictures"


def test_a_batch_of_three_is_a_batch_and_each_row_has_its_own_seed(refinery: ComfyHost):
    sized = [(64, 64, name) for name in ("red", "green", "blue")]
    graph = {
        "1": pictures(*sized, batch=True),
        "2": refine(["1", 0], seed=7, prompt="a wall"),
        "3": node("SaveImage", images=["2", 0], filename_prefix="batch"),
        "4": pictures(sized[2]),
        "5": refine(["4", 0], seed=9, prompt="a wall"),
        "6": node("SaveImage", images=["5", 0], filename_prefix="one"),
        "7": node("ProbeSame", first=["1", 0], second=["2", 0]),
    }
    run = finished(refinery, graph)
    assert run.ok, run.error
    files = refinery.saved(run, "3")
    assert len(files) == 3
    (alone,) = refinery.saved(run, "6")
    assert np.abs(pixels(files[2]) - pixels(alone)).max() <= 1
    said = compared(run, "7")
    assert said["counts"] == {"first": 1, "second": 1}
    assert said["rows"][0]["second"] == [3, 64, 64, 3]
    texts = [event.data["text"] for event in run.of("progress_text", node="2")]
    assert "image 2 of 3, step 2 of 6 (20 x 0.3)" in texts


def test_lists_of_images_and_of_written_prompts_are_zipped(
    refinery: ComfyHost, ollama: FaultyOllama
):
    def sized(request: RecordedRequest) -> str:
        return f"picture of {request.image_sizes[0]}"

    def repeat(request: RecordedRequest) -> str:
        return request.body["messages"][-1]["content"].partition("picture of ")[2][:8]

    for model in (vision_model(answer=sized), text_model(answer=repeat)):
        ollama.models[model.key] = model
    graph = {
        "1": pictures((64, 64, "red"), (96, 64, "green"), (64, 96, "blue")),
        "2": node(
            "RefineryLLMImageRefine",
            image=["1", 0],
            vision_model="llava:latest",
            text_model="llama3.2:latest",
            user_instructions="Shorten it.",
        ),
        "3": refine(["2", 0], prompt=["2", 2]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="list"),
    }
    run = finished(refinery, graph)
    assert run.ok, run.error
    assert len(set(run.outputs["2"]["text"])) == 3
    assert [pixels(file).shape[:2] for file in refinery.saved(run, "4")] == [
        *((64, 64), (64, 96), (96, 64)),
    ]


def test_prompts_that_cannot_be_paired_are_refused(refinery: ComfyHost, ollama: FaultyOllama):
    graph = {
        "1": pictures((64, 64, "red"), (96, 64, "green")),
        "2": node(
            "RefineryLLMImageRefine",
            image=["1", 0],
            vision_model="llava:latest",
            text_model="llama3.2:latest",
            user_instructions="",
        ),
        "5": pictures((64, 64, "red"), (64, 64, "green"), (64, 64, "blue")),
        "3": refine(["5", 0], prompt=["2", 1]),
        "4": node("PreviewAny", source=["3", 0]),
    }
    run = finished(refinery, graph)
    assert "2 prompts are connected, but there are 3 images" in sentence(run)


@pytest.mark.parametrize("how", ["strength 0", "not enabled"])
def test_nothing_to_do_gives_the_very_same_object_and_zeros_for_a_mask(
    refinery: ComfyHost, how: str
):
    inputs: dict[str, Any] = {"strength": 0.0} if how == "strength 0" else {"enabled": False}
    graph = single(refinery, **inputs)
    graph["20"] = node("ProbeSame", first=["1", 0], second=["2", 0])
    graph["21"] = node("MaskToImage", mask=["2", 1])
    graph["22"] = node("SaveImage", images=["21", 0], filename_prefix="mask")
    run = finished(refinery, graph)
    assert run.ok, run.error
    assert compared(run, "20")["rows"][0]["same"] is True
    (mask,) = refinery.saved(run, "22")
    assert pixels(mask).shape == (64, 96, 3) and pixels(mask).max() == 0


def test_not_enabled_leaves_linked_prompts_unmade(refinery: ComfyHost):
    graph = single(refinery, enabled=False, prompt=["9", 0], negative_prompt=["8", 0])
    for number in ("8", "9"):
        graph[number] = node("ProbeModel", seconds=0.0, salt=next(_salt))
    run = finished(refinery, graph)
    assert run.ok, run.error
    assert set(run.order) == {"1", "2", "3"}
    graph["2"]["inputs"]["enabled"] = True
    run = finished(refinery, graph)
    assert run.ok, run.error
    assert {"8", "9"} <= set(run.order)


def test_with_a_mask_pixels_outside_stay_bit_for_bit(refinery: ComfyHost):
    rng = np.random.default_rng(next(_salt))
    picture = Image.fromarray(rng.integers(0, 256, (128, 192, 3), dtype=np.uint8))
    graph = single(refinery, picture, mask=["10", 0])
    graph["10"] = node("CropMask", mask=["11", 0], x=0, y=0, width=192, height=128)
    graph["11"] = node("MaskComposite", destination=["12", 0], source=["13", 0], x=96, y=0,
                       operation="add")  # fmt: skip
    graph["12"] = node("SolidMask", value=0.0, width=192, height=128)
    graph["13"] = node("SolidMask", value=1.0, width=64, height=64)
    graph["20"] = node("MaskToImage", mask=["2", 1])
    graph["21"] = node("SaveImage", images=["20", 0], filename_prefix="mask")
    run = finished(refinery, graph)
    assert run.ok, run.error
    (file,) = refinery.saved(run, "3")
    changed = np.abs(pixels(file) - np.asarray(picture).astype(int)).max(axis=2) > 0
    assert changed[:64, 96:160].mean() > 0.5
    changed[:64, 96:160] = False
    assert not changed.any()
    (mask,) = refinery.saved(run, "21")
    assert pixels(mask)[:64, 96:160].min() == 255


def test_load_image_s_small_mask_of_an_opaque_picture_marks_nothing(refinery: ComfyHost):
    picture = scene(128, 64)
    run = finished(refinery, single(refinery, picture, mask=["1", 1]))
    assert run.ok, run.error
    (file,) = refinery.saved(run, "3")
    assert (pixels(file) == np.asarray(picture)).all()


# errors, in the node's words


def write_header(file: Path, *names: str) -> None:
    """A safetensors file of tiny tensors with these names."""
    header = {
        name: {"dtype": "F16", "shape": [1], "data_offsets": [2 * i, 2 * i + 2]}
        for i, name in enumerate(names)
    }
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(2 * len(names)))


WRONG_KINDS = {
    "sd15": ("cond_stage_model.transformer.text_model.embeddings.position_ids", "1.x model"),
    "flux": ("double_blocks.0.img_attn.qkv.weight", "a FLUX model"),
    "lora": ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
    "vae": ("first_stage_model.encoder.conv_in.weight", "a VAE"),
}


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_another_kind_of_checkpoint_is_named(refinery: ComfyHost, kind: str):
    key, words = WRONG_KINDS[kind]
    write_header(refinery.base / "models" / "checkpoints" / f"{kind}.safetensors", key)
    said = sentence(finished(refinery, single(refinery, checkpoint=f"{kind}.safetensors")))
    assert words in said and said.count("\n") == 0


def test_a_truncated_checkpoint_is_named(refinery: ComfyHost):
    folder = refinery.base / "models" / "checkpoints"
    (folder / "cut.safetensors").write_bytes((folder / TINY).read_bytes()[:-1000])
    said = sentence(finished(refinery, single(refinery, checkpoint="cut.safetensors")))
    assert "damaged or not fully downloaded" in said


def test_a_checkpoint_of_somebody_else_s_workflow_queues_and_is_named(refinery: ComfyHost):
    said = sentence(finished(refinery, single(refinery, checkpoint="their own.safetensors")))
    assert 'no checkpoint "their own.safetensors"' in said


def test_a_path_out_of_the_folder_is_no_checkpoint(refinery: ComfyHost):
    said = sentence(finished(refinery, single(refinery, checkpoint="../../input/x.safetensors")))
    assert "no checkpoint" in said


def test_the_download_without_a_network_is_one_sentence(refinery: ComfyHost):
    run = finished(refinery, single(refinery, checkpoint=DOWNLOAD))
    assert "could not be downloaded from Hugging Face" in sentence(run)


def test_settings_that_leave_no_step_say_which_would(refinery: ComfyHost):
    said = sentence(finished(refinery, single(refinery, num_inference_steps=3, strength=0.3)))
    assert "leave no step to run" in said and "raise strength to" in said


def test_a_value_out_of_range_is_refused_when_it_is_queued(refinery: ComfyHost):
    with pytest.raises(Refused):
        finished(refinery, single(refinery, strength=1.5))


def test_nan_is_said_and_not_saved_as_a_black_picture(refinery: ComfyHost):
    folder = refinery.base / "models" / "checkpoints"
    whole = bytearray((folder / TINY).read_bytes())
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    start, end = header["model.diffusion_model.out.2.bias"]["data_offsets"]
    kind = header["model.diffusion_model.out.2.bias"]["dtype"]
    count = (end - start) // {"F16": 2, "F32": 4}[kind]
    nan = np.full(count, np.nan, {"F16": "<f2", "F32": "<f4"}[kind]).tobytes()
    whole[8 + length + start : 8 + length + end] = nan
    (folder / "nan.safetensors").write_bytes(whole)
    shutil.copytree(folder / "tiny_refiner", folder / "nan")
    said = sentence(finished(refinery, single(refinery, checkpoint="nan.safetensors")))
    assert "produced NaN or infinity" in said


def test_passing_the_image_on_shows_the_error_and_is_not_cached(refinery: ComfyHost):
    graph = single(refinery, checkpoint="gone.safetensors", on_error="return original image")
    graph["20"] = node("ProbeSame", first=["1", 0], second=["2", 0])
    run = finished(refinery, graph)
    assert run.ok, run.error
    assert compared(run, "20")["rows"][0]["same"] is True
    assert run.outputs["2"]["text"][0].startswith('Error: There is no checkpoint "gone')
    again = finished(refinery, graph)
    assert "2" in again.order, "a failure is never cached"


# cancel, and ComfyUI's own models in between


@pytest.fixture(scope="module")
def core_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint for CheckpointLoaderSimple; 300 MB, so it does not stay until pytest cleans."""
    file = tmp_path_factory.mktemp("core") / CORE
    write_core_checkpoint(file)
    yield file
    file.unlink()


@pytest.fixture(params=["usual", "no VRAM"])
def beside_core(request: pytest.FixtureRequest, core_checkpoint: Path) -> Iterator[ComfyHost]:
    """A ComfyUI with both checkpoints; other tests find the list of checkpoints as it was."""
    name = "refinery" if request.param == "usual" else "novram"
    host: ComfyHost = request.getfixturevalue(name)
    placed = host.base / "models" / "checkpoints" / CORE
    placed.hardlink_to(core_checkpoint)
    yield host
    placed.unlink()


def core_workflow(seed: int) -> Graph:
    """A checkpoint workflow of core nodes alone, two steps at 64 px.

    The latents are zeros however they are multiplied: the factor, new each time, keeps ComfyUI
    from answering with what it sampled before.
    """
    how = {"steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0]}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=CORE),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a red house"),
        "3": node("CLIPTextEncode", clip=["1", 1], text="blurry"),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node("LatentMultiply", samples=["4", 0], multiplier=next(_salt) % 1000 / 100),
        "6": node("KSampler", **links, **how, latent_image=["5", 0], seed=seed),
        "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="core"),
    }


def core_picture(host: ComfyHost, run: Run) -> np.ndarray:
    """What core drew, once it is sure that it sampled just now and drew something."""
    assert run.ok, run.error
    assert {"6", "7", "8"} <= set(run.order), "sampled, not remembered"
    (file,) = host.saved(run, "8")
    drawn = pixels(file)
    assert drawn.shape == (64, 64, 3)
    assert drawn.std() > 10, "not one colour: NaN would be black"
    return drawn


def test_cancel_in_the_middle_of_a_step_and_a_core_checkpoint_right_after(beside_core: ComfyHost):
    host = beside_core
    graph = single(host, scene(1024, 1024), num_inference_steps=1000, strength=1.0)
    events = host.listen()
    try:
        prompt_id = host.queue(graph, events)
        first = events.wait_for("progress", timeout_s=300, node="2", max=1000, value=1)
        second = events.wait_for("progress", timeout_s=60, node="2", max=1000, value=2)
        host.interrupt()
        core_id = host.queue(core_workflow(seed=1), events)
        stopped = events.wait_for("execution_interrupted", prompt_id=prompt_id)
        cancelled = host.finish(prompt_id, events)
        core = host.finish(core_id, events, timeout_s=300)
    finally:
        events.close()
    assert cancelled.interrupted
    # Long before the step's end, where ComfyUI's bar ends the work: its layers ask before every
    # operation, and ours in each that is not one of its own (tests/refine/test_progress.py).
    step_s = second.at - first.at
    assert stopped.at - second.at <= min(1.0, 0.6 * step_s), step_s
    drawn = core_picture(host, core)
    assert finished(host, single(host)).ok
    again = core_picture(host, finished(host, core_workflow(seed=1)))
    assert (again == drawn).all()


def test_core_and_refiner_take_turns_and_leave_each_other_s_pictures_as_they_were(
    beside_core: ComfyHost, novram: ComfyHost
):
    host = beside_core
    picture = scene()
    drawn: list[np.ndarray] = []
    refined: list[np.ndarray] = []
    for unload in (False, True):
        with host.new_log() as said:
            drawn.append(core_picture(host, finished(host, core_workflow(seed=2))))
        assert ("loaded partially" in said()) is (host is novram), said()
        run = finished(host, single(host, picture, unload_after=unload))
        assert run.ok, run.error
        assert "2" in run.order, "refined, not remembered"
        (file,) = host.saved(run, "3")
        refined.append(pixels(file))
    drawn.append(core_picture(host, finished(host, core_workflow(seed=2))))
    assert all((one == drawn[0]).all() for one in drawn)
    assert (refined[0] == refined[1]).all()
    other = core_picture(host, finished(host, core_workflow(seed=3)))
    assert (other != drawn[0]).any(), "the seed counts, so equal pictures say something"


# memory


def opened(host: ComfyHost, graphs: list[Graph], folder: Path) -> list[str]:
    """Run graphs while strace watches the server, and return the checkpoint's openat calls."""
    trace = folder / "openat.txt"
    command = ["strace", "-f", "-e", "trace=open,openat", "-p", str(host.pid), "-o", str(trace)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watch:
        try:
            assert watch.stderr is not None
            line = watch.stderr.readline()
            if "attached" not in line:
                pytest.skip(f"strace cannot watch ComfyUI here ({line.strip()})")
            for graph in graphs:
                run = finished(host, graph)
                assert run.ok, run.error
        finally:
            watch.terminate()
    lines = trace.read_text(errors="replace").splitlines()
    assert any("refined_" in line for line in lines), "strace saw SaveImage's file"
    return [line for line in lines if TINY in line and "ENOENT" not in line]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_second_run_opens_no_checkpoint_also_after_unload_models(
    refinery: ComfyHost, tmp_path: Path
):
    assert finished(refinery, single(refinery, memory_mode="gpu")).ok
    graphs = [single(refinery, memory_mode="gpu", unload_after=on) for on in (True, False)]
    assert opened(refinery, graphs, tmp_path) == []
    refinery.free()
    time.sleep(1.5)  # ComfyUI does it when its queue's thread wakes up
    assert opened(refinery, [single(refinery, memory_mode="gpu")], tmp_path) == []
    first = opened(refinery, [single(refinery, memory_mode="offload")], tmp_path)
    assert first != [], "another memory mode loads anew, so strace would have seen it"


def resident_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat_over_fifty_runs(refinery: ComfyHost):
    sizes = []
    for number in range(50):
        unload = number % 2 == 0
        run = finished(refinery, single(refinery, unload_after=unload, num_inference_steps=4))
        assert run.ok, run.error
        sizes.append(resident_kb(refinery.pid))
    tens = [kb // 1024 for kb in sizes[9::10]]
    assert sizes[-1] - sizes[9] < 20 * 1024, f"RSS in MB after every tenth run: {tens}"


@pytest.fixture(scope="module")
def novram(
    found_comfyui: FoundHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyHost]:
    """A ComfyUI that believes to have a GPU without memory."""
    pack = Path(__file__).resolve().parent / "novram_pack"
    base = tmp_path_factory.mktemp("novram")
    env = {"OMP_NUM_THREADS": "1"}  # as for `comfyui`
    with ComfyHost(found_comfyui, base, env=env, packs={"novram-pack": pack}) as running:
        put_tiny(running)
        yield running


def test_with_no_vram_the_picture_is_the_same(refinery: ComfyHost, novram: ComfyHost):
    picture = scene()
    results = []
    for host in (refinery, novram):
        with host.new_log() as said:
            run = finished(host, single(host, picture, prompt="a wall"))
            assert run.ok, run.error
            (file,) = host.saved(run, "3")
        results.append(pixels(file))
        partly = "loaded partially" in said()
        assert partly is (host is novram), said()
    assert np.abs(results[0] - results[1]).max() <= 1
