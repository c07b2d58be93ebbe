"""ImageRefiner from outside: kinds, sizes, transparency, masks, tiles, colours."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from image_refinery.refine import ImageError, ImageRefiner, RefineSettings, SettingsError
from image_refinery.refine.prompts import weighted, weights_advice
from PIL import Image, ImageDraw

Draw = Callable[[int, tuple[int, int]], Image.Image]

# One step is enough where only sizes and places are looked at.
QUICK = {"num_inference_steps": 4}
SMALL = {"num_inference_steps": 4, "working_size": "keep size"}


def array_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255


@pytest.mark.parametrize("size", [(1, 1), (70, 65), (518, 518), (33, 2049)])
def test_every_size_comes_back_as_it_was(refiner: ImageRefiner, draw: Draw, size: tuple) -> None:
    image = draw(0, size)
    assert refiner.refine(image, **SMALL).size == size


@pytest.mark.usefixtures("quarter_megapixel")
@pytest.mark.parametrize("size", [(1, 1), (2049, 33)])
def test_an_enlarged_picture_comes_back_at_its_own_size(
    refiner: ImageRefiner, draw: Draw, size: tuple
) -> None:
    assert refiner.refine(draw(0, size), **QUICK).size == size


@pytest.mark.usefixtures("quarter_megapixel")
def test_a_picture_between_one_and_two_megapixels_comes_back(
    trained_refiner: ImageRefiner, draw: Draw
) -> None:
    assert trained_refiner.refine(draw(0, (752, 500)), **QUICK).size == (752, 500)


@pytest.mark.usefixtures("quarter_megapixel")
def test_the_working_size_can_be_had(refiner: ImageRefiner, draw: Draw) -> None:
    image = draw(0, (259, 259))
    image.putalpha(200)
    refined = refiner.refine(image, output_size="working", **QUICK)
    assert (refined.size, refined.mode) == ((512, 512), "RGBA")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_the_same_kind_comes_out(refiner: ImageRefiner, draw: Draw, mode: str) -> None:
    image = draw(1, (128, 64)).convert(mode)
    refined = refiner.refine(image, **SMALL)
    assert (type(refined), refined.mode, refined.size) == (Image.Image, mode, (128, 64))
    array = array_of(image.convert("RGB"))
    out = refiner.refine(array, **SMALL)
    assert (type(out), out.shape, out.dtype) == (np.ndarray, (64, 128, 3), np.float32)
    tensor = refiner.refine(torch.from_numpy(array)[None].double(), **SMALL)
    assert (tensor.shape, tensor.dtype) == ((1, 64, 128, 3), torch.float64)


def test_a_tensor_makes_no_detour_through_8_bits(refiner: ImageRefiner, draw: Draw) -> None:
    refined = refiner.refine(torch.from_numpy(array_of(draw(1, (64, 64)))), **SMALL)
    in_255ths = refined * 255
    assert (in_255ths - in_255ths.round()).abs().max() > 0.1


def test_the_input_is_never_changed(refiner: ImageRefiner, draw: Draw) -> None:
    tensor = torch.from_numpy(array_of(draw(1, (128, 64))))
    before = tensor.clone()
    refiner.refine(tensor, mask=torch.ones(64, 128), **SMALL)
    assert torch.equal(tensor, before)


def test_strength_zero_gives_the_very_same_object_and_loads_nothing(tmp_path) -> None:
    with ImageRefiner("cpu", model="nobody/nothing", local_files_only=True) as nothing:
        image = Image.new("RGB", (8, 8))
        assert nothing.refine(image, strength=0) is image


def test_alpha_comes_back_bit_for_bit_and_hidden_colours_stay(
    refiner: ImageRefiner, draw: Draw
) -> None:
    image = draw(2, (130, 70)).convert("RGBA")
    alpha = np.random.default_rng(3).integers(0, 256, (70, 130), np.uint8)
    alpha[:20] = 0
    alpha[50:] = 255
    image.putalpha(Image.fromarray(alpha))
    before, after = np.asarray(image), np.asarray(refiner.refine(image, **SMALL))
    assert (after[..., 3] == alpha).all()
    assert (after[:20] == before[:20]).all()
    assert (after[50:, :, :3] != before[50:, :, :3]).any()


def test_outside_the_mask_nothing_changes_and_inside_something_does(
    refiner: ImageRefiner, draw: Draw
) -> None:
    rng = np.random.default_rng(5)
    array = rng.random((200, 300, 4), np.float32)
    mask = np.zeros((200, 300), np.float32)
    mask[50:120, 80:160] = 1
    out = refiner.refine(array, mask=mask, **SMALL)
    assert (out[mask == 0] == array[mask == 0]).all()
    assert (out[..., 3] == array[..., 3]).all()
    assert np.abs(out - array)[70:100, 100:140, :3].mean() > 0.01
    picture = draw(3, (300, 200))
    marked = Image.new("L", (300, 200))
    ImageDraw.Draw(marked).ellipse((50, 50, 120, 120), fill=255)
    refined = refiner.refine(picture, mask=marked, **SMALL)
    same = (np.asarray(refined) == np.asarray(picture)).all(axis=-1)
    assert same[np.asarray(marked) == 0].all()
    assert not same[np.asarray(marked) > 0].all()


def test_an_empty_mask_changes_nothing(refiner: ImageRefiner, draw: Draw) -> None:
    image = draw(3, (100, 60))
    assert refiner.refine(image, mask=Image.new("L", (100, 60))).tobytes() == image.tobytes()


def test_a_mask_may_differ_from_row_to_row(refiner: ImageRefiner, draw: Draw) -> None:
    batch = torch.stack([torch.from_numpy(array_of(draw(i, (96, 64)))) for i in range(2)])
    masks = torch.zeros(2, 64, 96)
    masks[1, 10:40, 20:60] = 1
    out = refiner.refine(batch, mask=masks, **SMALL)
    assert torch.equal(out[0], batch[0])
    assert torch.equal(out[1][masks[1] == 0], batch[1][masks[1] == 0])
    assert not torch.equal(out[1], batch[1])


def test_left_stays_left_and_colours_stay_colours(refiner: ImageRefiner) -> None:
    image = Image.new("RGB", (192, 128), (210, 30, 35))
    image.paste((35, 70, 210), (96, 0, 192, 128))
    for settings in ({"keep_colors": False}, {"keep_colors": True}):
        out = np.asarray(refiner.refine(image, working_size="keep size", **settings), np.int32)
        left, right = out[:, :88].mean(axis=(0, 1)), out[:, 104:].mean(axis=(0, 1))
        assert left[0] > 150 > 100 > left[2]
        assert right[2] > 150 > 100 > right[0]


def test_keep_colors_keeps_the_mean_colour(refiner: ImageRefiner, draw: Draw) -> None:
    array = array_of(draw(4, (192, 192)))
    kept, free = (
        refiner.refine(array, working_size="keep size", keep_colors=keep) for keep in (True, False)
    )
    shift = [np.abs(out.mean(axis=(0, 1)) - array.mean(axis=(0, 1))).max() for out in (kept, free)]
    assert shift[0] < 0.004
    assert shift[0] < shift[1]


def test_a_list_may_mix_kinds_and_sizes(refiner: ImageRefiner, draw: Draw) -> None:
    images = [draw(0, (64, 64)), array_of(draw(1, (96, 64))), torch.zeros(2, 64, 64, 3)]
    out = refiner.refine_batch(images, RefineSettings(**SMALL), prompts=["a", "b", "a"])
    assert [type(image) for image in out] == [Image.Image, np.ndarray, torch.Tensor]
    assert out[1].shape == (64, 96, 3)
    assert out[2].shape == (2, 64, 64, 3)
    assert refiner.refine_batch([]) == []


def test_everything_is_checked_before_anything_is_loaded() -> None:
    refiner = ImageRefiner("cpu", model="nobody/nothing", local_files_only=True)
    good = Image.new("RGB", (8, 8))
    with pytest.raises(ImageError):
        refiner.refine_batch([good, "bad.png"])
    with pytest.raises(SettingsError, match="leave no step"):
        refiner.refine(good, strength=0.01)
    with pytest.raises(SettingsError, match="There are 2 images, but 1 masks"):
        refiner.refine_batch([good, good], masks=[None])
    with pytest.raises(SettingsError, match="A prompt must be a text"):
        refiner.refine_batch([good], prompts=[3])
    with pytest.raises(SettingsError, match="memory_mode must be one of"):
        ImageRefiner("cpu", memory_mode="tiny")


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return -10 * float(np.log10(np.square(one - other).mean()))


@pytest.mark.usefixtures("quarter_megapixel")
def test_refining_a_noisy_or_damaged_scene_brings_it_closer_to_the_clean_one(
    trained_refiner: ImageRefiner, draw: Draw
) -> None:
    gains: dict[str, list[float]] = {"noise": [], "jpeg": []}
    for index in range(2):
        clean = draw(index, (160, 160))
        for kind, damaged in (("noise", add_noise(clean, index)), ("jpeg", as_jpeg(clean))):
            out = trained_refiner.refine(damaged, working_size="auto", seed=index)
            before, after = (psnr(array_of(i), array_of(clean)) for i in (damaged, out))
            gains[kind].append(after - before)
    assert np.mean(gains["noise"]) > 1.0, gains
    assert np.mean(gains["jpeg"]) > 0.0, gains


def add_noise(image: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 25, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=8)
    return Image.open(file).convert("RGB")


def test_the_tiles_of_a_large_picture_show_no_seam(
    refiner: ImageRefiner, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measure: how much steeper the change is at a tile's edge than on both sides of it.

    The change is refined minus input; its steepness at a column is the mean absolute difference
    to the next column, along the whole column (rows likewise). At every edge of every tile it is
    compared with the median of the 32 columns around: a seam would stand out of them.
    """
    from image_refinery.refine import geometry

    # Tiles of half the true side, which overlap as far as the true ones do.
    monkeypatch.setattr(geometry, "MAX_TILE_SIDE_PX", 512)
    monkeypatch.setattr(geometry, "MAX_SINGLE_TILE_SIDE_PX", 512)
    array = array_of(draw(5, (960, 576)))  # the smallest with three tiles across and two down
    out = refiner.refine(array, keep_colors=False, **QUICK)
    change = (out - array).mean(axis=-1)
    boxes = geometry.tile_boxes(*geometry.padded_size(576, 960))
    for axis, length, count, edges in (
        (1, 960, 4, {box.left for box in boxes} | {box.right for box in boxes}),
        (0, 576, 2, {box.top for box in boxes} | {box.bottom for box in boxes}),
    ):
        steepness = np.abs(np.diff(change, axis=axis)).mean(axis=1 - axis)
        inner = sorted(edge - 1 for edge in edges if 16 < edge < length - 16)
        assert len(inner) == count
        ratios = [steepness[e] / np.median(steepness[e - 16 : e + 17]) for e in inner]
        assert max(ratios) < 1.5, (axis, ratios)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a (cat:1.3) on snow", True),
        ("(a cat, snow : .8)", True),
        ("((cat:2), snow:0.5)", True),
        (r"(cat \(asleep\):1.25)", True),
        ("(cat:-1)", True),
        ("", False),
        ("((cat))", False),
        (r"a cat \(asleep:1.3\)", False),
        ("(16:9), (at 10:30), ratio: 1.3", False),
        ("<lora:cat:1.3>", False),
    ],
)
def test_weights_are_found(prompt: str, told: bool) -> None:
    assert bool(weights_advice(["a dog", prompt])) is told


