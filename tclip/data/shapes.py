"""`shapes`: rendered scenes with compositional captions, as a TFDS builder without TensorFlow.

A scene holds one to three objects of one kind (a colour and a shape), or one object of each of two
kinds in a spatial relation; they stand in different cells of a grid of three by three. Every scene
is a function of (split, index) alone. The kinds in `UNSEEN` occur in the split `test_unseen` and
nowhere else.
"""

import colorsys
import dataclasses
import functools
import io
import itertools
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

# Prepared copies are found by this version: raise it whenever a scene would come out differently.
VERSION = "1.1.0"

# Difficulty. Pixels are those of the final image, hue is a fraction of the colour circle, and
# brightness and noise are in grey levels (0..255).
IMAGE_SIZE = 48
CELL = 16
JITTER = 1.5  # of an object about the centre of its cell, along each axis
SMALL_RADIUS = (4.5, 5.5)
LARGE_RADIUS = (7.0, 8.0)
ROTATION = 0.15  # radians, either way
HUE_SIGMA = 0.010
SATURATION_RANGE = (0.75, 1.0)
VALUE_RANGE = (0.8, 1.0)
BACKGROUND_SIGMA = 14.0
NOISE_SIGMA = 8.0
CLUTTER_STROKES = 2
RELATION_PROBABILITY = 0.4

HUES = {
    "red": 0.0,
    "orange": 0.075,
    "yellow": 0.15,
    "green": 0.34,
    "cyan": 0.49,
    "blue": 0.62,
    "purple": 0.76,
    "pink": 0.89,
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "moon")
BACKGROUNDS = {"dark": 45.0, "grey": 120.0, "light": 215.0}
NUMBERS = ("a", "two", "three")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FRAMES = (
    "a picture of {}",
    "an image with {}",
    "a drawing that shows {}",
    "{} in a picture",
    "there we see {}",
)
# Zero-shot prompts: the captions that name a kind and neither its size nor its number.
TEMPLATES = tuple(frame.format(phrase) for frame in ("{}", *FRAMES) for phrase in ("a {}", "{}s"))

