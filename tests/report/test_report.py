"""The report of two runs with random weights: its numbers, its keys, its pictures."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tclip import report
from tclip.data import SourceConfig
from tclip.evals import evaluate
from tclip.export import export_packed
from tclip.loading import load
from tclip.models import ClipPolicy
from tclip.packed import folder_bytes
from tclip.quant import ESTIMATORS, init_quant, quantize_params, unpack
from tclip.report import pictures, plots, results
from tclip.run.experiment import EvalConfig
from tests.helpers import tiny

EVAL = EvalConfig(data=SourceConfig(source="wds:squares", split="validation"), batch_size=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    teacher = tiny.write_workdir(folder / "teacher", eval=EVAL)
    policy = dataclasses.replace(tiny.POLICY, group="tensor")
    student = tiny.write_workdir(folder / "student", quant=policy, eval=EVAL)
    for workdir in (teacher, student):
        rows = [{"step": 1, "loss": 2.0}, {"step": 1, "eval/zeroshot_top1": 0.5}]
        text = "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 2, "loss": 1.0}])
        (workdir / "metrics.jsonl").write_text(text)
    export_packed(student, folder / "packed")
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "open_source", lambda cfg: asked.append(cfg) or tiny.squares())
        paths = (teacher, student, folder / "packed", folder / "out")
        table = report.make_report(*paths, split="test")
    assert [cfg.split for cfg in asked] == ["test"]
    return folder, table


def test_the_json_has_the_promised_keys_and_the_numbers_of_the_models(made):
    folder, _ = made
    numbers = json.loads((folder / "out/report.json").read_text())
    shared = {"zeroshot_top1", "retrieval_i2t_r1", "retrieval_t2i_r1", "size_bytes"}
    for name in ("teacher", "post_training", "student"):
        assert shared <= numbers[name].keys()
    sizes = {"compression_ratio", "bits_per_ternary_weight", "ternary_fraction", "sparsity"}
    assert sizes <= numbers["student"].keys()
    floats = sum(x.size for x in jax.tree.leaves(tiny.params()))
    assert numbers["teacher"]["size_bytes"] == 4 * floats
    assert numbers["student"]["size_bytes"] == folder_bytes(folder / "packed")
    ratio = 4 * floats / folder_bytes(folder / "packed")
    assert numbers["student"]["compression_ratio"] == ratio
    for name, path in (("teacher", "teacher"), ("student", "packed")):
        for metric, value in evaluate(load(folder / path), tiny.squares(), 8).items():
            assert numbers[name][metric] == value


def test_post_training_is_the_teacher_by_the_best_estimator(made):
    folder, _ = made
    numbers = json.loads((folder / "out/report.json").read_text())["post_training"]
    by_estimator = numbers["zeroshot_top1_by_estimator"]
    assert by_estimator.keys() == ESTIMATORS.keys()
    assert numbers["zeroshot_top1"] == max(by_estimator.values())
    assert by_estimator[numbers["estimator"]] == numbers["zeroshot_top1"]
    # The student of this test is the untrained teacher under the same policy.
    student = json.loads((folder / "out/report.json").read_text())["student"]
    assert by_estimator["optimal"] == student["zeroshot_top1"]
    assert numbers["size_bytes"] == student["size_bytes"]
    assert "(`tensor`)" in (folder / "out/report.md").read_text()


def test_text_and_pictures_are_whole(made):
    folder, table = made
    text = (folder / "out/report.md").read_text()
    assert table in text
    for name in ("accuracy_vs_size", "training_curves", "weights", "retrieval"):
        assert f"({name}.png)" in text
        with Image.open(folder / "out" / f"{name}.png") as image:
            image.load()
            assert min(image.size) > 400
            assert image.convert("L").getpixel((2, 2)) == 255  # light background
    labels = (folder / "out/examples/labels.txt").read_text().strip().split(",")
    assert sorted(labels) == ["blue", "green", "red"]
    assert len(list((folder / "out/examples").glob("*.png"))) == 3


def test_curves_take_one_metric_of_the_rows():
    rows = [{"step": 1, "loss": 3.0}, {"step": 1, "eval/x": 0.5}, {"step": 2, "loss": 2.0}]
    assert pictures.curve(rows, "loss") == ([1, 2], [3.0, 2.0])
    assert pictures.curve(rows, "absent") == ([], [])


@pytest.mark.parametrize("group", ["tensor", "channel", "block:16"])
def test_the_layer_shown_has_the_codes_that_ship(group):
    policy = ClipPolicy(policy="ffn", group=group, learn_threshold=False)
    quant = jax.jit(lambda params: init_quant(params, policy))(tiny.params())
    path, weights, scales, thresholds = pictures.middle_layer(tiny.params(), quant, policy)
    assert path == "vision/blocks_1/mlp/fc1/kernel"
    pack = functools.partial(quantize_params, policy=policy, dtype=np.float32)
    packed = jax.jit(pack)(tiny.params(), quant)
    tensor = packed["vision"]["blocks_1"]["mlp"]["fc1"]["kernel"]
    codes = np.sign(weights) * (np.abs(weights) > thresholds)
    np.testing.assert_array_equal(codes, unpack(tensor.words, tensor.rows))
    np.testing.assert_allclose(scales * codes, tensor.dequantize(), rtol=1e-6)


def test_right_images_are_marked():
    data = results.Data(tiny.squares(), None, 8, 0)
    rows = pictures.retrieved(tiny.float_model(), data)
    assert {text for text, _ in rows} <= {f"a {colour} square" for colour in tiny.COLOURS}
    for _, images in rows:
        assert len(images) == pictures.IMAGES_A_CAPTION
        assert all(isinstance(image, Image.Image) for image, _ in images)
    # Four of the twelve squares have each caption, and eight of twelve are shown.
    assert all(0 <= sum(right for _, right in images) <= 4 for _, images in rows)


def test_pictures_can_be_drawn_of_nearly_nothing(tmp_path):
    nothing = {"teacher": ([], []), "student": ([], [])}
    plots.training_curves(tmp_path / "curves.png", nothing, nothing)
    points = dict.fromkeys(plots.NAMES, (1000, 0.0))
    plots.accuracy_against_size(tmp_path / "size.png", points)
    zeros = np.zeros((4, 4))
    plots.weight_histogram(tmp_path / "weights.png", "layer", zeros, zeros + 1, zeros)
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_a_run_without_evaluation_data_is_refused():
    with pytest.raises(ValueError, match=r"without eval\.data"):
        results.open_data(EvalConfig(data=SourceConfig(source="")), "test")
