"""The staged run gives the numbers of diffusers' single call."""

from collections.abc import Callable

import pytest
import torch
from image_refinery.refine import ImageRefiner, RefineSettings
from image_refinery.refine.geometry import Size
from image_refinery.refine.pixels import read_image, to_planes
from image_refinery.refine.stages import Stages
from PIL import Image

Draw = Callable[[int, tuple[int, int]], Image.Image]
OneCall = Callable[..., torch.Tensor]


def as_tensor(image: Image.Image) -> torch.Tensor:
    return to_planes(read_image(image).rows[0]).rgb.movedim(1, -1)


@pytest.mark.usefixtures("quarter_megapixel")
def test_about_the_working_size_nothing_differs(
    trained_refiner: ImageRefiner, trained_call: OneCall, draw: Draw
) -> None:
    image = draw(0, (512, 384))
    ours = trained_refiner.refine(as_tensor(image), 0.3, 7.5, 4, seed=5, keep_colors=False)
    theirs = trained_call(image, seed=5, num_inference_steps=4)
    assert ours.shape == theirs.shape == (1, 384, 512, 3)
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 3.0, "prompt": "a cup", "negative_prompt": "blurry"},
        {"strength": 1.0, "num_inference_steps": 3},
        {"strength": 0.29, "num_inference_steps": 100, "guidance_scale": 1.0},
        {"aesthetic_score": 9.0, "negative_aesthetic_score": 0.0},
    ],
)
def test_every_setting_means_what_it_means_to_diffusers(
    refiner: ImageRefiner, one_call: OneCall, draw: Draw, arguments: dict
) -> None:
    image = draw(1, (128, 192))
    ours = refiner.refine(
        as_tensor(image), seed=3, working_size="keep size", keep_colors=False, **arguments
    )
    theirs = one_call(image, seed=3, **arguments)
    assert (ours - theirs).abs().max() <= 1e-5


def test_row_i_of_a_batch_is_the_single_run_with_seed_plus_i(
    refiner: ImageRefiner, draw: Draw
) -> None:
    images = [draw(i, (128, 128)) for i in range(3)]
    settings = {"working_size": "keep size", "num_inference_steps": 10}
    singles = [
        refiner.refine(as_tensor(image), seed=7 + i, **settings) for i, image in enumerate(images)
    ]
    batch = refiner.refine(torch.cat([as_tensor(image) for image in images]), seed=7, **settings)
    assert torch.equal(batch, torch.cat(singles))
    listed = refiner.refine_batch(
        [as_tensor(image) for image in images], RefineSettings(seed=7, **settings)
    )
    assert torch.equal(torch.cat(listed), batch)
    assert not torch.equal(singles[0], refiner.refine(as_tensor(images[0]), seed=8, **settings))


def test_guidance_end_halves_the_rest_of_the_work(refiner: ImageRefiner, draw: Draw) -> None:
    image = draw(2, (128, 128))
    refiner.load()
    unet = refiner.components.unet
    sizes: list[int] = []
    handle = unet.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    try:
        for end in (1.0, 0.5, 0.0):
            refiner.refine(image, guidance_end=end, working_size="keep size")
    finally:
        handle.remove()
    assert sizes == [2] * 6 + [2] * 3 + [1] * 3 + [1] * 6


def test_a_long_prompt_is_read_to_its_end(refiner: ImageRefiner, draw: Draw) -> None:
    image = as_tensor(draw(3, (128, 128)))
    settings = {"working_size": "keep size", "num_inference_steps": 4, "keep_colors": False}
    start = "a cup on a table " * 10
    one, other = (refiner.refine(image, prompt=start + end, **settings) for end in ("red", "blue"))
    assert not torch.equal(one, other)
    # Negative prompts of another length run too.
    refiner.refine(image, prompt="a cup", negative_prompt=start, **settings)


@pytest.mark.parametrize(
    ("prompt", "negative", "repeats"),
    [
        ("a " * 80, "blurry", (1, 2)),
        ("red", "b " * 80, (2, 1)),
        ("a " * 80, "b " * 160, (3, 2)),
    ],
)
def test_a_shorter_prompt_is_repeated_and_counts_as_if_it_were_not(
    refiner: ImageRefiner, prompt: str, negative: str, repeats: tuple[int, int]
) -> None:
    refiner.load()
    stages = Stages(refiner.components, refiner.residency)
    both = stages.encode_prompts(prompt, negative)
    alone = [stages.encode_prompts(text, None).prompt_embeds for text in (prompt, negative)]
    got = [both.prompt_embeds, both.negative_prompt_embeds]
    for mine, plain, times in zip(got, alone, repeats, strict=True):
        assert mine.shape[1] == plain.shape[1] * times
        assert torch.allclose(mine, plain.repeat(1, times, 1), atol=1e-5), "no empty row"

    def noise_of(embeds: torch.Tensor) -> torch.Tensor:
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        more = {
            "text_embeds": both.pooled_prompt_embeds,
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 6]]),
        }
        unet = stages.components.unet
        return unet(latents, 200, encoder_hidden_states=embeds, added_cond_kwargs=more).sample

    with torch.no_grad(), stages.residency.use("unet", 1):
        for mine, plain in zip(got, alone, strict=True):
            assert torch.allclose(noise_of(mine), noise_of(plain), atol=1e-5)


def test_a_prompt_of_one_row_is_what_diffusers_makes_of_it(refiner: ImageRefiner) -> None:
    from image_refinery.refine.prompts import split_tokens

    refiner.load()
    tokenizer = refiner.components.tokenizer_2
    for text in ("", "a cup", "x" * 75):
        expected = tokenizer(text, padding="max_length", max_length=77, truncation=True)
        assert split_tokens(tokenizer, text) == [expected.input_ids]
    rows = split_tokens(tokenizer, "x" * 76)
    assert [len(row) for row in rows] == [77, 77]
    assert rows[1][2] == tokenizer.eos_token_id


def test_one_seed_is_one_noise_whatever_the_unet_computes_in(refiner: ImageRefiner) -> None:
    refiner.load()
    stages = refiner._stages
    assert stages is not None
    before, drawn = dict(stages.components.dtypes), []
    for dtype in (torch.float32, torch.float16):
        stages.components.dtypes["unet"] = dtype
        drawn.append(stages.noise(Size(64, 128), 7))
    stages.components.dtypes.update(before)
    for one, other in zip(*(noise.fields for noise in drawn), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
