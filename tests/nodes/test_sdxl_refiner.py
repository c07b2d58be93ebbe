"""SDXL Refiner over the stub, with the tiny refiner: inputs, pairing, errors, cancel, progress."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

TINY = "tiny_refiner.safetensors"


@pytest.fixture
def node(checkpoints: Path, quick_loads: None) -> Iterator[Any]:
    """The node class; afterwards no refiner is kept."""
    from image_refinery.nodes.host.kept import free_refiner
    from image_refinery.nodes.sdxl_refiner import SDXLRefiner

    yield SDXLRefiner
    free_refiner()


def execute(node: Any, *batches: torch.Tensor, **inputs: Any) -> Any:
    """Call the node as ComfyUI does with an input list: under inference mode."""
    small = {"working_size": "keep size", "num_inference_steps": 7}  # of which two run
    named = {"checkpoint": TINY, "prompt": ""} | small | inputs
    lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    with torch.inference_mode():
        return node.execute(image=list(batches), **lists)


def image(height: int = 64, width: int = 64, batch: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand(batch, height, width, channels)


def test_the_inputs_are_in_the_design_s_order_and_all_explained(node: Any) -> None:
    inputs = node.define_schema().inputs
    assert [one.id for one in inputs] == [
        *("image", "checkpoint", "prompt", "negative_prompt", "strength"),
        *("num_inference_steps", "guidance_scale", "seed", "mask", "enabled"),
        *("aesthetic_score", "negative_aesthetic_score", "guidance_end", "working_size"),
        *("output_size", "keep_colours", "memory_mode", "unload_after", "on_error"),
        *("scale", "regions", "prompt_syntax", "upscale_model", "tile_prompts"),
    ]
    assert next(one.id for one in inputs if one.optional) == "mask"
    assert all(one.tooltip for one in inputs)
    assert all(one.tooltip and one.is_output_list for one in node.define_schema().outputs)


def test_the_defaults_are_the_settings_own(node: Any) -> None:
    from image_refinery.refine import RefineSettings

    usual = RefineSettings().describe()
    del usual["tile_size"]  # SDXL's tiles suit SDXL
    fields = {one.id: one.as_dict() for one in node.define_schema().inputs}
    usual["keep_colours"] = usual.pop("keep_colors")  # a node's id never changes
    assert {name: fields[name]["default"] for name in usual} == usual
    assert fields["unload_after"]["default"] is True
    assert fields["on_error"]["default"] == "stop the workflow"


def test_the_choices_and_the_download_are_the_refiner_s_own(node: Any) -> None:
    from image_refinery.nodes.host.checkpoints import DOWNLOADED_MODEL
    from image_refinery.nodes.refiner_inputs import _SETTINGS
    from image_refinery.refine import DEFAULT_MODEL, RefineSettings
    from image_refinery.refine.settings import MemoryMode, OutputSize, WorkingSize

    fields = {one.id: one.as_dict() for one in node.define_schema().inputs}
    for id, choices in (
        ("working_size", WorkingSize),
        ("output_size", OutputSize),
        ("memory_mode", MemoryMode),
    ):
        assert fields[id]["options"] == list(get_args(choices))
    assert {"prompt", "keep_colors", "tile_size", *_SETTINGS} == set(RefineSettings().describe())
    assert DOWNLOADED_MODEL == DEFAULT_MODEL


def test_refiners_come_first_and_pickles_not_at_all(node: Any, checkpoints: Path) -> None:
    from image_refinery.nodes.host.checkpoints import DOWNLOAD, checkpoints_to_choose

    others = [checkpoints / name for name in ("a_base.safetensors", "z_REFINER.sft", "old.ckpt")]
    for file in others:
        file.write_bytes(b"")
    try:
        expected = [TINY, "z_REFINER.sft", "a_base.safetensors", DOWNLOAD]
        assert checkpoints_to_choose() == expected
    finally:
        for file in others:
            file.unlink()


def test_any_checkpoint_passes_validation(node: Any) -> None:
    assert "checkpoint" in inspect.signature(node.validate_inputs).parameters
    assert node.validate_inputs(["somebody's.safetensors"]) is True


def test_a_windows_path_is_found(node: Any, checkpoints: Path) -> None:
    from image_refinery.nodes.host.checkpoints import find_checkpoint

    (checkpoints / "sdxl").mkdir(exist_ok=True)
    (checkpoints / "sdxl" / "one.safetensors").write_bytes(b"")
    assert find_checkpoint("sdxl\\one.safetensors") == checkpoints / "sdxl" / "one.safetensors"


def test_a_batch_stays_a_batch_and_rows_equal_single_runs(node: Any) -> None:
    batch, other = image(batch=2), image(64, 128)
    images, masks = execute(node, batch, other, seed=5, unload_after=False).result
    assert [tuple(one.shape) for one in images] == [(2, 64, 64, 3), (1, 64, 128, 3)]
    assert [tuple(one.shape) for one in masks] == [(2, 64, 64), (1, 64, 128)]
    assert not any(mask.any() for mask in masks)
    (second,), _ = execute(node, batch[1:], seed=6, unload_after=False).result
    (third,), _ = execute(node, other, seed=7).result
    assert torch.allclose(images[0][1:], second, atol=1e-5)
    assert torch.allclose(images[1], third, atol=1e-5)


def test_prompts_are_zipped_with_images_also_with_those_of_one_batch(node: Any) -> None:
    batch = image(batch=2)
    (both,), _ = execute(node, batch, prompt=["red", "blue"], unload_after=False).result
    (first,), _ = execute(node, batch[:1], prompt="red", unload_after=False).result
    (second,), _ = execute(node, batch[1:], prompt="blue", seed=1, unload_after=False).result
    (unlike,), _ = execute(node, batch[1:], prompt="red", seed=1).result
    assert torch.allclose(both, torch.cat([first, second]), atol=1e-5)
    assert not torch.allclose(second, unlike, atol=1e-5)


@pytest.mark.parametrize("inputs", [{"strength": 0.0}, {"enabled": False}])
def test_nothing_to_do_is_the_very_same_object(node: Any, inputs: dict[str, Any]) -> None:
    picture, mask = image(), torch.rand(1, 64, 64)
    images, masks = execute(node, picture, mask=mask, **inputs).result
    assert images[0] is picture and masks[0] is mask


def test_not_enabled_touches_no_checkpoint_and_asks_for_no_prompt(node: Any) -> None:
    picture = image()
    images, _ = execute(node, picture, enabled=False, checkpoint="gone.safetensors").result
    assert images[0] is picture
    assert node.check_lazy_status(enabled=[False], prompt=(None,)) == []
    assert node.check_lazy_status(enabled=[True], prompt=(None,)) == ["prompt", "negative_prompt"]


def test_pixels_outside_a_mask_stay_and_a_mask_of_another_size_fits(node: Any) -> None:
    picture = image(128, 128)
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:32, 16:32] = 1
    (refined,), masks = execute(node, picture, mask=mask).result
    assert masks[0] is mask
    assert torch.equal(refined[:, 72:], picture[:, 72:])
    assert not torch.equal(refined[:, 32:64, 32:64], picture[:, 32:64, 32:64])


def mask_of(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None].expand(-1, 4, 4)


@pytest.mark.parametrize(
    ("masks", "sizes", "expected"),
    [
        ([mask_of(0.1)], [2, 1], [0.1, 0.1, 0.1]),
        ([mask_of(0.1)[0]], [1], [0.1]),
        ([mask_of(0.1, 0.2, 0.3)], [3], [0.1, 0.2, 0.3]),
        ([mask_of(0.1, 0.2, 0.3)], [1, 1, 1], [0.1, 0.2, 0.3]),
        ([mask_of(0.1), mask_of(0.2), mask_of(0.3)], [3], [0.1, 0.2, 0.3]),
        ([mask_of(0.1), mask_of(0.2)], [2, 3], [0.1, 0.1, 0.2, 0.2, 0.2]),
        ([mask_of(0.1), mask_of(0.2, 0.3)], [3, 2], [0.1, 0.1, 0.1, 0.2, 0.3]),
        ([mask_of(0.1, 0.2)], [2, 2], [0.1, 0.2, 0.1, 0.2]),
    ],
)
def test_masks_are_paired_with_images(
    node: Any, masks: list[torch.Tensor], sizes: list[int], expected: list[float]
) -> None:
    from image_refinery.nodes.host.pairing import masks_for

    batches = [torch.zeros(size, 8, 6, 3) for size in sizes]
    paired = masks_for(masks, batches)
    assert paired is not None
    rows = []
    for mask, size in zip(paired, sizes, strict=True):
        assert mask.shape in ((1, 8, 6), (size, 8, 6))
        rows += mask.expand(size, 8, 6)
    assert [float(row.mean()) for row in rows] == pytest.approx(expected)


def test_masks_that_fit_no_way_are_refused(node: Any) -> None:
    from image_refinery.nodes.host.pairing import masks_for
    from image_refinery.refine import SettingsError

    batches = [torch.zeros(3, 8, 6, 3)]
    for masks in ([mask_of(0.1, 0.2)], [mask_of(0.1), mask_of(0.2)], [mask_of(*[0.1] * 4)]):
        with pytest.raises(SettingsError, match="masks are connected, but there are 3 images"):
            masks_for(masks, batches)


@pytest.mark.parametrize(
    ("picture", "mask", "words"),
    [
        (image(64, 0), torch.ones(1, 8, 8), "The image is empty"),
        (image(), torch.ones(1, 0, 8), "The mask is 8 x 0 px, but the image is 64 x 64 px"),
    ],
)
def test_an_empty_picture_or_mask_is_one_sentence(
    node: Any, picture: torch.Tensor, mask: torch.Tensor, words: str
) -> None:
    from image_refinery.refine import ImageError

    with pytest.raises(ImageError, match=words):
        execute(node, picture, mask=mask)
    output = execute(node, picture, mask=mask, on_error="return original image")
    assert output.result[0][0] is picture and words in output.ui["text"][0]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(1, 0, 8), "The mask is 8 x 0 px, but the image is 64 x 64 px: scale the mask"),
        (torch.full((1, 64, 64), 3.0), "A mask must be from 0"),
        (torch.ones(2, 64, 64), "2 masks are connected, but there are 1 images"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_before_the_checkpoint_loads(
    node: Any, monkeypatch: pytest.MonkeyPatch, mask: torch.Tensor, words: str
) -> None:
    from image_refinery.nodes.host import kept
    from image_refinery.refine import RefineError

    loads: list[object] = []
    monkeypatch.setattr(kept, "loaded_refiner", lambda *names: loads.append(names))
    with pytest.raises(RefineError, match=words):
        execute(node, image(), mask=mask)
    assert loads == []


def test_alpha_is_kept(node: Any) -> None:
    picture = image(channels=4)
    (refined,), _ = execute(node, picture).result
    assert torch.equal(refined[..., 3], picture[..., 3])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"prompt": ["a", "b"]}, "2 prompts are connected, but there are 3 images"),
        ({"mask": [torch.zeros(1, 8, 8)] * 2}, "2 masks are connected, but there are 3 images"),
        ({"strength": [0.1, 0.2]}, "strength got a list of different values"),
        ({"strength": 1.5}, "strength must be a number from 0 to 1"),
        ({"num_inference_steps": 2}, "leave no step to run"),
        ({"checkpoint": "gone.safetensors"}, 'no checkpoint "gone.safetensors"'),
    ],
)
def test_what_cannot_be_done_is_one_sentence(node: Any, inputs: dict[str, Any], words: str) -> None:
    from image_refinery.nodes.host import BadInput
    from image_refinery.refine import RefineError

    with pytest.raises((RefineError, BadInput), match=rf"{words}.*\(R\d{{3}}\)$"):
        execute(node, image(batch=3), **inputs)
    picture = image(batch=3)
    before = node.fingerprint_inputs()
    output = execute(node, picture, on_error="return original image", **inputs)
    assert output.result[0][0] is picture
    assert words in output.ui["text"][0]
    assert node.fingerprint_inputs() != before, "a run that met an error is not cached"


def test_memory_that_runs_out_in_every_mode_is_one_sentence(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management
    from image_refinery.refine import DeviceMemoryError

    execute(node, image(), unload_after=False)  # so that there is a checkpoint to break
    unet = next(
        one.model.model.component
        for one in management.current_loaded_models
        if type(one.model.model).__name__ == "RefinerUnet"
    )

    def run_out(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    broken = unet.conv_out.register_forward_pre_hook(run_out)
    with pytest.raises(DeviceMemoryError, match="even in the smallest mode that is allowed"):
        execute(node, image(), unload_after=False)
    picture = image()
    output = execute(node, picture, on_error="return original image", unload_after=False)
    assert output.result[0][0] is picture and "Memory ran out" in output.ui["text"][0]
    broken.remove()
    assert not torch.equal(execute(node, picture).result[0][0], picture)


def test_the_hub_s_license_gate_is_one_sentence(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
    from image_refinery.nodes.host.checkpoints import DOWNLOAD
    from image_refinery.refine import HubError

    def refuse(repo_id: str, *, local_files_only: bool = False, **_: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        request = httpx.Request("GET", "http://127.0.0.1/")
        raise GatedRepoError("gated", response=httpx.Response(403, request=request))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(HubError, match="accept its license"):
        execute(node, image(), checkpoint=DOWNLOAD)


def test_passing_on_costs_only_the_image_that_is_bad(node: Any) -> None:
    bad = image()
    bad[0, 0, 0, 0] = float("nan")
    good = image()
    output = execute(node, bad, good, on_error="return original image", unload_after=False)
    assert output.result[0][0] is bad
    assert not torch.equal(output.result[0][1], good)
    (text,) = output.ui["text"]
    assert text.startswith("Error: image 1: ") and "NaN" in text
    (alone,), _ = execute(node, good, seed=1).result
    assert torch.allclose(output.result[0][1], alone, atol=1e-5), "the seed is the place's own"


def test_a_good_run_keeps_the_fingerprint(node: Any) -> None:
    before = node.fingerprint_inputs()
    execute(node, image())
    assert node.fingerprint_inputs() == before


def test_one_refiner_is_kept_until_another_is_asked_for(node: Any, checkpoints: Path) -> None:
    from image_refinery.nodes.host import kept

    execute(node, image())
    first = kept._kept
    execute(node, image())
    assert kept._kept is first
    execute(node, image(), memory_mode="gpu")
    assert kept._kept is not first


def test_free_memory_forgets_the_refiner(node: Any) -> None:
    import comfy.model_management as management
    from image_refinery.nodes.free_memory import FreeMemory
    from image_refinery.nodes.host import kept

    execute(node, image(), unload_after=False)
    FreeMemory.execute(None, comfyui_models=True, cuda_cache=False, ollama_models=False)
    assert management.current_loaded_models == []
    assert kept._kept is None


@pytest.mark.parametrize(("unload_after", "left"), [(True, 0), (False, 3)])
def test_unload_after_frees_the_device(node: Any, unload_after: bool, left: int) -> None:
    import comfy.model_management as management

    execute(node, image(), unload_after=unload_after)
    assert len(management.current_loaded_models) == left


@pytest.mark.parametrize(("unload_after", "times"), [(True, 1), (False, 0)])
def test_unloading_after_a_run_on_a_cpu_returns_freed_memory_to_the_system(
    node: Any, monkeypatch: pytest.MonkeyPatch, unload_after: bool, times: int
) -> None:
    from image_refinery.refine import residency

    execute(node, image(), unload_after=unload_after)  # the checkpoint is loaded
    trims: list[None] = []
    monkeypatch.setattr(residency, "_trim_heap", lambda: trims.append(None))
    execute(node, image(), unload_after=unload_after)
    assert len(trims) == times


def test_progress_and_previews_reach_the_page(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils
    from server import PromptServer

    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "4"}))
    seen: list[tuple[int, int, Any, str]] = []
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: seen.append((value, total, preview, node_id))
    )
    PromptServer.instance.sent_texts.clear()
    try:
        refined, _ = execute(
            node, image(batch=2), num_inference_steps=10, on_error="return original image"
        )
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert [(value, total) for value, total, *_ in seen] == [
        *((0, 6), (1, 6), (2, 6), (3, 6), (3, 6), (4, 6), (5, 6), (6, 6), (6, 6)),
    ]
    *previews, last = [preview for *_, preview, _ in seen if preview is not None]
    assert len(previews) == 6
    assert all(kind == "JPEG" and picture.size == (8, 8) for kind, picture, _ in previews)
    shown = torch.from_numpy(np.asarray(last[1]).copy())
    # As `convert.pixels` rounds: torch's own round takes halves to even numbers.
    assert torch.equal(shown, (refined[-1][-1] * 255 + 0.5).to(torch.uint8)), "the result itself"
    texts = [text for id, text in PromptServer.instance.sent_texts if id == "4"]
    # A load that takes less than a tenth of a second is not told.
    assert texts[0] in ("loading the checkpoint", "image 1 of 2, encoding the prompt")
    assert "image 2 of 2, step 2 of 3 (10 x 0.3)" in texts
    assert texts[-1].startswith("refined 2 images in ")


@pytest.mark.parametrize("on_error", ["stop the workflow", "return original image"])
def test_an_empty_batch_is_an_empty_batch(node: Any, on_error: str) -> None:
    result, _ = execute(node, image(batch=0), on_error=on_error)
    assert [tuple(batch.shape) for batch in result] == [(0, 64, 64, 3)]


def test_a_picture_that_cannot_be_shown_is_passed_on_all_the_same(node: Any) -> None:
    odd = image(channels=2)
    result, _ = execute(node, image(), odd, on_error="return original image")
    assert torch.equal(result[1], odd)


def press_cancel(after: Callable[[], bool]) -> list[float]:
    """Press cancel as soon as `after` is true; gives when."""
    import comfy.model_management as management

    pressed: list[float] = []

    def press() -> None:
        while not after():
            time.sleep(0.01)
        pressed.append(time.monotonic())
        management.interrupt_current_processing()

    threading.Thread(target=press, daemon=True).start()
    return pressed


def test_cancel_in_the_middle_of_the_steps(node: Any) -> None:
    import comfy.model_management as management
    import comfy.utils

    steps: list[int] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, *_, node_id=None: steps.append(value))
    try:
        pressed = press_cancel(lambda: len(steps) > 2)
        with pytest.raises(management.InterruptProcessingException):
            execute(node, image(128, 128), num_inference_steps=1000, strength=1.0)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert time.monotonic() - pressed[0] < 5, "a layer and the unload; all steps take far longer"
    assert not management.processing_interrupted()
    assert management.current_loaded_models == []
    execute(node, image())


def test_cancel_while_the_checkpoint_is_loading(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management
    from image_refinery.refine import ImageRefiner

    started, release, ended = (threading.Event() for _ in range(3))
    load = ImageRefiner.load

    def slowly(self: ImageRefiner) -> None:
        started.set()
        release.wait(30)
        load(self)
        ended.set()

    monkeypatch.setattr(ImageRefiner, "load", slowly)
    press_cancel(started.is_set)
    with pytest.raises(management.InterruptProcessingException):
        execute(node, image())
    assert not ended.is_set(), "the node did not wait for it"
    release.set()
    assert ended.wait(60), "what was begun ends behind the node"
    execute(node, image())


def test_weights_in_a_prompt_are_told_on_the_node(
    node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import PromptServer

    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": "41"}))
    for prompt, told in (("a (cat:1.3)", True), ("a cat, 16:9", False)):
        PromptServer.instance.sent_texts.clear()
        execute(node, image(batch=2), prompt=prompt, num_inference_steps=4)
        last = [text for id, text in PromptServer.instance.sent_texts if id == "41"][-1]
        assert last.startswith("refined 2 images in ")
        assert last.count("Weights such as (word:1.3)") == told
