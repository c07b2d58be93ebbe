"""Drawn scenes and the one English sentence that says what is in each.

A scene holds one to three shapes, each with a size, a color and one of nine places, on a plain
background. Everything follows from one integer, the seed: `draw_scene(seed)` always gives the
same image and the same `Scene`. Needs numpy and Pillow only.

Training takes seeds from 0 upwards (`TRAINING_SEEDS`), the accuracy that the README states was
measured on `HELD_OUT_SEEDS`; the two ranges share no seed.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

TRAINING_SEEDS = range(10_000_000)
HELD_OUT_SEEDS = range(10_000_000, 10_000_300)

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star")
COLORS: dict[str, RGB] = {
    "red": (215, 30, 35),
    "orange": (245, 130, 15),
    "yellow": (245, 220, 35),
    "green": (35, 155, 55),
    "cyan": (30, 205, 215),
    "blue": (35, 70, 210),
    "purple": (130, 45, 165),
    "pink": (250, 135, 190),
}
# Half the width of a shape as a share of the image's shorter side.
SIZES: dict[str, float] = {"small": 0.066, "medium": 0.100, "large": 0.148}
# In reading order: place i is column i % 3 of row i // 3.
PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
# No background comes near (122, 116, 104), the color with which llama.cpp pads to a square.
BACKGROUNDS: dict[str, RGB] = {
    "white": (246, 246, 246),
    "black": (16, 16, 16),
    "gray": (176, 178, 180),
    "beige": (238, 222, 190),
    "pale blue": (188, 212, 240),
}

SIDE_RANGE = (160, 640)
ASPECT_RANGE = (0.75, 4 / 3)
COLOR_JITTER = 12
SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """One shape, in the words of SIZES, COLORS, SHAPES and PLACES."""

    size: str
    color: str
    shape: str
    place: str


@dataclass(frozen=True)
class Scene:
    """One to three objects in reading order, and a word of BACKGROUNDS."""

    objects: tuple[SceneObject, ...]
    background: str


@dataclass(frozen=True)
class PlacedObject:
    """Where and how an object is painted; center and half_width in pixels, turn in radians."""

    object: SceneObject
    rgb: RGB
    center: tuple[float, float]
    half_width: float
    turn: float


@dataclass(frozen=True)
class Drawing:
    """A scene with everything settled that painting it needs; sizes in pixels."""

    scene: Scene
    width: int
    height: int
    background_rgb: RGB
    shading: tuple[float, float]
    placed: tuple[PlacedObject, ...]


@dataclass(frozen=True)
class ObjectScore:
    """What a sentence got right about one object of the true scene."""

    color_and_shape: bool
    place: bool


def draw_scene(
    seed: int,
    size: tuple[int, int] | None = None,
    objects: int | None = None,
    damaged: bool = True,
) -> tuple[Image.Image, Scene]:
    """Draw the scene that belongs to a seed.

    Args:
        seed: any integer from 0; equal arguments give equal pixels.
        size: width and height in pixels; by default the seed chooses (square or up to 4:3
            either way, shorter side 160 to 640).
        objects: how many shapes, 1 to 3; by default the seed chooses.
        damaged: False leaves out noise, blur and JPEG traces.

    Returns:
        An RGB image and the scene that it shows.

    Raises:
        ValueError: `objects` is not 1, 2 or 3.
    """
    drawing = compose(seed, size, objects)
    image = paint(drawing)
    if damaged:
        image = damage(image, np.random.default_rng((seed, 1)))
    return image, drawing.scene


def compose(seed: int, size: tuple[int, int] | None = None, objects: int | None = None) -> Drawing:
    """Return what a seed's scene holds and where each shape is, without painting it."""
    if objects is not None and objects not in (1, 2, 3):
        raise ValueError(f"A scene holds 1, 2 or 3 objects, not {objects}.")
    rng = np.random.default_rng((seed, 0))
    count = int(rng.integers(1, 4))
    width, height = _image_size(rng)
    if size is not None:
        width, height = size
    places = np.sort(rng.choice(len(PLACES), objects or count, replace=False))
    background = _pick(rng, BACKGROUNDS)
    placed = tuple(_place(rng, PLACES[place], width, height) for place in places)
    return Drawing(
        scene=Scene(tuple(p.object for p in placed), background),
        width=width,
        height=height,
        background_rgb=_jitter(rng, BACKGROUNDS[background], COLOR_JITTER // 2),
        shading=(float(rng.uniform(-8, 8)), float(rng.uniform(-8, 8))),
        placed=placed,
    )


def paint(drawing: Drawing) -> Image.Image:
    """Paint a drawing as an RGB image of its width and height, edges smoothed."""
    across = np.linspace(-1, 1, drawing.width)[None, :, None] * drawing.shading[0]
    down = np.linspace(-1, 1, drawing.height)[:, None, None] * drawing.shading[1]
    ground = np.asarray(drawing.background_rgb) + across + down
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    for placed in drawing.placed:
        _paint_object(image, placed)
    return image


def damage(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image with some of the damage that real ones have: blur, noise, JPEG traces."""
    if rng.random() < 0.3:
        radius = float(rng.uniform(0.2, 0.004 * min(image.size)))
        image = image.filter(ImageFilter.GaussianBlur(radius))
    if rng.random() < 0.5:
        pixels = np.asarray(image, dtype=np.float32)
        noise = rng.standard_normal(pixels.shape, dtype=np.float32) * rng.uniform(1, 8)
        image = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(60, 96)))
        image = Image.open(file).convert("RGB")
    return image


def mirror(scene: Scene) -> Scene:
    """Return the scene that the same image shows when left and right are exchanged."""
    rows = [divmod(PLACES.index(o.place), 3) for o in scene.objects]
    places = [3 * row + 2 - column for row, column in rows]
    turned = [
        replace(o, place=PLACES[place]) for o, place in zip(scene.objects, places, strict=True)
    ]
    return replace(scene, objects=tuple(sorted(turned, key=lambda o: PLACES.index(o.place))))


def describe(scene: Scene) -> str:
    """Return the one sentence that says what a scene shows; `parse` reads it back."""
    parts = [f"a {o.size} {o.color} {o.shape} {_place_words(o.place)}" for o in scene.objects]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"A{listed[1:]}, on a {scene.background} background."


def parse(sentence: str) -> Scene:
    """Read a sentence of exactly the form that `describe` writes.

    Raises:
        ValueError: the sentence has any other form, wording or order.
    """
    text = sentence.strip()
    background = re.search(r", on a ([a-z ]+) background\.$", text)
    objects = tuple(SceneObject(*found) for found in _OBJECT.findall(text))
    if background is not None and 1 <= len(objects) <= 3:
        scene = Scene(objects, background.group(1))
        if scene.background in BACKGROUNDS and describe(scene) == text:
            return scene
    raise ValueError(f"This is not a sentence about a scene: {sentence!r}.")


def score(predicted_sentence: str, scene: Scene) -> list[ObjectScore]:
    """Say for each true object, in reading order, what a sentence got right about it.

    An object's color and shape count as right when the sentence names that pair for an object
    that no other true object has claimed; its place when the claimed object is there. True
    objects claim exact matches (pair and place) first, then pairs. What is in the right place
    but with another color or shape counts for the place alone. A sentence that cannot be
    parsed gets nothing right.
    """
    try:
        left = list(parse(predicted_sentence).objects)
    except ValueError:
        left = []
    claims: dict[int, SceneObject] = {}
    for agrees in (_same_pair_and_place, _same_pair, _same_place):
        for index, true in enumerate(scene.objects):
            found = next((o for o in left if agrees(o, true)), None)
            if index not in claims and found is not None:
                claims[index] = found
                left.remove(found)
    return [
        ObjectScore(
            color_and_shape=index in claims and _same_pair(claims[index], true),
            place=index in claims and _same_place(claims[index], true),
        )
        for index, true in enumerate(scene.objects)
    ]


def _place_words(place: str) -> str:
    return f"{'in' if place == 'center' else 'at'} the {place}"


def _any_of(words: Iterable[str]) -> str:
    # The longest first: "top left" must not be read as "top".
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


_OBJECT = re.compile(
    f"[Aa] {_any_of(SIZES)} {_any_of(COLORS)} {_any_of(SHAPES)} (?:at|in) the {_any_of(PLACES)}"
)


def _same_pair(one: SceneObject, other: SceneObject) -> bool:
    return (one.color, one.shape) == (other.color, other.shape)


def _same_place(one: SceneObject, other: SceneObject) -> bool:
    return one.place == other.place


def _same_pair_and_place(one: SceneObject, other: SceneObject) -> bool:
    return _same_pair(one, other) and _same_place(one, other)


def _pick(rng: np.random.Generator, words: dict[str, RGB] | dict[str, float]) -> str:
    return list(words)[int(rng.integers(len(words)))]


def _jitter(rng: np.random.Generator, rgb: RGB, reach: int) -> RGB:
    red, green, blue = np.clip(np.asarray(rgb) + rng.integers(-reach, reach + 1, 3), 0, 255)
    return int(red), int(green), int(blue)


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    """Half the images are square, the others landscape or portrait, up to 4:3."""
    shorter = round(math.exp(rng.uniform(*np.log(SIDE_RANGE))))
    aspect = math.exp(rng.uniform(*np.log(ASPECT_RANGE)))
    if rng.random() < 0.5:
        return shorter, shorter
    return (round(shorter * aspect), shorter) if aspect > 1 else (shorter, round(shorter / aspect))


def _place(rng: np.random.Generator, place: str, width: int, height: int) -> PlacedObject:
    """Choose a shape for a place and put it anywhere inside that ninth of the image."""
    size, color = _pick(rng, SIZES), _pick(rng, COLORS)
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    shorter = min(width, height)
    half_width = shorter * SIZES[size] * rng.uniform(0.95, 1.05)
    row, column = divmod(PLACES.index(place), 3)
    # Shapes keep a margin to their cell's edge, so that no place is a matter of taste.
    slack = shorter * (1 / 6 - 0.005) - half_width
    center = (
        width * (column + 0.5) / 3 + rng.uniform(-slack, slack),
        height * (row + 0.5) / 3 + rng.uniform(-slack, slack),
    )
    return PlacedObject(
        object=SceneObject(size, color, shape, place),
        rgb=_jitter(rng, COLORS[color], COLOR_JITTER),
        center=center,
        half_width=float(half_width),
        turn=float(rng.uniform(-0.15, 0.15)),
    )


def _paint_object(image: Image.Image, placed: PlacedObject) -> None:
    reach = math.ceil(placed.half_width * 1.2) + 1
    left, top = round(placed.center[0]) - reach, round(placed.center[1]) - reach
    middle = ((placed.center[0] - left), (placed.center[1] - top))
    side = 2 * reach * SUPERSAMPLING
    big = Image.new("L", (side, side))
    points = [
        ((middle[0] + x) * SUPERSAMPLING, (middle[1] + y) * SUPERSAMPLING)
        for x, y in _outline(placed.object.shape, placed.half_width, placed.turn)
    ]
    ImageDraw.Draw(big).polygon(points, fill=255)
    mask = big.reduce(SUPERSAMPLING)
    image.paste(placed.rgb, (left, top, left + 2 * reach, top + 2 * reach), mask)


def _outline(shape: str, half_width: float, turn: float) -> list[tuple[float, float]]:
    """Return a shape's corners around (0, 0), y downwards, all shapes of like weight."""
    corners, radius, inner = {
        "circle": (48, 1.0, 1.0),
        "square": (4, 1.25, 1.25),
        "triangle": (3, 1.15, 1.15),
        "star": (10, 1.15, 0.46),
    }[shape]
    start = -math.pi / 2 + (math.pi / 4 if shape == "square" else 0) + turn
    return [
        (
            half_width * (inner if i % 2 else radius) * math.cos(start + 2 * math.pi * i / corners),
            half_width * (inner if i % 2 else radius) * math.sin(start + 2 * math.pi * i / corners),
        )
        for i in range(corners)
    ]
