"""Training end to end on tiny shapes: float, ternary, distilled; and what is refused."""

import contextlib
import dataclasses
import json
import logging
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from tclip.config import build
from tclip.folder_lock import FolderInUseError, folder_lock
from tclip.loading import load
from tclip.models import CLIPConfig, init_params
from tclip.parallel.sharding import batch_sharding, make_mesh
from tclip.processing import load_tokenizer, train_tokenizer
from tclip.run.checkpoint import CHECKPOINTS, load_trained
from tclip.run.experiment import Experiment, ProfileConfig, check_resumable, read_experiment
from tclip.train import loop
from tclip.train.fill_teacher_cache import cache_teacher
from tclip.train.loop import train
from tclip.train.metric_writer import CLOCK_METRICS, MetricWriter, read_metrics
from tclip.train.setup import random_start, set_up_run, with_vocabulary
from tclip.train.teacher import load_float
from tests.helpers.runs import TOWER, run_config

STEPS = 12


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


def make_experiment(data_dir: str, **groups) -> Experiment:
    """A tiny run of 12 steps; `groups` maps the groups of the config to what is different."""
    schedule = {
        "steps": STEPS,
        "batch_size": 16,
        "log_every": 2,
        "eval_every": 8,
        "checkpoint_every": 4,
    }
    groups["train"] = schedule | groups.get("train", {})
    source = {"source": "shapes:tiny", "data_dir": data_dir}
    return build(Experiment, run_config(source, **groups))


def with_evaluation(data_dir: str) -> Experiment:
    return make_experiment(data_dir, eval={"data": {"source": "shapes:tiny", "data_dir": data_dir}})


