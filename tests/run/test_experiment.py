"""Configs: complete, checked, written down and compared."""

import dataclasses
import json

import ml_collections
import pytest

from tclip.config import build, to_dict
from tclip.losses import LossConfig
from tclip.models import architecture
from tclip.parallel.sharding import MeshConfig, make_mesh
from tclip.plan.inputs import abstract_teacher
from tclip.run.experiment import (
    CONFIG_FILE,
    Experiment,
    check_hidden_layers,
    check_resumable,
    default_config,
    experiment_from_config,
    read_experiment,
    write_experiment,
)
from tclip.train.teacher import put_teacher
from tests.helpers import tiny


def changed(**groups) -> Experiment:
    return build(Experiment, groups)


def test_the_default_config_is_the_default_experiment():
    assert experiment_from_config(default_config()) == Experiment()


def test_a_misspelt_key_is_refused_with_a_hint():
    config = default_config()
    with pytest.raises(AttributeError, match="batch_size"):
        config.train.batch_sise = 3
    with pytest.raises(ValueError, match=r"config\.optim\.lrr: unknown key; did you mean 'lr'"):
        changed(optim={"lrr": 1.0})


def test_a_value_of_the_wrong_type_is_refused():
    with pytest.raises(TypeError):
        default_config().train.steps = "many"
    config = ml_collections.ConfigDict({"train": {"steps": 10.5}})
    with pytest.raises(ValueError, match=r"config\.train\.steps: expected int"):
        experiment_from_config(config)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"preprocess": {"image_size": 32}}, "preprocess.image_size=32"),
        ({"loss": {"embedding_weight": 1.0}}, "set teacher.path"),
        ({"loss": {"contrastive": "sigmoid"}}, "needs model.logit_bias"),
        ({"train": {"steps": 50}}, "warmup_steps=100"),
        ({"train": {"steps": 0}}, "train.steps=0"),
        ({"train": {"batch_size": 0}}, "train.batch_size=0"),
        ({"train": {"num_workers": -1}}, "train.num_workers=-1"),
        ({"eval": {"batch_size": 0}}, "eval.batch_size=0"),
        ({"eval": {"num_workers": -1}}, "eval.num_workers=-1"),
        ({"optim": {"no_decay": ("*bias",)}}, r"optim.no_decay: '\*bias' is no regular expression"),
        ({"train": {"eval_every": 300}}, "multiple of train.checkpoint_every=500"),
        ({"tokenizer": {"kind": "words"}}, "tokenizer.kind='words'"),
        ({"tokenizer": {"kind": "clip"}}, "needs tokenizer.path"),
    ],
)
def test_contradictions_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        changed(**groups)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"hidden_layers": ((4, 0),)}, r"loss\.hidden_layers: the student's image tower .* 0\.\.3"),
        ({"hidden_layers": ((-1, 0),)}, r"loss\.hidden_layers: .* no layer -1"),
        (
            {"hidden_layers": ((0, 0),), "text_hidden_layers": ((1, 1), (9, 0))},
            r"loss\.text_hidden_layers: the student's text tower .* no layer 9",
        ),
    ],
)
def test_hidden_layers_that_the_student_lacks_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        changed(teacher={"path": "x"}, loss={"hidden_weight": 1.0} | loss)


def test_the_towers_of_a_teacher_have_each_their_own_layers():
    loss = LossConfig(
        hidden_weight=1.0, hidden_layers=((3, 23),), text_hidden_layers=((1, 5), (3, 11))
    )
    teacher = architecture("ViT-L/14")
    check_hidden_layers(loss, "teacher", teacher)
    deeper = dataclasses.replace(loss, text_hidden_layers=loss.hidden_layers)
    with pytest.raises(ValueError, match=r"teacher's text tower has layers 0\.\.11, no layer 23"):
        check_hidden_layers(deeper, "teacher", teacher)


def test_devices_share_the_heads_of_both_towers_evenly():
    model = {"vision": {"image_size": 48, "heads": 12}, "text": {"heads": 8}}
    for tensor in (1, 2, 4):
        changed(model=model, mesh={"tensor": tensor})
    for tensor in (3, 6, 8):
        message = rf"mesh\.tensor={tensor} .* student's image tower, 12, .* 8: use one of 1, 2, 4,"
        with pytest.raises(ValueError, match=message):
            changed(model=model, mesh={"tensor": tensor})


def test_devices_share_the_heads_of_a_teacher_that_is_run():
    mesh, teacher = make_mesh(MeshConfig(tensor=4)), tiny.float_model()
    assert put_teacher(teacher, "stored embeddings", mesh).keys() == {"logit_scale"}
    assert abstract_teacher(teacher.config, True, mesh).keys() == {"logit_scale"}
    message = r"mesh\.tensor=4 .* teacher's image tower, 2"
    with pytest.raises(ValueError, match=message):
        put_teacher(teacher, None, mesh)
    with pytest.raises(ValueError, match=message):
        abstract_teacher(teacher.config, False, mesh)


def test_a_key_that_a_file_lacks_has_its_default(tmp_path):
    values = to_dict(Experiment())
    del values["loss"]["text_hidden_layers"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    assert read_experiment(tmp_path) == Experiment()


def test_an_experiment_survives_its_file(tmp_path):
    experiment = changed(
        seed=3,
        teacher={"path": "x"},
        loss={
            "hidden_weight": 1.0,
            "hidden_layers": ((0, 1), (1, 3)),
            "text_hidden_layers": ((1, 5),),
        },
        optim={"no_decay": ("a", "b")},
    )
    write_experiment(experiment, tmp_path)
    assert read_experiment(tmp_path) == experiment
    assert [path.name for path in tmp_path.iterdir()] == [CONFIG_FILE]


def test_a_file_with_an_unknown_key_names_the_file(tmp_path):
    (tmp_path / CONFIG_FILE).write_text('{"sede": 1}')
    with pytest.raises(ValueError, match=r"config\.json\.sede: unknown key; did you mean 'seed'"):
        read_experiment(tmp_path)


@pytest.mark.parametrize(
    ("groups", "key"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"loss": {"temperature": 2.0}}, "loss.temperature"),
        ({"quant": {"group": "tensor"}}, "quant.group"),
        ({"optim": {"lr": 0.1}}, "optim.lr"),
        # The learning rate is a function of the length of training.
        ({"train": {"steps": 2000}}, "train.steps"),
        ({"train": {"num_workers": 2}}, "train.num_workers"),
    ],
)
def test_a_run_is_not_continued_as_another(tmp_path, groups, key):
    with pytest.raises(ValueError, match=key):
        check_resumable(Experiment(), changed(**groups), tmp_path)


def test_what_no_parameter_depends_on_may_change(tmp_path):
    experiment = changed(
        train={"log_every": 7, "eval_every": 40, "checkpoint_every": 20, "keep_last": 9},
        eval={"data": {"source": "shapes", "split": "test"}, "batch_size": 3},
        train_data={"source": "shapes", "data_dir": "/elsewhere"},
        mesh={"data": 1},
        loss={"negatives": "chunked", "chunk_size": 64},
        optim={"accumulate": 2},
    )
    check_resumable(Experiment(), experiment, tmp_path)
