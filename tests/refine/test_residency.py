"""Who holds the weights: modes give one picture, unloading frees, out of memory has a way out."""

import gc
import platform
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_refinery.refine import (
    Components,
    DeviceMemoryError,
    ImageRefiner,
    LocalResidency,
    NotFiniteError,
)
from image_refinery.refine import residency as residency_module
from image_refinery.refine.components import has_fused_attention
from image_refinery.refine.loading import shipped_config
from image_refinery.refine.residency import choose_mode, is_out_of_memory
from image_refinery.refine.stages import _scores_bytes
from PIL import Image

pytestmark = pytest.mark.usefixtures("quick_loads")
Draw = Callable[[int, tuple[int, int]], Image.Image]
SMALL = {"num_inference_steps": 7, "working_size": "keep size"}
GIB = 2**30
REFINER = {"unet": int(4.21 * GIB), "text_encoder_2": int(1.29 * GIB), "vae": int(0.16 * GIB)}


@pytest.mark.parametrize(
    ("free_gib", "mode"),
    [(24, "gpu"), (10, "gpu"), (7.5, "offload"), (6, "low_vram"), (4, "low_vram")],
)
def test_auto_takes_the_fastest_mode_that_fits(free_gib: float, mode: str) -> None:
    assert choose_mode(int(free_gib * GIB), REFINER, working_bytes=int(1.5 * GIB)) == mode


