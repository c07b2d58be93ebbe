"""The benchmark's photograph is what its script draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
spec = importlib.util.spec_from_file_location("make_photo", ROOT / "tools" / "make_photo.py")
assert spec is not None and spec.loader is not None
make_photo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_photo)


def test_the_committed_picture_is_the_seed_s() -> None:
    with Image.open(make_photo.OUTPUT) as file:
        committed = np.asarray(file.convert("RGB"), dtype=np.float64)
    drawn = np.asarray(make_photo.photo(), dtype=np.float64)
    assert committed.shape == (1024, 1024, 3)
    # JPEG took the sensor noise; everything else is the same.
    assert np.sqrt(np.mean((committed - drawn) ** 2)) < 6.0


def test_another_seed_draws_another_picture() -> None:
    one, same, other = (np.asarray(make_photo.photo(seed, 64)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.mean(one != other) > 0.5