@pytest.fixture(scope="module")
def teacher(data_dir, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("teacher")
    train(with_evaluation(data_dir), workdir)
    return workdir


def test_float_training_leaves_a_readable_workdir(teacher):
    result = json.loads((teacher / "result.json").read_text())
    assert result["step"] == STEPS
    assert 0 < result["loss"] < 10
    assert 0 <= result["eval/zeroshot_top1"] <= 1
    rows = read_metrics(teacher)
    assert [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in rows if "eval/retrieval_i2t_r1" in row] == [8, 12]
    assert list((teacher / "tensorboard").iterdir())
    tokenizer = load_tokenizer(teacher / "tokenizer.json", 16)
    saved = read_experiment(teacher)
    assert saved.model.text.vocab_size == tokenizer.vocab_size
    assert saved.model.text.eot_token_id == tokenizer.eot_token_id
    assert load(teacher).encode_text(["a red circle"]).shape == (1, 32)


@pytest.mark.slow
def test_a_best_metric_that_the_evaluation_lacks_is_refused_at_the_first_one(data_dir, tmp_path):
    evaluation = {"data": {"source": "shapes:tiny", "data_dir": data_dir}}
    schedule = {"best_metric": "nonsense", "eval_every": 1, "checkpoint_every": 1}
    experiment = make_experiment(data_dir, eval=evaluation, train=schedule)
    with pytest.raises(ValueError, match=r"train\.best_metric='nonsense'.*zeroshot_top1"):
        train(experiment, tmp_path)
    assert (tmp_path / CHECKPOINTS / "1").is_dir()


def test_every_row_of_training_says_how_fast_it_goes(teacher):
    for row in read_metrics(teacher):
        if "loss" in row:
            # A CPU has no known peak, and does not tell its memory.
            assert CLOCK_METRICS - row.keys() == {
                "mfu",
                "hbm_bytes_in_use",
                "hbm_peak_bytes_in_use",
            }
            assert row["samples_per_second"] == pytest.approx(16 * row["steps_per_second"])
            assert row["samples_per_second_per_chip"] == row["samples_per_second"] / 8
            assert 0 <= row["input_wait"] < 1
            assert 0 < row["goodput"] < 1


def test_a_loop_that_is_watched(data_dir, tmp_path, monkeypatch):
    written = []

    class Spy(MetricWriter):
        def write_train(self, step, metrics):
            written.append([row["step"] for row in read_metrics(tmp_path)])
            super().write_train(step, metrics)

    monkeypatch.setattr(loop, "MetricWriter", Spy)
    experiment = make_experiment(
        data_dir,
        train={"batch_size": 16, "steps": 4, "log_every": 1},
        profile={"start": 4, "steps": 1},
    )
    train(experiment, tmp_path)
    # When a step is dispatched nobody has looked at the one before, unless there was a pause.
    assert written == [[], [], [1], [1, 2, 3]]
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    # Another trace is no other run.
    check_resumable(experiment, dataclasses.replace(experiment, profile=ProfileConfig()), tmp_path)


def test_the_next_batch_is_put_on_the_devices_during_a_step(data_dir, tmp_path, monkeypatch):
    put, second = [], threading.Event()
    put_rows = loop.put_rows

    def spy(*args):
        put.append(put_rows(*args))
        if len(put) == 2:
            second.set()
        return put[-1]

    monkeypatch.setattr(loop, "put_rows", spy)
    experiment = make_experiment(data_dir)
    mesh = make_mesh(experiment.mesh)
    read = loop.make_reader(set_up_run(experiment, tmp_path, is_resumed=False), mesh)
    with contextlib.closing(read(0)) as batches:
        first = next(batches)
        assert first["images"] is put[0]["images"]
        assert first["images"].sharding == batch_sharding(mesh)
        # Nobody has asked for it.
        assert second.wait(60)


def test_a_transfer_that_nobody_asked_for_is_an_error(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "put_rows", lambda batch, size, sharding: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(make_experiment(data_dir), tmp_path)


def test_a_student_starts_from_its_teacher_and_learns_from_it(teacher, data_dir, tmp_path, caplog):
    student = make_experiment(
        data_dir,
        teacher={"path": str(teacher)},
        quant={"policy": "all"},
        loss={"similarity_weight": 1.0, "embedding_weight": 1.0},
        optim={"warmup_steps": 2, "lr": 1e-9, "weight_decay": 0.0},
        train={"batch_size": 16, "steps": 4, "eval_every": 4, "checkpoint_every": 4},
    )
    with caplog.at_level(logging.INFO, "tclip"):
        result = train(student, tmp_path)
    assert "the student starts from the teacher's weights" in caplog.messages
    assert result["similarity_kl"] > 0
    assert (tmp_path / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
    _, teacher_params, no_quant = load_trained(teacher)
    _, params, quant = load_trained(tmp_path)
    # With next to no learning rate the latent weights are still those of the teacher.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), params, teacher_params)
    assert not no_quant
    assert "vision/blocks_0/mlp/fc1/kernel" in quant
    stored = json.loads((tmp_path / CHECKPOINTS / "4/state/_METADATA").read_text())
    assert not any("teacher" in key for key in stored["tree_metadata"])


def test_a_float_student_of_the_same_weights_has_no_distillation_loss(teacher, data_dir, tmp_path):
    student = make_experiment(
        data_dir,
        teacher={"path": str(teacher)},
        loss={"contrastive_weight": 0.0, "similarity_weight": 1.0, "embedding_weight": 1.0},
        optim={"warmup_steps": 0},
        train={"batch_size": 16, "steps": 1, "log_every": 1},
    )
    result = train(student, tmp_path)
    assert result["loss"] == pytest.approx(0, abs=1e-6)


def test_a_smaller_student_is_taught_through_adapters(teacher, data_dir, tmp_path, caplog):
    student = make_experiment(
        data_dir,
        model={"embed_dim": 16},
        teacher={"path": str(teacher)},
        # Only the text towers are compared inside.
        loss={"embedding_weight": 1.0, "hidden_weight": 1.0, "text_hidden_layers": ((0, 0),)},
        train={"batch_size": 16, "steps": 3},
        optim={"warmup_steps": 0},
        quant={"policy": "blocks"},
    )
    with caplog.at_level(logging.INFO, "tclip"):
        result = train(student, tmp_path)
    assert "the student starts from random weights: model.embed_dim differs" in caplog.messages
    assert 0 < result["embedding_l2"] < 4
    assert result["hidden_mse"] > 0
    assert load(tmp_path).encode_text(["a red circle"]).shape == (1, 16)


@pytest.mark.parametrize("cached", [False, True])
def test_a_student_with_its_own_tokens_and_pixels(teacher, data_dir, tmp_path, cached):
    student = make_experiment(
        data_dir,
        model={
            "text": TOWER | {"context_length": 20},
            "vision": TOWER | {"image_size": 16, "patch_size": 8},
        },
        preprocess={"image_size": 16},
        teacher={"path": str(teacher), "cache": str(tmp_path / "cache") if cached else ""},
        loss={"similarity_weight": 1.0, "embedding_weight": 1.0},
        optim={"warmup_steps": 0},
        train={"batch_size": 16, "steps": 2, "log_every": 1},
    )
    if cached:
        counts = cache_teacher(student, tmp_path / "cache", augmentations=1)
        assert counts["skipped"] == 0
    result = train(student, tmp_path / "run")
    assert result["step"] == 2
    assert result["embedding_l2"] > 0
    assert load(tmp_path / "run").tokenizer.context_length == 20
    # The teacher still reads texts in its own way.
    assert load(teacher).tokenizer.context_length == 16


def test_other_data_or_another_teacher_do_not_continue_a_run(teacher, data_dir, tmp_path):
    student = make_experiment(
        data_dir,
        teacher={"path": str(teacher)},
        loss={"embedding_weight": 1.0},
        optim={"warmup_steps": 0},
        train={"batch_size": 16, "steps": 1, "log_every": 1},
    )
    train(student, tmp_path)
    (tmp_path / "result.json").unlink()
    identity = json.loads((tmp_path / "identity.json").read_text())
    for key in ("data", "teacher"):
        changed = identity | {key: "another"}
        (tmp_path / "identity.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"{key} changed since the run began"):
            train(student, tmp_path)


def test_the_weights_of_a_teacher_that_is_another_model_are_not_taken(teacher, data_dir):
    student = make_experiment(data_dir, teacher={"path": str(teacher)})
    loaded = load(teacher)
    text = loaded.config.text
    student = with_vocabulary(student, text.vocab_size, text.eot_token_id)

    def reason(model: CLIPConfig) -> str:
        changed = dataclasses.replace(student, model=model)
        return random_start(changed, loaded.tokenizer, loaded)

    model = student.model
    assert reason(dataclasses.replace(model, dtype="bfloat16", remat="full")) == ""
    # Parameters of the same shapes.
    assert reason(dataclasses.replace(model, activation="gelu")) == "model.activation differs"
    heads = dataclasses.replace(model, text=dataclasses.replace(model.text, heads=4))
    assert reason(heads) == "model.text.heads differs"
    other = train_tokenizer(["other captions"] * 9, 16, text.vocab_size)
    assert random_start(student, other, loaded) == "the tokenizer differs"


def test_the_sigmoid_loss_learns_a_bias(data_dir, tmp_path):
    experiment = make_experiment(
        data_dir,
        model={"logit_bias": True},
        loss={"contrastive": "sigmoid"},
        optim={"warmup_steps": 0},
        train={"batch_size": 16, "steps": 1},
    )
    assert np.isfinite(train(experiment, tmp_path)["loss"])
    before = init_params(experiment.model, jax.random.key(0))["logit_bias"]
    _, params, _ = load_trained(tmp_path)
    # The first update of Adam is the learning rate against the sign of the gradient.
    assert abs(float(params["logit_bias"] - before)) == pytest.approx(1e-3, rel=1e-2)


def test_training_again_does_nothing(teacher, data_dir):
    before = (teacher / "metrics.jsonl").read_bytes()
    assert train(with_evaluation(data_dir), teacher) == json.loads(
        (teacher / "result.json").read_text()
    )
    assert (teacher / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model": {"activation": "gelu"}}, "model.activation"),
        ({"quant": {"policy": "ffn"}}, "quant.policy"),
        ({"optim": {"warmup_steps": 2, "b2": 0.9}}, "optim.b2"),
        ({"optim": {"warmup_steps": 2, "ema_decay": 0.9}}, "optim.ema_decay"),
    ],
)
def test_a_checkpoint_of_another_experiment_is_refused(teacher, data_dir, changes, key):
    with pytest.raises(ValueError, match=f"checkpoint of another experiment: {key} was"):
        train(make_experiment(data_dir, **changes), teacher)


def test_a_batch_that_does_not_split_over_the_mesh_is_refused(data_dir, tmp_path):
    experiment = make_experiment(data_dir, train={"batch_size": 12})
    with pytest.raises(ValueError, match="batch_size=12 is not divisible"):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_without_a_layer_to_compare_with_is_refused(teacher, data_dir, tmp_path):
    student = make_experiment(
        data_dir,
        teacher={"path": str(teacher)},
        loss={"hidden_weight": 1.0, "text_hidden_layers": ((0, 7),)},
    )
    with pytest.raises(ValueError, match=r"loss\.text_hidden_layers: the teacher's text tower"):
        train(student, tmp_path)


def test_a_second_run_in_a_workdir_is_refused_before_it_changes_anything(teacher, data_dir):
    before = {path: path.read_bytes() for path in teacher.iterdir() if path.is_file()}
    with folder_lock(teacher), pytest.raises(FolderInUseError, match=f"{teacher} is in use"):
        train(make_experiment(data_dir, optim={"lr": 1e-5}), teacher)
    assert {path: path.read_bytes() for path in teacher.iterdir() if path.is_file()} == before


def test_a_run_owns_its_workdir_and_lets_it_go(data_dir, tmp_path, monkeypatch):
    def set_up(experiment, workdir, is_resumed):
        with pytest.raises(FolderInUseError), folder_lock(workdir):
            pass
        raise ValueError("owned")

    monkeypatch.setattr(loop, "set_up_run", set_up)
    with pytest.raises(ValueError, match="owned"):
        train(make_experiment(data_dir), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("init", ["auto", "teacher", "random"])
def test_a_teacher_with_int8_activations_teaches(data_dir, tmp_path, init):
    experiment = make_experiment(
        data_dir,
        quant={"policy": "ffn", "activations": "int8"},
        train={"steps": 4, "eval_every": 4, "checkpoint_every": 4},
    )
    train(experiment, tmp_path / "teacher")
    student = dataclasses.replace(
        experiment,
        init=init,
        teacher=dataclasses.replace(experiment.teacher, path=str(tmp_path / "teacher")),
        loss=dataclasses.replace(experiment.loss, embedding_weight=1.0),
    )
    assert train(student, tmp_path / "student")["step"] == 4
    # It is the run's own model, up to the rounding of its activations.
    texts = ["a red circle", "a blue star"]
    teacher = load_float(str(tmp_path / "teacher"), experiment.model)
    expected = load(tmp_path / "teacher", activations="native").encode_text(texts)
    np.testing.assert_allclose(teacher.encode_text(texts), expected, rtol=1e-5, atol=1e-6)