def test_weights_that_are_no_numbers_are_text() -> None:
    assert weighted("(a:nan) (b:inf) (16:9:x)") == [
        *(("a:nan", 1.1), (" ", 1.0), ("b:inf", 1.1), (" ", 1.0), ("16:9:x", 1.1)),
    ]


def test_weights_change_the_picture_only_where_they_are_read(
    refiner: ImageRefiner, draw: Draw
) -> None:
    image = array_of(draw(0, (64, 64)))
    quick = {**SMALL, "strength": 0.6}
    plain = refiner.refine(image, prompt="a red circle", **quick)
    weights = {**quick, "prompt_syntax": "ComfyUI weights"}
    for prompt in ("a red circle", "a (red:1.0) circle"):
        assert np.abs(refiner.refine(image, prompt=prompt, **weights) - plain).max() < 1e-4
    heavy = refiner.refine(image, prompt="a (red:1.5) circle", **weights)
    assert np.abs(heavy - plain).max() > 1e-3


def test_weights_are_logged_once(
    refiner: ImageRefiner, draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        refiner.refine(draw(0, (64, 64)), prompt="a cat", negative_prompt="(fog:1.3)", **SMALL)
    assert caplog.text.count("Weights such as (word:1.3)") == 1
    assert "fog" not in caplog.text
