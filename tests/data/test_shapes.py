"""shapes: captions, labels and splits are checked by reading the captions and the pixels."""

import io
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tclip.data import SourceConfig, open_source, shapes

KIND = re.compile(rf"({'|'.join(shapes.HUES)}) ({'|'.join(shapes.SHAPES)})s?\b")


def kinds_in(caption):
    return set(KIND.findall(caption))


@pytest.mark.parametrize("split", shapes.SPLITS)
def test_labels_and_pairs_agree_with_the_captions(tiny_shapes, split):
    source = tiny_shapes(split)
    assert len(source) == shapes.TINY_SPLITS[split]
    singles = 0
    for i in range(len(source)):
        sample = source[i]
        said = [kinds_in(caption) for caption in sample.captions]
        assert said[0]
        assert all(kinds == said[0] for kinds in said)
        assert (split == "test_unseen") == bool(said[0] & set(shapes.UNSEEN))
        if sample.label >= 0:
            assert said[0] == {tuple(source.classnames[sample.label].split())}
            singles += 1
        else:
            assert len(said[0]) == 2
    assert 0.4 < singles / len(source) < 0.8


def test_unseen_pairs_are_new_but_their_words_are_not():
    assert not set(shapes.SEEN) & set(shapes.UNSEEN)
    assert len(shapes.SEEN) + len(shapes.UNSEEN) == 64
    assert {colour for colour, _ in shapes.SEEN} == set(shapes.HUES)
    assert {shape for _, shape in shapes.SEEN} == set(shapes.SHAPES)


def test_every_class_template_occurs_as_a_training_caption(tiny_shapes):
    source = tiny_shapes("train")
    used = set()
    for sample in (source[i] for i in range(len(source))):
        if sample.label >= 0:
            name = source.classnames[sample.label]
            used |= {t for t in source.templates if t.replace("{}", name) in sample.captions}
    assert used == set(source.templates)


def test_a_scene_depends_on_split_and_index_only(tiny_shapes):
    source = tiny_shapes("test")
    for i in (200, 3, 77):  # in any order, and without TFDS
        record = shapes.example("test", i)
        assert source[i].image == record["image"]
        assert source[i].captions == record["captions"]
    assert shapes.example("test", 3)["image"] != shapes.example("validation", 3)["image"]


def hue_centroid(image, colour):
    """Centre of the vivid pixels of a colour (y, x), or None where there are few."""
    hsv = np.asarray(image.convert("HSV"), np.float32) / 255
    distance = np.abs((hsv[..., 0] - shapes.HUES[colour] + 0.5) % 1 - 0.5)
    mask = (distance < 0.06) & (hsv[..., 1] > 0.45) & (hsv[..., 2] > 0.4)
    return np.argwhere(mask).mean(axis=0) if mask.sum() > 12 else None


def test_relations_hold_in_the_pixels():
    checked = right = 0
    for i in range(400):
        record = shapes.example("train", i)
        match = re.match(
            r"a \w+ (\w+) \w+ (left of|right of|above|below) a \w+ (\w+)", record["captions"][0]
        )
        if not match:
            continue
        first, relation, second = match.groups()
        gap = abs(shapes.HUES[first] - shapes.HUES[second])
        if not 0.2 < gap < 0.8:
            continue
        image = Image.open(io.BytesIO(record["image"]))
        centres = hue_centroid(image, first), hue_centroid(image, second)
        if None in [None if c is None else 0 for c in centres]:
            continue
        (y0, x0), (y1, x1) = centres
        holds = {"left of": x0 < x1, "right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}
        checked += 1
        right += holds[relation]
    assert checked > 50
    assert right / checked > 0.9


def test_sizes_and_counts_show_in_the_drawn_area():
    rng = np.random.default_rng(0)
    areas = {}
    for _ in range(600):
        scene = shapes.sample_scene(rng, shapes.SEEN)
        if scene.label >= 0:
            number, size = scene.captions[0].split()[:2]
            assert len(scene.things) == 1 + shapes.NUMBERS.index(number)
            area = sum(thing.radius**2 for thing in scene.things) / len(scene.things)
            areas.setdefault(size, []).append(area)
    assert min(areas["large"]) > max(areas["small"])


def test_source_survives_pickling_with_its_files_open(tiny_shapes):
    source = tiny_shapes("train")
    expected = source[5]
    assert pickle.loads(pickle.dumps(source))[5] == expected


def test_unknown_split_and_size_are_refused(shapes_dir):
    with pytest.raises(ValueError, match="no split 'dev'"):
        open_source(SourceConfig("shapes", "dev", shapes_dir))
    with pytest.raises(ValueError, match="shapes:huge"):
        open_source(SourceConfig("shapes:huge", "test", shapes_dir))


PREPARE = """
import sys
from tclip.data import SourceConfig, open_source
source = open_source(SourceConfig("shapes:tiny", "test_unseen", sys.argv[1]))
print(len(source), hash(source[7].image) and source[7].captions[0], "tensorflow" in sys.modules)
"""


def test_two_processes_may_prepare_at_once_without_tensorflow(tmp_path):
    def start():
        command = [sys.executable, "-c", PREPARE, str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    processes = [start(), start()]
    results = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    last = {out.strip().splitlines()[-1] for out, _ in results}
    assert last == {f"128 {shapes.example('test_unseen', 7)['captions'][0]} False"}
    assert [p.name for p in (tmp_path / "shapes" / "tiny").iterdir()] == [shapes.VERSION]
