"""Pictures survive the way into ComfyUI's tensors and back, whatever their values and shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from image_refinery.refine import Batch, RefineSettings, SettingsError
from PIL import Image

SIDES = st.integers(1, 9)
PICTURES = st.tuples(SIDES, SIDES).flatmap(
    lambda size: arrays.arrays(np.uint8, (*size, 3))  # type: ignore[arg-type]
)
ODD_VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)


def convert() -> Any:
    from image_refinery.nodes.host import convert as module

    return module


@settings(deadline=None)
@given(PICTURES)
def test_a_picture_comes_back_bit_for_bit(picture: np.ndarray) -> None:
    tensor = convert().image_tensor(Image.fromarray(picture))
    assert tensor.shape == (1, *picture.shape)
    assert np.array_equal(convert().pixels(tensor)(), picture)


@settings(deadline=None)
@given(arrays.arrays(np.float32, (1, 3, 2, 3), elements=ODD_VALUES))
def test_odd_values_become_pixels_and_the_image_stays_as_it_was(values: np.ndarray) -> None:
    tensor = torch.from_numpy(values)
    before = values.copy()
    pixels = convert().pixels(tensor)()
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 2, 3)
    assert np.array_equal(values, before, equal_nan=True)
    for value, pixel in zip(values.ravel(), pixels.ravel(), strict=True):
        number = 0.0 if math.isnan(value) else min(max(float(value), 0.0), 1.0)
        assert abs(int(pixel) - number * 255) <= 0.5 + 1e-4


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), SIDES, SIDES), max_size=4))
def test_batches_come_apart_and_together_again(shapes: list[tuple[int, int, int]]) -> None:
    batches = [torch.rand(count, height, width, 3) for count, height, width in shapes]
    singles = convert().single_images(batches)
    assert all(single.shape[0] == 1 for single in singles)
    assert len(singles) == sum(batch.shape[0] for batch in batches)
    batch = Batch(batches, RefineSettings())
    assert all(torch.equal(i.pixels, one) for i, one in zip(batch.items, singles, strict=True))
    assert [a is b for a, b in zip(batch.join({}), batches, strict=True)] == [True] * len(batches)
    changed = {item.number: item.pixels + 0.0 for item in batch.items}
    for back, before in zip(batch.join(changed), batches, strict=True):
        assert back is not before and torch.equal(back, before)


VALUES = st.one_of(st.integers(-3, 200), st.floats(), st.text(max_size=3), st.booleans(), st.none())


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                *("strength", "guidance_scale", "num_inference_steps", "prompt", "seed"),
                *("aesthetic_score", "guidance_end", "keep_colours"),
            ]
        ),
        VALUES,
    )
)
def test_settings_of_the_refiner_are_right_or_named(given: dict[str, Any]) -> None:
    try:
        made = RefineSettings(**given)
    except SettingsError as error:
        named = str(error).replace("keep_colors", "keep_colours")
        assert any(name in named for name in (*given, "strength"))
        assert "\n" not in str(error)
        return
    assert 0 <= made.strength <= 1 and math.isfinite(made.guidance_scale)
    assert isinstance(made.prompt, str) and made.seed >= 0
    assert made.strength == 0 or made.steps >= 1
