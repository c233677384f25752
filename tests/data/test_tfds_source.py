"""Any TFDS data set by name, here a toy one whose records are known."""

import io
import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tclip.data import SourceConfig, open_source, tfds_source
from tclip.processing import BadSample, decode_image


def png(index):
    out = io.BytesIO()
    Image.new("RGB", (10, 10), (index, 2 * index, 0)).save(out, format="PNG")
    return out.getvalue()


class ToyPhotos(tfds.core.GeneratorBasedBuilder):
    """Nested captions, a label, and an image that is not called "image"."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = tfds.features.Text()
        features = {
            "photo": {"pixels": tfds.features.Image(shape=(None, None, 3), encoding_format="png")},
            "captions": tfds.features.Sequence({"text": text, "id": np.int32}),
            "title": text,
            "label": tfds.features.ClassLabel(names=["tabby_cat", "dog"]),
            "number": np.int64,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "photo": {"pixels": io.BytesIO(png(i))},
                    "captions": [
                        {"text": f"caf\u00e9 {i}", "id": 0},
                        {"text": f"second {i}", "id": 1},
                    ],
                    "title": f"title {i}",
                    "label": i % 2,
                    "number": i,
                },
            )


class UnreachablePhotos(tfds.core.GeneratorBasedBuilder):
    """Its download fails."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({}))

    def _split_generators(self, dl_manager):
        raise ConnectionError("no route to host\nand more lines")

    def _generate_examples(self):
        yield from ()


@pytest.fixture(scope="module")
def toy_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("toy")


def toy(toy_dir, **options):
    options = {"image_key": "photo/pixels"} | options
    return open_source(SourceConfig("tfds:toy_photos", data_dir=str(toy_dir), **options))


def test_class_names_become_captions(toy_dir):
    source = toy(toy_dir, templates=("a photo of a {}.", "the {}"))
    assert len(source) == 6
    assert source.classnames == ("tabby cat", "dog")
    assert source.templates == ("a photo of a {}.", "the {}")
    sample = source[2]
    assert sample.captions == ("a photo of a tabby cat.", "the tabby cat")
    assert sample.label == 0
    assert sample.image == png(2)
    assert decode_image(sample.image).getpixel((0, 0)) == (2, 4, 0)


def test_captions_from_a_feature_plain_or_nested(toy_dir):
    source = toy(toy_dir, caption_key="captions/text", label_key="")
    assert source[3].captions == ("caf\u00e9 3", "second 3")
    assert (source.classnames, source.templates, source[3].label) == ((), (), -1)
    both = toy(toy_dir, caption_key="title")
    assert (both[3].captions, both[3].label) == (("title 3",), 1)


def test_slices_and_pickling(toy_dir):
    source = toy(toy_dir, split="train[2:4]")
    assert len(source) == 2
    assert source[0].image == png(2)
    assert pickle.loads(pickle.dumps(source))[1].image == png(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "no split 'test'; it has train"),
        ({"image_key": "image"}, "no feature 'image'; it has .*photo"),
        ({"image_key": "photo/raw"}, "no feature 'photo/raw'"),
        ({"caption_key": "captions/words"}, "no feature 'captions/words'"),
        ({"label_key": "number"}, "'number' .* not a ClassLabel"),
        ({"label_key": ""}, "caption_key or a label_key"),
    ],
)
def test_wrong_keys_are_refused(toy_dir, options, message):
    with pytest.raises(ValueError, match=message):
        toy(toy_dir, **options)


def test_a_feature_that_is_no_image_gives_bad_samples(toy_dir):
    with pytest.raises(BadSample, match="encoded image"):
        toy(toy_dir, image_key="number")[0]


def test_tfrecord_files_are_refused_with_the_remedy(tmp_path):
    toy(tmp_path)
    path = tmp_path / "toy_photos/1.0.0/dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r"stored as tfrecord(.|\n)*--file_format=array_record"):
        toy(tmp_path)


def test_absent_data_sets_name_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'nonesuch' is neither known(.|\n)*tfds build"):
        open_source(SourceConfig("tfds:nonesuch", data_dir=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"no route to host\);(.|\n)*tfds build"):
        open_source(SourceConfig("tfds:unreachable_photos", data_dir=str(tmp_path)))


def test_a_process_that_waited_for_another_finds_its_work(tmp_path, monkeypatch):
    def wait(builder, root):
        assert not builder.info.splits
        ToyPhotos(data_dir=root, file_format="array_record").download_and_prepare()

    monkeypatch.setattr(tfds_source, "_prepare", wait)
    assert len(toy(tmp_path)) == 6


@pytest.mark.parametrize("name", ["", "shapes2", "tfds:", "wds:", "coco"])
def test_unknown_kinds_of_source_are_refused(name):
    with pytest.raises(ValueError, match="unknown data source"):
        open_source(SourceConfig(name))


def test_templates_need_a_place_for_the_name():
    with pytest.raises(ValueError, match=r"has no \{\}"):
        SourceConfig("shapes", templates=("a photo",))


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TCLIP_DATA_DIR", str(tmp_path))
    source = open_source(SourceConfig("tfds:toy_photos", image_key="photo/pixels"))
    assert source.folder.startswith(str(tmp_path))
