"""The metrics of published figures against clip_benchmark's own functions and scikit-learn."""

import numpy as np
import pytest

from tclip.data import Sample
from tclip.evals import ImageEmbeddings, class_embeddings, retrieval, zeroshot_classification
from tclip.evals.metrics import average_precision, label_ranks, recall_at, retrieval_ranks
from tclip.evals.retrieval import every_caption
from tests.helpers import tiny

NAMES = tuple(f"class {i}" for i in range(7))
TEMPLATES = ("a {}", "the {}", "no {}")
# scikit-learn warns of a class that is guessed and never occurs, which is meant to be.
UNSEEN = pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")


class TableModel:
    """Knows a unit embedding for every text."""

    def __init__(self, seed, texts):
        embeddings = np.random.default_rng(seed).normal(size=(len(texts), 12))
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.table = dict(zip(texts, embeddings.astype(np.float32), strict=True))

    def encode_text(self, texts):
        return np.array([self.table[text] for text in texts])


def image_embeddings(seed, count, labels=None):
    embeddings = np.random.default_rng(seed).normal(size=(count, 12))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = np.full(count, -1) if labels is None else labels
    return ImageEmbeddings(embeddings.astype(np.float32), labels, np.arange(count), 0)


def classification_task(seed, count=60):
    # Class 2 never occurs.
    labels = np.random.default_rng(seed).choice([0, 1, 3, 4, 5, 6], count)
    model = TableModel(seed, [t.format(n) for n in NAMES for t in TEMPLATES])
    source = tiny.ListSource((), NAMES, TEMPLATES)
    return model, source, image_embeddings(seed + 1, count, labels), labels


def retrieval_task(seed, count=40):
    rng = np.random.default_rng(seed)
    captions = [tuple(f"{i} {j}" for j in range(rng.integers(1, 5))) for i in range(count)]
    model = TableModel(seed, [text for group in captions for text in group])
    source = tiny.ListSource(tuple(Sample(str(i), b"", c) for i, c in enumerate(captions)))
    return model, source, image_embeddings(seed + 1, count), captions


class TorchModel:
    """The same embeddings for clip_benchmark: images and tokens are the embeddings themselves."""

    encode_image = encode_text = staticmethod(lambda tensor: tensor)


class Loader(list):
    """Batches, and the data set that they are of."""

    def __init__(self, batches, classes=()):
        super().__init__(batches)
        self.dataset = self
        self.classes = classes


@pytest.mark.parametrize("seed", range(3))
@UNSEEN
def test_classification_equals_clip_benchmark(seed, monkeypatch):
    reference = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_classification", reason="needs clip-benchmark"
    )
    torch = pytest.importorskip("torch")
    # Its accuracy has float() read an array of one number, which NumPy 2.4 refuses.
    monkeypatch.setattr(reference, "float", lambda x: np.asarray(x).item(), raising=False)
    model, source, images, labels = classification_task(seed)
    pixels, targets = torch.tensor(images.embeddings_NxD), torch.tensor(labels)
    batches = zip(pixels.split(16), targets.split(16), strict=True)
    expected = reference.evaluate(
        TorchModel,
        Loader(batches, NAMES),
        lambda texts: torch.tensor(model.encode_text(texts)),
        NAMES,
        [template.replace("{}", "{c}") for template in TEMPLATES],
        "cpu",
        amp=False,
    )
    scores = zeroshot_classification(model, source, images, ties="stable")
    ours = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
    assert {name: scores[own] for name, own in ours.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@UNSEEN
def test_classification_equals_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    model, source, images, labels = classification_task(seed)
    logits = images.embeddings_NxD @ class_embeddings(model, NAMES, TEMPLATES).T
    scores = zeroshot_classification(model, source, images, ties="stable")
    for k in (1, 5):
        expected = metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(len(NAMES)))
        assert scores[f"top{k}"] == pytest.approx(expected, abs=1e-6)
    expected = metrics.balanced_accuracy_score(labels, logits.argmax(axis=1))
    assert scores["mean_per_class"] == pytest.approx(expected, abs=1e-6)


def multilabel_task(seed):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 2, (50, 6))
    targets[:, 3], targets[:, 4] = 0, 1  # a class that is nowhere, and one that is everywhere
    return rng.normal(size=(50, 6)).astype(np.float32), targets


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_clip_benchmark(seed):
    reference = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_classification", reason="needs clip-benchmark"
    )
    torch = pytest.importorskip("torch")
    scores, targets = multilabel_task(seed)
    expected = reference.average_precision_per_class(torch.tensor(scores), torch.tensor(targets))
    np.testing.assert_allclose(average_precision(scores, targets), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("ignore:No positive class")
def test_average_precision_equals_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    scores, targets = multilabel_task(seed)
    expected = metrics.average_precision_score(targets, scores, average=None)
    np.testing.assert_allclose(average_precision(scores, targets), expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_retrieval_equals_clip_benchmark(seed):
    reference = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_retrieval", reason="needs clip-benchmark"
    )
    torch = pytest.importorskip("torch")
    model, source, images, captions = retrieval_task(seed)
    pixels = torch.tensor(images.embeddings_NxD).split(16)
    batches = [(part, captions[16 * i : 16 * i + len(part)]) for i, part in enumerate(pixels)]
    expected = reference.evaluate(
        TorchModel,
        Loader(batches),
        lambda texts: torch.tensor(model.encode_text(texts)),
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    scores = retrieval(model, source, images, every_caption, "stable")
    for k in (1, 5, 10):
        for own, name in (("t2i", "image"), ("i2t", "text")):
            published = expected[f"{name}_retrieval_recall@{k}"]
            assert scores[f"{own}_r{k}"] == pytest.approx(published, abs=1e-6)


def test_equal_captions_are_each_right_for_their_own_image():
    samples = (Sample("0", b"", ("x", "y", "x")), Sample("1", b"", ("x",)))
    images = ImageEmbeddings(np.eye(2, dtype=np.float32), np.full(2, -1), np.arange(2), 0)
    texts, of_image, images_of = every_caption(tiny.ListSource(samples), images)
    assert texts == ["x", "y", "x", "x"]
    assert [rows.tolist() for rows in of_image] == [[0, 1, 2], [3]]
    assert [rows.tolist() for rows in images_of] == [[0], [0], [0], [1]]


@pytest.mark.parametrize("seed", range(5))
def test_stable_ties_are_those_of_a_stable_sort(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (30, 8)).astype(np.float32)  # many ties
    labels = rng.integers(0, 8, 30)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = [row.tolist().index(label) for row, label in zip(order, labels, strict=True)]
    ranks = label_ranks(scores, labels, "stable")
    assert ranks.tolist() == expected
    assert recall_at(ranks, 1) == np.mean(scores.argmax(axis=1) == labels)
    positives = [rng.choice(8, rng.integers(1, 5), replace=False) for _ in range(30)]
    first = [
        next(place for place, item in enumerate(row) if item in right)
        for row, right in zip(order, positives, strict=True)
    ]
    # The scores are products with the basis, so that they are exact.
    ranks = retrieval_ranks(scores, np.eye(8, dtype=np.float32), positives, 7, "stable")
    assert ranks.tolist() == first
