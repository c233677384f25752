"""The suite over small folders: what is found, what is kept, what fails, and how it is shown."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from tclip.data import SourceConfig
from tclip.evals import evaluate, suite
from tclip.evals.clip_benchmark import DATASETS, GROUPS, find_datasets, measure, open_dataset
from tclip.evals.suite import Result, model_fingerprint, run_suite
from tclip.evals.summary import averages, result_line, write_summary
from tclip.folder_lock import FolderInUseError, folder_lock
from tests.helpers import benchmark_folders as folders
from tests.helpers import tiny

SHARED = Path(__file__).parents[3] / "shared/data"
MODELS = {"a": tiny.float_model, "b": tiny.fake_quant_model}


@pytest.fixture
def root(tmp_path):
    folders.write_dataset(tmp_path / "root/wds_vtab-cifar10", folders.labelled())
    folders.write_dataset(
        tmp_path / "root/wds_voc2007_multilabel", folders.multilabelled(), "multilabel"
    )
    folders.write_dataset(tmp_path / "root/flickr8k", folders.captioned(), "retrieval")
    return tmp_path / "root"


@pytest.fixture
def run(root, tmp_path):
    """Runs the suite, and tells which pairs were measured anew."""

    def run(models="ab"):
        config = SourceConfig(str(root), "test", str(tmp_path / "cache"))
        measured = []

        def spy(model, kind, source, *batching):
            measured.append(source.name)
            return measure(model, kind, source, *batching)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(suite, "measure", spy)
            out = tmp_path / "out"
            results = list(run_suite(models, lambda name: MODELS[name](), config, out, 8))
        return results, measured

    return run


def embeddings(model, samples, suffix):
    images = [sample[suffix] for sample in samples]
    # In batches of the size that the suite has compiled.
    parts = [model.encode_image((images[i : i + 8] * 8)[:8]) for i in range(0, len(images), 8)]
    return np.concatenate([part[: len(images) - 8 * i] for i, part in enumerate(parts)])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def classifier(model):
    prompts = [t.replace("{c}", name) for t in folders.TEMPLATES for name in folders.CLASSES]
    first, second = np.split(model.encode_text(prompts), 2)
    return unit((first + second) / 2)


def test_the_table_of_data_sets():
    assert len(DATASETS) == len(set(DATASETS)) == 41
    sizes = {group: len(names) for group, names in GROUPS.items()}
    types = {"natural": 22, "specialized": 7, "structured": 9, "retrieval": 3}
    assert sizes == types | {"imagenet_robustness": 5, "vtab": 19}
    assert {name for names in GROUPS.values() for name in names} == set(DATASETS)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("wds_vtab-cifar10", "vtab/cifar10"),
        ("wds_cifar10", "vtab/cifar10"),
        ("vtab-cifar10", "vtab/cifar10"),
        ("cifar10", "vtab/cifar10"),
        ("vtab/cifar10", "vtab/cifar10"),
        ("wds_imagenet-a", "imagenet-a"),
        ("imagenet1k", "imagenet1k"),
    ],
)
def test_folders_are_found_by_the_names_in_use(tmp_path, folder, name):
    (tmp_path / folder).mkdir(parents=True)
    assert find_datasets(tmp_path) == {name: tmp_path / folder}


def test_a_root_without_data_sets_says_what_was_expected(tmp_path):
    (tmp_path / "holidays").mkdir()
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="expected folders such as wds_imagenet1k"):
            find_datasets(root)


def test_metrics_of_every_kind_equal_their_definitions(run):
    results, _ = run("a")
    scores = {result.dataset: result for result in results}
    model = tiny.float_model()

    samples = folders.labelled()
    del samples[4]
    labels = np.array([int(sample["cls"]) for sample in samples])
    logits = embeddings(model, samples, "png") @ classifier(model).T
    right = logits.argmax(axis=1) == labels
    in_five = [label in row for label, row in zip(labels, np.argsort(-logits)[:, :5], strict=True)]
    recalls = [right[labels == label].mean() for label in np.unique(labels)]
    expected = {"acc1": right.mean(), "acc5": np.mean(in_five)}
    expected["mean_per_class_recall"] = np.mean(recalls)
    assert scores["vtab/cifar10"].metrics == pytest.approx(expected, abs=1e-6)
    assert (scores["vtab/cifar10"].n, scores["vtab/cifar10"].skipped) == (19, 1)

    samples = folders.multilabelled()
    targets = np.array([np.frombuffer(sample["npy"][-24:], np.float32) for sample in samples])
    logits = embeddings(model, samples, "webp") @ classifier(model).T
    precisions = []
    for column, shown in zip(logits.T, targets.T, strict=True):
        hits = [np.mean(shown[column >= score]) for score in column[shown == 1]]
        precisions.append(np.mean(hits) if hits else 0)
    expected = {"mean_average_precision": np.mean(precisions)}
    assert scores["voc2007_multilabel"].metrics == pytest.approx(expected, abs=1e-6)

    samples = folders.captioned()
    captions = [sample["txt"].decode().split("\n") for sample in samples]
    owner = np.array([i for i, group in enumerate(captions) for _ in group])
    texts = model.encode_text([text for group in captions for text in group])
    similarity = texts @ embeddings(model, samples, "jpg").T
    expected = {}
    for k in (1, 5, 10):
        best_images = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        best_texts = np.argsort(-similarity, axis=0, kind="stable")[:k]
        found = (best_images == owner[:, None]).any(axis=1)
        expected[f"image_retrieval_recall@{k}"] = found.mean()
        found = (owner[best_texts] == np.arange(len(samples))).any(axis=0)
        expected[f"text_retrieval_recall@{k}"] = found.mean()
    assert scores["flickr8k"].metrics == pytest.approx(expected, abs=1e-6)


def test_fewer_than_five_classes_have_no_acc5(tmp_path):
    samples = [{"png": folders.image(i), "cls": b"%d" % (i % 3)} for i in range(6)]
    folder = folders.write_dataset(tmp_path / "x", samples, classnames=("red", "green", "blue"))
    opened = open_dataset("x", folder, SourceConfig("", "test", str(tmp_path / "cache")))
    scores = measure(tiny.float_model(), *opened, batch_size=8)
    assert list(scores) == ["acc1", "mean_per_class_recall", "n", "skipped"]


def test_what_is_measured_is_kept_and_what_changed_is_measured_again(run, root, tmp_path):
    first, measured = run()
    assert len(measured) == 6
    assert run() == (first, [])

    # A value changed in the file shows that the file is what is read.
    file = tmp_path / "out" / model_fingerprint(tiny.float_model())[:16] / "vtab-cifar10.json"
    saved = json.loads(file.read_text())
    saved["metrics"]["acc1"] = 0.123
    file.write_text(json.dumps(saved))
    again, measured = run()
    assert not measured
    assert again[0].metrics["acc1"] == 0.123
    assert again[0].model == "a"

    # Damaged, partial, or bound to other weights: measured again.
    for text in ("{", '{"model": "a"}', "[]", json.dumps(saved | {"model_fingerprint": "x"})):
        file.write_text(text)
        again, measured = run()
        assert (again, measured) == (first, ["vtab/cifar10"])
    (root / "wds_vtab-cifar10/classnames.txt").write_text("cat\n" * 6)
    _, measured = run()
    assert measured == ["vtab/cifar10"] * 2


def test_a_run_that_was_cut_goes_on_where_it_was(run, root, tmp_path):
    config = SourceConfig(str(root), "test", str(tmp_path / "cache"))
    cut = run_suite("ab", lambda name: MODELS[name](), config, tmp_path / "out", 8)
    done = [next(cut), next(cut)]
    cut.close()
    results, measured = run()
    assert results[:2] == done
    assert measured == [result.dataset for result in results[2:]]
    assert len(results) == 6


def test_same_names_of_other_weights_are_measured_again(run, monkeypatch):
    run("a")
    monkeypatch.setitem(MODELS, "a", MODELS["b"])
    _, measured = run("a")
    assert len(measured) == 3


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("dataset_type.txt", "captioning", "'captioning'; expected one of classification, mult"),
        ("classnames.txt", None, r"classnames\.txt is missing; classification needs it"),
        ("zeroshot_classification_templates.txt", None, r"templates\.txt is missing"),
        ("classnames.txt", "cat\ndog\n", "labels go up to 4, but .* names 2 classes"),
        ("test/nshards.txt", None, r"nshards\.txt is missing"),
        ("test/nshards.txt", "3", r"2\.tar is missing"),
        ("dataset_type.txt", "retrieval", "no image has a caption"),
        ("dataset_type.txt", "multilabel", r"labels of \[0\] classes, but 6 class names"),
    ],
)
def test_a_broken_data_set_is_told_and_the_others_go_on(run, root, file, text, message):
    path = root / "wds_vtab-cifar10" / file
    path.write_text(text) if text else path.unlink()
    results, _ = run("a")
    broken, *others = sorted(results, key=lambda result: not result.error)
    assert broken.dataset == "vtab/cifar10"
    assert re.search(message, broken.error)
    assert not any(result.error for result in others)
    assert len(others) == 2


def results_of(scores):
    """Results from {data set: (figure of model a, figure of model b)}; None failed."""
    results = []
    for i, model in enumerate("ab"):
        for name, figures in scores.items():
            metrics = {} if figures[i] is None else {"acc1": figures[i], "acc5": 1.0}
            error = "" if metrics else "no | luck"
            results.append(Result(model, name, "classification", metrics, 10, 0, error))
    return results


def test_averages_are_over_what_every_model_was_measured_on():
    results = results_of({"cars": (0.5, 0.1), "mnist": (0.2, 0.3), "gtsrb": (0.9, None)})
    both = {"image_retrieval_recall@1": 0.2, "text_retrieval_recall@1": 0.4}
    results += [Result(model, "flickr8k", "retrieval", both, 5) for model in "ab"]
    expected = {
        "natural": {"a": 0.5, "b": 0.1, "n": 1},
        "specialized": {"a": 0.2, "b": 0.3, "n": 1},
        "retrieval": {"a": 0.3, "b": 0.3, "n": 1},
        "all": {"a": 1.0 / 3, "b": 0.7 / 3, "n": 3},
    }
    means = averages(results)
    assert means.keys() == expected.keys()
    for group, values in expected.items():
        assert means[group] == pytest.approx(values)


def test_the_summary_shows_every_figure(tmp_path):
    results = results_of({"cars": (0.5, 0.125), "gtsrb": (0.9, None)})
    text = write_summary(results, tmp_path)
    rows = [[cell.strip() for cell in line.split(" | ")] for line in text.splitlines()]
    assert ["| cars", "acc1", "50.00%", "12.50% |"] in rows
    assert ["| gtsrb", "acc1", "90.00%", "failed |"] in rows
    assert ["| average: natural", "1 of 22", "50.00%", "12.50% |"] in rows
    assert "gtsrb failed: no | luck" in text
    assert "Missing, 39 of 41: imagenet1k, " in text
    page = (tmp_path / "suite.md").read_text()
    assert page.startswith(text)
    assert page.count("acc5") == 2
    document = json.loads((tmp_path / "suite.json").read_text())
    assert len(document["results"]) == 4
    assert document["missing"] == [n for n in DATASETS if n not in ("cars", "gtsrb")]
    assert document["averages"]["all"] == {"a": 0.5, "b": 0.125, "n": 1}
    with (tmp_path / "suite.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["acc1"] for record in records] == ["0.5", "0.9", "0.125", ""]
    assert result_line(results[0]) == "cars, a: acc1 50.00% of 10 images"
    assert result_line(results[3]) == "gtsrb, b: failed: no | luck"


@pytest.mark.skipif(not (SHARED / "wds_cifar10").exists(), reason=f"{SHARED}/wds_cifar10 is absent")
@pytest.mark.slow
def test_the_published_cifar10_scores_as_the_training_evaluation_does(tmp_path):
    config = SourceConfig("", "test", str(tmp_path))
    folder = find_datasets(SHARED)["vtab/cifar10"]
    kind, source = open_dataset("vtab/cifar10", folder, config)
    model = tiny.float_model()
    suite_scores, scores = measure(model, kind, source), evaluate(model, source)
    names = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
    for name, other in names.items():
        assert suite_scores[name] == scores[f"zeroshot_{other}"]
    assert (suite_scores["n"], suite_scores["skipped"]) == (10_000, 0)


def test_results_that_another_suite_writes_are_refused(run, tmp_path):
    with folder_lock(tmp_path / "out"), pytest.raises(FolderInUseError, match="out is in use"):
        run()
    results, measured = run()
    assert [result.error for result in results if result.error] == []
    assert measured
