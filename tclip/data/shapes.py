"""`shapes`: rendered scenes with compositional captions, as a TFDS builder without TensorFlow.

A scene holds one to three objects of one kind (a colour and a shape), or one object of each of two
kinds in a spatial relation. Every scene is a function of (split, index) alone. The kinds in
`UNSEEN` occur in the split `test_unseen` and nowhere else.
"""

import colorsys
import dataclasses
import functools
import io
import itertools
import math

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

# Prepared copies are found by this version: raise it whenever a scene would come out differently.
VERSION = "1.0.0"

# Difficulty. Pixels are those of the final image, hue is a fraction of the colour circle, and
# brightness and noise are in grey levels (0..255).
IMAGE_SIZE = 48
SMALL_RADIUS = (4.5, 6.0)
LARGE_RADIUS = (8.5, 11.0)
ROTATION = 0.25  # radians, either way
HUE_SIGMA = 0.016
SATURATION_RANGE = (0.6, 1.0)
VALUE_RANGE = (0.65, 1.0)
BACKGROUND_SIGMA = 14.0
NOISE_SIGMA = 14.0
CLUTTER_STROKES = 5
OVERLAP = 0.2  # of the sum of two radii
BAR_PROBABILITY = 0.35
BAR_WIDTH = 4
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
# Zero-shot prompts; a scene of one kind can hold several objects, small or large.
TEMPLATES = tuple(
    template.format(size=size)
    for template in ("a {size} {{}}", "two {size} {{}}s", "three {size} {{}}s")
    for size in ("small", "large")
)

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


def example(split: str, index: int) -> dict[str, object]:
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
    return Scene(things, background, captions, label)


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draws a scene, with its clutter, bar and noise taken from `rng`, as an RGB image."""
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
    if rng.random() < BAR_PROBABILITY:
        at = float(rng.uniform(0, size))
        slant = float(rng.uniform(-size / 2, size / 2))
        upright, level = (at - slant, 0, at + slant, size), (0, at, size, at + slant)
        draw.line(upright if rng.random() < 0.5 else level, fill=(int(tone),) * 3, width=BAR_WIDTH)
    noisy = np.asarray(image) + rng.normal(0, NOISE_SIGMA, (size, size, 3))
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _choice(rng, options):
    return options[int(rng.integers(len(options)))]


def _phrase(count: int, size: str, kind: tuple[str, str]) -> str:
    colour, shape = kind
    return f"{NUMBERS[count - 1]} {size} {colour} {shape}{'s' if count > 1 else ''}"


def _place(rng, kinds, sizes, relation: str | None) -> tuple[Thing, ...]:
    """Finds places by trial that overlap little and stand in the relation (second as origin)."""
    ranges = {"small": SMALL_RADIUS, "large": LARGE_RADIUS}
    radii = np.array([rng.uniform(*ranges[size]) for size in sizes])
    angles = rng.uniform(-ROTATION, ROTATION, len(radii))
    for trial in range(1, 10_000):
        if trial % 100 == 0:
            radii *= 0.95  # too crowded for these radii
        centres = rng.uniform(radii[:, None], IMAGE_SIZE - radii[:, None], (len(radii), 2))
        if _apart(centres, radii) and (relation is None or _holds(relation, centres)):
            break
    return tuple(
        Thing(kind, float(x), float(y), float(radius), float(angle))
        for kind, (x, y), radius, angle in zip(kinds, centres, radii, angles, strict=True)
    )


def _apart(centres, radii) -> bool:
    things = zip(centres.tolist(), radii.tolist(), strict=True)
    return all(
        math.dist(p, q) >= (1 - OVERLAP) * (r + s)
        for (p, r), (q, s) in itertools.combinations(things, 2)
    )


def _holds(relation: str, centres) -> bool:
    dx, dy = centres[1] - centres[0]
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    if relation in ("right of", "below"):
        along = -along
    return along > abs(across) + 4


def _colour(rng, name: str) -> tuple[int, int, int]:
    hue = (HUES[name] + rng.normal(0, HUE_SIGMA)) % 1.0
    rgb = colorsys.hsv_to_rgb(hue, rng.uniform(*SATURATION_RANGE), rng.uniform(*VALUE_RANGE))
    return tuple(round(255 * channel) for channel in rgb)


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

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(name) for name in self.builder_config.splits}

    def _generate_examples(self, split: str):
        for index in range(self.builder_config.splits[split]):
            record = example(split, index)
            # A file object is stored as it is; an array would ask TensorFlow to encode it.
            yield index, record | {"image": io.BytesIO(record["image"])}
