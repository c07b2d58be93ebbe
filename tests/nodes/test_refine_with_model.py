"""Refine with Model over the stub: inputs, texts, conditionings, errors, cancel.

What it makes of pixels is compared with core's own nodes in tests/comfyui.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

CORE = {"steps": 2, "cfg": 7.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.5}


class Clip:
    """Encodes a text as its letters; records the texts."""

    def __init__(self, *, weights: bool = True) -> None:
        self.weights = weights
        self.texts: list[str] = []

    def tokenize(self, text: str) -> dict[str, Any]:
        weight = 2.0 if self.weights and text == "(a:2)" else 1.0
        return {"l": [[(text, weight)]]}


class ClipTextEncode:
    def encode(self, clip: Clip, text: str) -> tuple[list[Any]]:
        clip.texts.append(text)
        words = torch.tensor([[float(ord(letter)) for letter in text or " "]])[None]
        return ([[words, {"pooled_output": words.mean(), "text": text}]],)


class Model:
    """Turns latents into themselves, a little brighter."""

    def __init__(self, kind: str = "SDXL") -> None:
        formats = importlib.import_module("comfy.latent_formats")
        self.format = getattr(formats, kind)()
        self.model = SimpleNamespace(process_latent_out=lambda latents: latents)
        self.model_options: dict[str, Any] = {}
        self.error: Exception | None = None
        self.nan = False

    def get_model_object(self, name: str) -> Any:
        return self.format

    def run(self, latents: torch.Tensor, positive: Any) -> torch.Tensor:
        if self.error:
            raise self.error
        return latents * float("nan") if self.nan else latents + 0.01


class Vae:
    """Latents are the means of cells, four times."""

    latent_dim = 2
    first_stage_model = object()

    def __init__(self, cell: int = 8, channels: int = 4) -> None:
        self.cell = cell
        self.channels = channels

    def spacial_compression_encode(self) -> int:
        return self.cell

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), self.cell)
        return cells.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        large = latents[:, :3].repeat_interleave(self.cell, -1).repeat_interleave(self.cell, -2)
        return large.movedim(1, -1)


@pytest.fixture
def node(comfy: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    from image_refinery.nodes.refine_with_model import RefineWithModel

    core = importlib.import_module("nodes")
    classes = {"CLIPTextEncode": ClipTextEncode}
    monkeypatch.setattr(core, "NODE_CLASS_MAPPINGS", classes, raising=False)
    importlib.import_module("comfy.sample").calls.clear()
    return RefineWithModel


def calls() -> list[dict[str, Any]]:
    return importlib.import_module("comfy.sample").calls


def execute(node: Any, *batches: torch.Tensor, **inputs: Any) -> Any:
    usual = {"model": Model(), "clip": Clip(), "vae": Vae(), "positive": "a", "negative": "b"}
    named = usual | CORE | {"tile_size": 256} | inputs
    lists = {key: value if isinstance(value, list) else [value] for key, value in named.items()}
    with torch.inference_mode():
        return node.execute(image=list(batches), **lists)


def image(height: int = 256, width: int = 256, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3)


def tile_prompts(size: tuple[int, int], *texts: str, **settings: Any) -> Any:
    from image_refinery.refine import RefineSettings, TilePrompts

    planned = TilePrompts.planned(size, RefineSettings(**({"tile_size": 256} | settings)))
    return planned.with_texts(iter(texts))


def test_the_inputs_are_in_their_order_and_all_explained(node: Any) -> None:
    inputs = node.define_schema().inputs
    assert [one.id for one in inputs] == [
        *("image", "model", "clip", "vae", "positive", "negative", "steps", "cfg"),
        *("sampler_name", "scheduler", "denoise", "seed", "mask", "tile_prompts"),
        *("upscale_model", "positive_conditioning", "negative_conditioning", "scale", "regions"),
        *("tile_size", "keep_colors", "enabled", "on_error"),
    ]
    assert next(one.id for one in inputs if one.optional) == "mask"
    fields = {one.id: one.as_dict() for one in inputs}
    assert fields["denoise"]["default"] == 0.3
    assert (fields["sampler_name"]["default"], fields["scheduler"]["default"]) == (
        "euler",
        "simple",
    )


def test_linked_inputs_are_asked_for_when_they_are_used(node: Any) -> None:
    linked = {"tile_prompts": (None,), "upscale_model": (None,), "positive_conditioning": (None,)}
    needed = ["model", "clip", "vae", "positive", "negative", "positive_conditioning"]
    ask = node.check_lazy_status
    assert ask(enabled=[False], **linked) == []
    assert ask(denoise=[0.0], scale=[1.0], **linked) == []
    assert ask(denoise=[0.0], scale=[2.0], **linked) == ["upscale_model"]
    assert ask(denoise=[0.3], scale=[1.0], **linked) == ["tile_prompts", *needed]


def test_all_steps_run_and_each_image_has_the_next_seed(node: Any) -> None:
    (both,), masks = execute(node, image(batch=2), seed=5, steps=4, denoise=0.1).result
    assert both.shape == (2, 256, 256, 3) and masks[0].shape == (2, 256, 256)
    assert [call["seed"] for call in calls()] == [5, 6]
    assert all(call["denoise"] == 0.1 for call in calls())


def test_each_tile_has_its_own_text_and_is_sampled_with_its_own_seed(node: Any) -> None:
    clip = Clip()
    texts = tile_prompts((384, 384), "one", "two (2)", "three", "four")
    execute(node, image(384, 384), clip=clip, tile_prompts=texts, positive="a {tile} b", seed=3)
    told = [call["positive"][0][1]["text"] for call in calls()]
    assert told == ["a one b", r"a two \(2\) b", "a three b", "a four b"]
    assert [call["seed"] for call in calls()] == [3, 4, 5, 6]
    assert clip.texts.count("b") == 1, "the negative prompt is encoded once"


def test_a_language_model_reads_parentheses_as_they_are(node: Any) -> None:
    clip = Clip(weights=False)
    execute(node, image(), clip=clip, tile_prompts=tile_prompts((256, 256), "a cat (asleep)"))
    assert "a, a cat (asleep)" in clip.texts


def test_tiles_are_those_of_the_texts_unless_a_size_is_given(node: Any) -> None:
    from image_refinery.refine import SettingsError

    texts = tile_prompts((384, 384), *"abcd")
    execute(node, image(384, 384), tile_prompts=texts, tile_size=0)
    assert len(calls()) == 4
    with pytest.raises(SettingsError, match="tile_size was 256, and is 512 here"):
        execute(node, image(384, 384), tile_prompts=texts, tile_size=512)


def test_sdxl_tiles_do_not_fit_larger_cells(node: Any) -> None:
    from image_refinery.nodes.host import BadInput

    texts = tile_prompts((800, 1024), "a", tile_size=0)
    with pytest.raises(BadInput, match="Set tile_size of Describe Tiles to 1024"):
        execute(node, image(800, 1024), vae=Vae(cell=16), tile_prompts=texts, tile_size=0)


@pytest.mark.parametrize(
    ("kind", "cell", "expected"), [("SD15", 8, 512), ("SDXL", 8, 0), ("SDXL", 16, 1024)]
)
def test_the_tile_size_suits_the_model(node: Any, kind: str, cell: int, expected: int) -> None:
    from image_refinery.nodes.host.core_model import tile_size_for

    assert tile_size_for(Model(kind), Vae(cell)) == expected


def test_texts_replace_the_words_of_a_conditioning_and_keep_the_rest(node: Any) -> None:
    given = [[torch.zeros(1, 1, 1), {"guidance": 3.5, "text": "old", "pooled_output": 0}]]
    execute(node, image(), positive_conditioning=[given])
    (call,) = calls()
    words, values = call["positive"][0]
    assert values["text"] == "a" and values["guidance"] == 3.5 and words.shape[-1] == 1
    execute(node, image(), positive="", positive_conditioning=[given])
    assert calls()[-1]["positive"] is not None
    assert calls()[-1]["positive"][0][1]["text"] == "old"


def test_a_run_with_the_same_sources_encodes_nothing_again(node: Any) -> None:
    clip = Clip()
    execute(node, image(), clip=clip)
    execute(node, image(), clip=clip, seed=9)
    assert clip.texts == ["a", "b"]
    execute(node, image(), clip=clip, positive="other")
    assert clip.texts == ["a", "b", "other", "b"]
    execute(node, image(), clip=Clip())
    assert len(clip.texts) == 4


@pytest.mark.parametrize(
    "key", ["area", "mask", "gligen", "concat_latent_image", "reference_latents"]
)
def test_what_belongs_to_the_whole_image_is_refused_for_tiles(node: Any, key: str) -> None:
    from image_refinery.nodes.host import BadInput

    given = [[torch.zeros(1, 1, 1), {key: torch.zeros(1)}]]
    execute(node, image(), positive_conditioning=[given])
    with pytest.raises(BadInput, match=r"positive_conditioning has .*not for its tiles"):
        execute(node, image(384, 384), positive_conditioning=[given])
    model = Model()
    patch = SimpleNamespace(image=torch.zeros(1, 8, 8, 3))
    model.model_options = {"transformer_options": {"patches": {"double_block": [patch]}}}
    execute(node, image(), model=model)
    with pytest.raises(BadInput, match="The model has a ControlNet patch"):
        execute(node, image(384, 384), model=model)


def control(hint: Any) -> Any:
    return SimpleNamespace(cond_hint_original=hint, extra_concat_orig=[], previous_controlnet=None)


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (None, "a ControlNet whose image cannot be cut"),
        (torch.zeros(3, 3, 128, 128), "a ControlNet with 3 images, but there are 1 to refine"),
        (torch.zeros(1, 3, 128, 64), "image of 64 x 128 px, but the image to refine is 384 x 384"),
    ],
)
def test_a_controlnet_that_fits_no_tile_is_refused(node: Any, hint: Any, told: str) -> None:
    from image_refinery.nodes.host import BadInput

    given = [[torch.zeros(1, 1, 1), {"control": control(hint)}]]
    with pytest.raises(BadInput, match=told):
        execute(node, image(384, 384), negative_conditioning=[given])


def broken(error: Exception | None = None, *, nan: bool = False) -> Model:
    model = Model()
    model.error, model.nan = error, nan
    return model


MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("inputs", "code", "told"),
    [
        (lambda: {"model": broken(MEMORY)}, "R406", "Use a smaller tile_size"),
        (lambda: {"model": broken(nan=True)}, "R407", "Start ComfyUI with --fp32-vae"),
        (lambda: {"vae": Vae(channels=16)}, "R403", "Connect the VAE that belongs to the model"),
        (lambda: {"vae": Vae(cell=6)}, "R403", "This VAE cannot encode images in tiles"),
        (lambda: {"vae": [None]}, "R403", "vae is empty"),
        (lambda: {"clip": [None]}, "R501", "clip is empty"),
        (lambda: {"model": [Model(), Model()]}, "R501", "model got a list of 2"),
        (lambda: {"tile_size": 100}, "R401", "tile_size is 100. Use 256 or more"),
        (
            lambda: {"model": broken(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))},
            "R403",
            "Connect the CLIP that belongs to the model",
        ),
    ],
)
def test_errors_are_sentences_and_the_image_is_not_lost(
    node: Any, inputs: Any, code: str, told: str
) -> None:
    given = image()
    with pytest.raises(Exception, match=told) as raised:
        execute(node, given, **inputs())
    assert str(raised.value).endswith(f"({code})")
    out = execute(node, given, on_error="return original image", **inputs())
    assert out.result[0][0] is given or torch.equal(out.result[0][0], given)
    assert told in out.ui["text"][0]


def test_other_errors_of_the_sampler_stay_as_they_are(node: Any) -> None:
    with pytest.raises(RuntimeError, match=r"^what nobody foresaw$"):
        execute(node, image(), model=broken(RuntimeError("what nobody foresaw")))


def test_one_bad_image_does_not_affect_the_others(node: Any) -> None:
    batch = image(batch=2)
    batch[0] = float("nan")
    out = execute(node, batch, on_error="return original image")
    (refined,) = out.result[0]
    assert torch.isnan(refined[0]).all() and not torch.equal(refined[1], batch[1])
    assert out.ui["text"] == [
        "Error: image 1: The image contains NaN or infinity, so it cannot be refined. (R402)"
    ]


def test_cancel_ends_the_run(node: Any) -> None:
    management = importlib.import_module("comfy.model_management")
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        execute(node, image())
    assert not calls() and not management.processing_interrupted()


def test_cancel_is_seen_at_each_step(node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    management = importlib.import_module("comfy.model_management")
    # What samples need not look by itself.
    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", lambda: None)
    steps: list[torch.Tensor] = []

    def clean(latents: torch.Tensor) -> torch.Tensor:
        steps.append(latents)
        if len(steps) == 3:
            management.interrupt_current_processing(True)
        return latents

    model = Model()
    model.model.process_latent_out = clean
    try:
        with pytest.raises(management.InterruptProcessingException):
            execute(node, image(), model=model, steps=50)
    finally:
        management.interrupt_current_processing(False)
    assert len(steps) == 3


def test_the_preview_shows_the_whole_region(node: Any) -> None:
    utils = importlib.import_module("comfy.utils")
    shown: list[Any] = []
    utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: shown.append((value, total, preview))
    )
    try:
        execute(node, image(384, 320), steps=3)
    finally:
        utils.set_progress_bar_global_hook(None)
    steps = [(value, total) for value, total, preview in shown if preview is not None][:-1]
    assert steps == [(value, 12) for value in range(1, 13)]
    assert {preview[1].size for _, _, preview in shown[:-1] if preview} == {(40, 48)}