KINDS = tuple((colour, shape) for colour in HUES for shape in SHAPES)
# One kind of every colour and of every shape, so that each word is known from other pairs.
UNSEEN = tuple(zip(HUES, SHAPES[3:] + SHAPES[:3], strict=True))
SEEN = tuple(kind for kind in KINDS if kind not in UNSEEN)
SPLITS = {"train": 20_000, "validation": 2_000, "test": 4_000, "test_unseen": 2_000}
TINY_SPLITS = {"train": 512, "validation": 128, "test": 256, "test_unseen": 128}


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object of a scene: kind, centre and radius in pixels, angle in radians."""

    kind: tuple[str, str]
    x: float
    y: float
    radius: float
    angle: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """What to draw and what to say about it; `label` indexes KINDS, -1 for a relation."""

    things: tuple[Thing, ...]
    background: str
    captions: tuple[str, ...]
    label: int


def example(split: str, index: int) -> dict[str, Any]:
    """Returns PNG bytes ("image"), "captions" and "label" of one scene."""
    rng = np.random.default_rng((list(SPLITS).index(split), index))
    scene = sample_scene(rng, UNSEEN if split == "test_unseen" else SEEN)
    png = io.BytesIO()
    # Noise leaves little to compress, and stored pixels are read twice as fast.
    render(scene, rng).save(png, format="PNG", compress_level=0)
    return {"image": png.getvalue(), "captions": scene.captions, "label": scene.label}


def sample_scene(rng: np.random.Generator, kinds: tuple[tuple[str, str], ...]) -> Scene:
    """Draws a scene whose objects are of the given kinds."""
    background = _choice(rng, list(BACKGROUNDS))
    frame = _choice(rng, FRAMES)
    if rng.random() < RELATION_PROBABILITY:
        pair = [kinds[i] for i in rng.choice(len(kinds), 2, replace=False)]
        sizes = [_choice(rng, ("small", "large")) for _ in pair]
        relation = _choice(rng, list(INVERSE))
        things = _place(rng, pair, sizes, relation)
        first, second = (_phrase(1, size, kind) for size, kind in zip(sizes, pair, strict=True))
        said = f"{first} {relation} {second}"
        retold = f"{second} {INVERSE[relation]} {first}"
        label = -1
    else:
        kind = _choice(rng, kinds)
        size = _choice(rng, ("small", "large"))
        count = int(rng.integers(1, 4))
        things = _place(rng, [kind] * count, [size] * count, None)
        said = retold = _phrase(count, size, kind)
        label = KINDS.index(kind)
    captions = (said, frame.format(retold), f"{said} on a {background} background")
    if label >= 0:
        templates = [t for t in TEMPLATES if ("{}s" in t) == (count > 1)]
        captions = (*captions, _choice(rng, templates).format(" ".join(kind)))
    return Scene(things, background, captions, label)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draws a scene, with its clutter and noise taken from `rng`, as an RGB image."""
    size = IMAGE_SIZE
    tone = BACKGROUNDS[scene.background]
    coarse = np.clip(tone + rng.normal(0, BACKGROUND_SIGMA, (4, 4, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(CLUTTER_STROKES):
        x0, y0, x1, y1 = rng.uniform(0, size, 4)
        colour = tuple(int(v) for v in np.clip(tone + rng.normal(0, 50, 3), 0, 255))
        draw.line((x0, y0, (x0 + x1) / 2, (y0 + y1) / 2), fill=colour, width=1)
    for thing in scene.things:
        mask, corner = _mask(thing)
        image.paste(_colour(rng, thing.kind[0]), corner, mask)
    noisy = np.asarray(image) + rng.normal(0, NOISE_SIGMA, (size, size, 3))
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _choice(rng, options):
    return options[int(rng.integers(len(options)))]


def _phrase(count: int, size: str, kind: tuple[str, str]) -> str:
    colour, shape = kind
    return f"{NUMBERS[count - 1]} {size} {colour} {shape}{'s' if count > 1 else ''}"


def _place(rng, kinds, sizes, relation: str | None) -> tuple[Thing, ...]:
    """Puts every object into a cell of its own; the second is the origin of the relation."""
    cells = _choice(rng, _arrangements(len(kinds), relation))
    ranges = {"small": SMALL_RADIUS, "large": LARGE_RADIUS}
    things = []
    for kind, size, cell in zip(kinds, sizes, cells, strict=True):
        x, y = (CELL * (place + 0.5) + rng.uniform(-JITTER, JITTER) for place in cell)
        radius = rng.uniform(*ranges[size])
        things.append(Thing(kind, x, y, radius, rng.uniform(-ROTATION, ROTATION)))
    return tuple(things)


@functools.cache
def _arrangements(count: int, relation: str | None) -> list[tuple[tuple[int, int], ...]]:
    """The ways to give `count` objects different cells (column, row) in the relation."""
    cells = [(column, row) for column in range(3) for row in range(3)]
    ways = itertools.permutations(cells, count)
    return [way for way in ways if relation is None or _holds(relation, *way)]


def _holds(relation: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the relation is the clear one, farther along its axis than across."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    if relation in ("right of", "below"):
        along = -along
    return along > abs(across)


def _colour(rng, name: str) -> tuple[int, int, int]:
    hue = (HUES[name] + rng.normal(0, HUE_SIGMA)) % 1.0
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(*SATURATION_RANGE), rng.uniform(*VALUE_RANGE))
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


def _mask(thing: Thing) -> tuple[Image.Image, tuple[int, int]]:
    """Antialiased coverage of an object by four-fold supersampling, and its upper left corner."""
    factor, reach = 4, thing.radius * 1.2 + 1
    left, top = int(thing.x - reach), int(thing.y - reach)
    side = int(2 * reach) + 2
    mask = Image.new("L", (side * factor, side * factor))
    draw = ImageDraw.Draw(mask)
    cos, sin = np.cos(thing.angle), np.sin(thing.angle)
    centre = np.array([thing.x - left, thing.y - top])
    for points, fill in _outline(thing.kind[1]):
        turned = points @ np.array([[cos, sin], [-sin, cos]])
        pixels = factor * (centre + thing.radius * turned)
        draw.polygon([tuple(point) for point in pixels.tolist()], fill=fill)
    return mask.reduce(factor), (left, top)


@functools.cache
def _outline(shape: str) -> tuple[tuple[np.ndarray, int], ...]:
    """Polygons ([points, 2], y down, about unit radius) with fill 255, or 0 for a hole."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.sin(turn), -np.cos(turn)], axis=-1)
    if shape == "circle":
        return ((circle, 255),)
    if shape == "ring":
        return ((circle, 255), (0.55 * circle, 0))
    if shape == "moon":
        return ((1.1 * circle, 255), (0.85 * circle + np.array([0.5, -0.1]), 0))
    if shape == "heart":
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return ((np.stack([16 * np.sin(turn) ** 3, -y], axis=-1) / 15.5, 255),)
    if shape == "star":
        return ((1.2 * circle[::4] * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None], 255),)
    if shape == "triangle":
        return ((np.array([(0, -1.1), (1.05, 0.8), (-1.05, 0.8)]), 255),)
    if shape == "square":
        return ((np.array([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]), 255),)
    return ((np.array([(0, -1.2), (0.75, 0), (0, 1.2), (-0.75, 0)]), 255),)  # diamond


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """How many scenes each split has."""

    splits: dict[str, int]


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Rendered scenes of coloured shapes with captions of colour, size, count and relation."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (the name and type are TFDS's)
        ShapesConfig(name="full", description="28,000 scenes", splits=SPLITS),
        ShapesConfig(name="tiny", description="the first few of them", splits=TINY_SPLITS),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3)
        features = {
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=[" ".join(kind) for kind in KINDS]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered scenes of coloured shapes with compositional captions.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # record i is scene i
        )

    @property
    def _sizes(self) -> dict[str, int]:
        return cast(ShapesConfig, self.builder_config).splits

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(name) for name in self._sizes}

    def _generate_examples(self, split: str):
        for index in range(self._sizes[split]):
            record = example(split, index)
            # A file object is stored as it is; an array would ask TensorFlow to encode it.
            yield index, record | {"image": io.BytesIO(record["image"])}
