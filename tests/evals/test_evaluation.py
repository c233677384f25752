"""Zero-shot and retrieval of real and of made-up models, against NumPy over all pairs."""

import dataclasses

import numpy as np
import pytest

from tclip.data import Sample
from tclip.evals import (
    ImageEmbeddings,
    class_embeddings,
    embed_images,
    evaluate,
    retrieval,
    zeroshot_classification,
)
from tests.helpers import tiny


@dataclasses.dataclass(frozen=True)
class TableModel:
    """Knows the embedding of every text it is asked for."""

    table: dict[str, tuple[float, ...]]

    def encode_text(self, texts):
        return np.array([self.table[text] for text in texts], np.float32)


def images_of(embeddings, labels=None):
    embeddings = np.array(embeddings, np.float32)
    count = len(embeddings)
    labels = np.full(count, -1) if labels is None else np.array(labels)
    return ImageEmbeddings(embeddings, labels, np.arange(count), 0)


def captioned(*captions):
    return tiny.ListSource(tuple(Sample(str(i), b"", c) for i, c in enumerate(captions)))


def test_the_prompt_ensemble_is_the_renormalised_mean_of_unit_embeddings():
    names, templates = ("cat", "dog"), ("a {}", "the {}", "{} and {}")
    model = tiny.float_model()
    classes = class_embeddings(model, names, templates)
    for name, got in zip(names, classes, strict=True):
        units = [
            model.encode_text([text])[0]
            for text in (f"a {name}", f"the {name}", f"{name} and {name}")
        ]
        mean = np.mean(units, axis=0, dtype=np.float64)
        np.testing.assert_allclose(got, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(("names", "templates"), [((), ("{}",)), (("cat",), ())])
def test_without_names_or_templates_there_is_no_zero_shot(names, templates):
    with pytest.raises(ValueError, match="needs class names and templates"):
        class_embeddings(tiny.float_model(), names, templates)


def test_zero_shot_equals_brute_force():
    source = tiny.squares(20)
    model = tiny.fake_quant_model()
    images = embed_images(model, source, batch_size=8)
    classes = class_embeddings(model, source.classnames, source.templates)
    guesses = (images.embeddings_NxD.astype(np.float64) @ classes.T.astype(np.float64)).argmax(1)
    labels = np.array([sample.label for sample in source.samples])
    scores = zeroshot_classification(model, source, images)
    assert scores["top1"] == np.mean(guesses == labels)
    assert scores["top5"] == 1.0
    per_class = [np.mean(guesses[labels == c] == c) for c in range(3)]
    assert scores["mean_per_class"] == pytest.approx(np.mean(per_class))
    assert scores["n"] == 20


def test_images_without_a_label_take_no_part_and_foreign_labels_are_errors():
    source = tiny.ListSource((), ("cat", "dog"), ("{}",), name="pets")
    model = TableModel({"cat": (1, 0), "dog": (0, 1)})
    images = images_of([(1, 0), (0.6, 0.8), (1, 0)], labels=[0, 1, -1])
    assert zeroshot_classification(model, source, images)["n"] == 2
    assert zeroshot_classification(model, source, images)["top1"] == 1
    with pytest.raises(ValueError, match="pets: sample 1 has label 2, but there are 2 classes"):
        zeroshot_classification(model, source, images_of([(1, 0), (0, 1)], labels=[0, 2]))
    with pytest.raises(ValueError, match="no image has a label"):
        zeroshot_classification(model, source, images_of([(1, 0)]))


def test_a_caption_of_several_images_is_right_for_each_of_them():
    model = TableModel({"x": (1.0, 0.0), "y": (0.0, 1.0), "z": (0.7, 0.7)})
    source = captioned(("x",), ("x", "z"), ("y", "y"))
    images = images_of([(0.9, 0.1), (1.0, 0.0), (0.1, 0.9)])
    scores = retrieval(model, source, images)
    # x is the best text of images 0 and 1, y that of image 2.
    assert scores["i2t_r1"] == 1
    # x finds image 1, y image 2; z finds image 0 (0.70, 0.70, 0.70: ties count as wrong).
    assert scores["t2i_r1"] == pytest.approx(2 / 3)
    assert scores["t2i_r5"] == 1
    assert scores["n"] == 3


def test_retrieval_equals_brute_force_over_distinct_captions():
    rng = np.random.default_rng(1)
    texts = [f"text {i}" for i in range(15)]
    table = {text: tuple(rng.normal(size=6)) for text in texts}
    captions = [tuple(rng.choice(texts, rng.integers(1, 4))) for _ in range(40)]
    embeddings = rng.normal(size=(40, 6))
    scores = retrieval(TableModel(table), captioned(*captions), images_of(embeddings))
    used = sorted({text for group in captions for text in group})
    similarity = embeddings @ np.array([table[text] for text in used]).T
    right = np.array([[text in group for text in used] for group in captions])
    for k in (1, 5, 10):
        best_texts = np.argsort(-similarity, axis=1)[:, :k]
        best_images = np.argsort(-similarity, axis=0)[:k]
        i2t = np.mean([right[i, best_texts[i]].any() for i in range(40)])
        t2i = np.mean([right[best_images[:, j], j].any() for j in range(len(used))])
        assert scores[f"i2t_r{k}"] == pytest.approx(i2t)
        assert scores[f"t2i_r{k}"] == pytest.approx(t2i)


def test_images_without_captions_are_no_queries_but_can_be_found_by_mistake():
    model = TableModel({"x": (1.0, 0.0)})
    scores = retrieval(model, captioned(("x",), ()), images_of([(0.5, 0.5), (1.0, 0.0)]))
    assert (scores["n"], scores["i2t_r1"], scores["t2i_r1"]) == (1, 1, 0)
    with pytest.raises(ValueError, match="no image has a caption"):
        retrieval(model, captioned((), ()), images_of([(1, 0), (0, 1)]))


def test_unreadable_samples_are_counted_and_left_out():
    good = tiny.squares(7)
    broken = dataclasses.replace(good.samples[0], image=b"no image")
    samples = (*good.samples[:3], None, broken, *good.samples[3:])
    source = dataclasses.replace(good, samples=samples, left_out=3)
    model = tiny.float_model()
    with_bad, without = evaluate(model, source, batch_size=4), evaluate(model, good, batch_size=4)
    assert with_bad.pop("skipped") == 5
    assert without.pop("skipped") == 0
    assert with_bad == without
    assert without["zeroshot_n"] == without["retrieval_n"] == 7


def test_evaluation_says_what_the_source_allows():
    model, source = tiny.float_model(), tiny.squares(3)
    silent = tuple(dataclasses.replace(s, captions=()) for s in source.samples)
    no_text = dataclasses.replace(source, samples=silent)
    assert not any(name.startswith("retrieval") for name in evaluate(model, no_text))
    no_classes = dataclasses.replace(source, classnames=(), templates=())
    assert not any(name.startswith("zeroshot") for name in evaluate(model, no_classes))
    neither = dataclasses.replace(no_text, classnames=(), templates=())
    with pytest.raises(ValueError, match="neither class names nor captions"):
        evaluate(model, neither)
    with pytest.raises(ValueError, match="none of its 1 images can be read"):
        evaluate(model, tiny.ListSource((None,)))


def test_embeddings_that_are_not_finite_are_an_error_not_a_score():
    model = TableModel({"x": (np.nan, 0.0)})
    with pytest.raises(ValueError, match="embeddings of captions hold NaN"):
        retrieval(model, captioned(("x",)), images_of([(1, 0)]))