@pytest.mark.parametrize("mode", ["gpu", "offload", "low_vram", "auto"])
def test_every_memory_mode_gives_the_same_picture(
    open_refiner: Any,
    refiner: ImageRefiner,
    tiny_file: Path,
    draw: Draw,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A part of the tiny UNet stays, the rest is streamed, as with the real one.
    monkeypatch.setattr(residency_module, "LOW_VRAM_BYTES", 400_000)
    image = draw(0, (128, 128))
    other = open_refiner("cpu", model=tiny_file, memory_mode=mode)
    assert other.refine(image, **SMALL).tobytes() == refiner.refine(image, **SMALL).tobytes()
    held = other.residency.held_bytes()
    assert held > 2_000_000 if mode in ("gpu", "auto") else held == 0


def test_low_vram_holds_no_more_than_its_share(
    open_refiner: Any, tiny_file: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "LOW_VRAM_BYTES", 400_000)
    held: list[int] = []

    def note(progress: object) -> None:
        if progress.stage == "refine" and progress.step:
            held.append(refiner.residency.held_bytes())

    refiner = open_refiner("cpu", model=tiny_file, memory_mode="low_vram")
    refiner.refine(draw(0, (64, 64)), on_progress=note, **SMALL)
    assert held
    assert 200_000 < max(held) <= 400_000


def test_unload_frees_the_copies_and_refining_goes_on(
    open_refiner: Any, tiny_file: Path, draw: Draw
) -> None:
    refiner = open_refiner("cpu", model=tiny_file)
    assert refiner.unload() == 0
    image = draw(0, (64, 64))
    first = refiner.refine(image, **SMALL)
    weight = refiner.components.unet.conv_in.weight
    copies = weakref.ref(weight.data.untyped_storage())
    freed = refiner.unload()
    gc.collect()
    # The UNet, the VAE and the text encoder as fp32.
    assert 2_000_000 < freed < 3_000_000
    assert copies() is None
    assert weight.dtype == torch.float16
    assert refiner.unload() == 0
    assert refiner.refine(image, **SMALL).tobytes() == first.tobytes()


def test_encoded_prompts_survive_unload_but_not_close(
    open_refiner: Any, tiny_file: Path, draw: Draw
) -> None:
    refiner = open_refiner("cpu", model=tiny_file)
    image = draw(0, (64, 64))

    def encoders_calls() -> int:
        calls: list[int] = []
        refiner.load()
        encoder = refiner.components.text_encoder_2
        hook = encoder.register_forward_hook(lambda *_: calls.append(1))
        refiner.refine(image, prompt="a cup", **SMALL)
        hook.remove()
        return len(calls)

    assert encoders_calls() == 2, "the prompt and the negative prompt"
    refiner.unload()
    assert encoders_calls() == 0
    refiner.close()
    assert encoders_calls() == 2


def test_leaving_the_context_forgets_the_checkpoint(
    open_refiner: Any, tiny_file: Path, draw: Draw
) -> None:
    with open_refiner("cpu", model=tiny_file) as refiner:
        refiner.refine(draw(0, (64, 64)), **SMALL)
        unet = weakref.ref(refiner.components.unet)
    gc.collect()
    assert unet() is None


def test_weights_move_under_inference_mode_too(tiny_file: Path, draw: Draw) -> None:
    refiner = ImageRefiner("cpu", model=tiny_file)
    image = draw(0, (64, 64))
    with torch.inference_mode():
        first = refiner.refine(image, **SMALL)
        refiner.unload()
        second = refiner.refine(image, **SMALL)
    refiner.unload()
    third = refiner.refine(image, **SMALL)
    assert first.tobytes() == second.tobytes() == third.tobytes()


def test_another_owner_of_the_weights_is_asked_for_each_part(tiny_file: Path, draw: Draw) -> None:
    """A host with its own memory manager brings a Residency; the code path is the same."""
    asked: list[tuple[str, int]] = []

    class Host(LocalResidency):
        def use(self, part: str, working_bytes: int):
            asked.append((part, working_bytes))
            return super().use(part, working_bytes)

    refiner = ImageRefiner("cpu", model=tiny_file, residency=Host)
    refiner.refine(draw(0, (64, 64)), **SMALL)
    refiner.refine(draw(0, (64, 64)), **SMALL)
    # The second run knows the prompt already.
    assert [part for part, _ in asked] == [
        "text_encoder_2",
        "vae",
        "unet",
        "vae",
        "vae",
        "unet",
        "vae",
    ]
    assert all(size > 0 for _, size in asked)


def test_attention_that_is_not_fused_asks_for_room_for_its_scores(
    tiny_file: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Host(LocalResidency):
        def use(self, component: str, working_bytes: int):
            asked.extend([working_bytes] if component == "unet" else [])
            return super().use(component, working_bytes)

    refiner = ImageRefiner("cpu", model=tiny_file, residency=Host)
    refiner.refine(draw(0, (128, 128)), **SMALL)
    monkeypatch.setattr("image_refinery.refine.stages.has_fused_attention", lambda *_: False)
    refiner.refine(draw(0, (128, 128)), **SMALL)
    fused, unfused = asked
    assert unfused - fused == 2 * 1 * 64**2 * 8, "of its one head, for 64 tokens, with guidance"


def test_the_true_refiner_without_fused_attention_needs_gigabytes() -> None:
    config = SimpleNamespace(**shipped_config("refiner")["unet/config.json"])
    assert _scores_bytes(config, 1024 * 1024) == 2 * 12 * 4096**2 * 8  # 3.2 GB


def test_which_devices_have_fused_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.float16
    found = {kind: has_fused_attention(torch.device(kind), half) for kind in ("cpu", "xpu", "mps")}
    assert found == {"cpu": True, "xpu": True, "mps": False}
    assert has_fused_attention(torch.device("cuda"), half)
    # As on ROCm: torch asks the build and the card. There is no such card here.
    monkeypatch.setattr(torch.version, "hip", "6.4")
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, dtype, device: empty(*size, dtype=dtype))
    assert has_fused_attention(torch.device("cuda"), half) is False


def test_the_owner_of_the_weights_is_made_outside_inference_mode(tiny_file: Path) -> None:
    modes: list[bool] = []

    def make(components: Components, device: torch.device) -> LocalResidency:
        modes.append(torch.is_inference_mode_enabled())
        assert not any(p.is_inference() for p in components.unet.parameters())
        return LocalResidency(components, device)

    with torch.inference_mode():
        ImageRefiner("cpu", model=tiny_file, residency=make).load()
    assert modes == [False]


class Shortage:
    """Makes a module raise as CUDA does when memory runs out, while `is_short` says so."""

    def __init__(self, module: torch.nn.Module, is_short: Callable[[], bool]) -> None:
        self.calls = 0
        self._is_short = is_short
        self._handle = module.register_forward_pre_hook(self._check)

    def _check(self, *_: object) -> None:
        if self._is_short():
            self.calls += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")


def test_out_of_memory_in_the_unet_steps_down_and_goes_on(
    open_refiner: Any,
    refiner: ImageRefiner,
    tiny_file: Path,
    draw: Draw,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = torch.stack([torch.full((64, 64, 3), shade) for shade in (0.2, 0.6, 0.9)])
    short = open_refiner("cpu", model=tiny_file)
    short.load()
    shortage = Shortage(short.components.unet.mid_block, lambda: short.residency.mode != "low_vram")
    out = short.refine(images, **SMALL)
    assert shortage.calls == 2
    assert torch.equal(out, refiner.refine(images, **SMALL))
    assert "continues in memory mode offload" in caplog.text
    assert "continues in memory mode low_vram" in caplog.text


def test_out_of_memory_in_the_vae_goes_on_in_its_tiles(
    open_refiner: Any,
    refiner: ImageRefiner,
    tiny_file: Path,
    draw: Draw,
    caplog: pytest.LogCaptureFixture,
) -> None:
    image = torch.from_numpy(np.array(draw(0, (640, 576)), np.float32) / 255)
    short = open_refiner("cpu", model=tiny_file)
    short.load()
    vae = short.components.vae
    Shortage(vae.decoder.mid_block, lambda: not vae.use_tiling)
    one_step = {"num_inference_steps": 4, "working_size": "keep size", "keep_colors": False}
    out = short.refine(image, **one_step)
    assert "the VAE continues in tiles of 512 px" in caplog.text
    assert (out - refiner.refine(image, **one_step)).abs().mean() < 0.05


def test_where_there_is_no_room_the_vae_works_in_tiles_from_the_start(
    open_refiner: Any, tiny_file: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "LOW_VRAM_BYTES", 512 * 512 * 3072)
    refiner = open_refiner("cpu", model=tiny_file, memory_mode="low_vram")
    refiner.load()
    vae = refiner.components.vae
    seen: list[bool] = []
    vae.decoder.register_forward_pre_hook(lambda *_: seen.append(vae.use_tiling))
    refiner.refine(draw(0, (512, 512)), **SMALL)
    assert seen == [False]
    refiner.refine(draw(0, (576, 512)), **SMALL)
    assert len(seen) > 2
    assert all(seen[1:])


@pytest.mark.parametrize("mode", ["auto", "gpu"])
def test_out_of_memory_after_every_fallback_is_one_sentence(
    open_refiner: Any, tiny_file: Path, draw: Draw, mode: str
) -> None:
    refiner = open_refiner("cpu", model=tiny_file, memory_mode=mode)
    refiner.load()
    Shortage(refiner.components.unet.mid_block, lambda: True)
    with pytest.raises(
        DeviceMemoryError, match=r"Memory ran out on cpu while running the refiner's unet"
    ):
        refiner.refine(draw(0, (64, 64)), **SMALL)
    assert refiner.residency.held_bytes() == 0


@pytest.mark.parametrize(("part", "who"), [("unet", "The UNet"), ("vae", "The VAE")])
def test_nan_is_an_error_not_a_black_picture(
    open_refiner: Any, tiny_file: Path, draw: Draw, part: str, who: str
) -> None:
    refiner = open_refiner("cpu", model=tiny_file)
    refiner.load()
    module = getattr(refiner.components, part)
    layer = module.conv_out if part == "unet" else module.decoder.conv_out
    layer.register_forward_hook(lambda _, __, out: out * float("nan"))
    with pytest.raises(NotFiniteError, match=f"^{who} of .* produced NaN") as raised:
        refiner.refine(draw(0, (64, 64)), **SMALL)
    ends = "in float32, which would be a black image: download the checkpoint again."
    assert str(raised.value).endswith(ends), "full precision already"


@pytest.mark.parametrize(
    ("told", "words"),
    [({}, "try use_fp16=False, or"), ({"vae": "use fp32"}, "use fp32, or")],
)
def test_nan_in_half_precision_says_how_to_get_full_precision(
    open_refiner: Any, tiny_file: Path, draw: Draw, told: dict[str, str], words: str
) -> None:
    refiner = open_refiner("cpu", model=tiny_file)
    refiner.load()
    parts = refiner.components
    parts.dtypes["vae"], parts.fp32_advice = torch.bfloat16, told
    parts.vae.decoder.conv_out.register_forward_hook(lambda _, __, out: out * float("nan"))
    with pytest.raises(NotFiniteError, match=f"in bfloat16, .*black image: {words}"):
        refiner.refine(draw(0, (64, 64)), **SMALL)


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_freed_memory_goes_back_to_the_system() -> None:
    import psutil

    blocks = [torch.ones(25_000) for _ in range(3_000)]  # 300 MB, too small to be mapped each
    last = blocks.pop()  # holds the end of the heap, which free() alone would give back
    used = psutil.Process().memory_info().rss
    blocks.clear()
    residency_module.free_cache(torch.device("cpu"))
    assert used - psutil.Process().memory_info().rss > 250_000_000
    del last


def test_where_the_heap_cannot_be_trimmed_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def open_library(name: object) -> object:
        opened.append(name)
        return object()  # as musl: no malloc_trim

    monkeypatch.setattr(residency_module.ctypes, "CDLL", open_library)
    monkeypatch.setattr(residency_module.sys, "platform", "linux")
    residency_module.free_cache(torch.device("cpu"))
    assert opened == [None]
    monkeypatch.setattr(residency_module.sys, "platform", "darwin")
    residency_module.free_cache(torch.device("cpu"))
    assert opened == [None]


def test_memory_stays_flat_over_many_runs(tiny_file: Path, draw: Draw) -> None:
    import psutil

    refiner = ImageRefiner("cpu", model=tiny_file)
    image = draw(0, (64, 64))
    used: list[int] = []
    for run in range(25):
        refiner.refine(image, prompt=f"run {run}", num_inference_steps=4, working_size="keep size")
        if run % 5 == 4:
            refiner.unload()
            used.append(psutil.Process().memory_info().rss)
    # The first five runs fill PyTorch's and the prompts' caches.
    assert used[-1] - used[0] < 8_000_000, used
