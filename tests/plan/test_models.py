"""Architectures are found without weights, data or network, or the missing flag is named."""

import dataclasses
import re

import pytest

from tclip.data import SourceConfig
from tclip.interop import save_huggingface
from tclip.losses import LossConfig
from tclip.models import TextConfig, architecture
from tclip.plan.models import settle_models
from tclip.processing import train_tokenizer
from tclip.run.experiment import Experiment, TeacherConfig, TokenizerConfig
from tclip.train.setup import set_up_run, with_vocabulary
from tests.helpers import tiny
from tests.helpers.benchmark_folders import captioned, write_dataset


def experiment(**changes) -> Experiment:
    model = dataclasses.replace(tiny.config(), dtype="bfloat16", remat="dots")
    defaults = {
        "model": model,
        "preprocess": tiny.PREPROCESS,
        "loss": LossConfig(similarity_weight=1.0),
        "teacher": TeacherConfig("owner/name"),
    }
    return Experiment(**defaults | changes)


def runs_as_the_student(model):
    return dataclasses.replace(model, dtype="bfloat16", remat="dots")


def test_a_run_without_a_teacher():
    alone = experiment(teacher=TeacherConfig(), loss=LossConfig())
    models = settle_models(alone)
    assert models.teacher is None
    assert models.experiment == with_vocabulary(alone, 1024, 1023)
    assert models.notes == (
        "the tokenizer to be trained is taken to have all tokenizer.vocab_size=1024 entries",
    )
    with pytest.raises(ValueError, match=r"the config has no teacher\.path"):
        settle_models(alone, "ViT-L/14")


def test_a_named_teacher():
    teacher = settle_models(experiment(), "ViT-L/14").teacher
    assert teacher == runs_as_the_student(architecture("ViT-L/14"))


def test_a_teacher_that_is_not_here_needs_a_name():
    with pytest.raises(ValueError, match=r"'owner/name' is no folder here: .* --teacher_arch=ViT"):
        settle_models(experiment())
    with pytest.raises(ValueError, match="unknown architecture 'ViT-Z'; there are ViT-B/32"):
        settle_models(experiment(), "ViT-Z")


def test_the_layers_of_the_loss_have_to_exist():
    loss = LossConfig(hidden_weight=1.0, hidden_layers=((0, 11),))
    settle_models(experiment(loss=loss), "ViT-B/16")
    with pytest.raises(
        ValueError, match=r"the teacher's image tower has layers 0\.\.1, no layer 11"
    ):
        settle_models(experiment(loss=loss), "tiny")


def test_a_teacher_in_a_folder_of_configs(tmp_path):
    """Whose weights may be absent."""
    save_huggingface(
        tmp_path / "hf", tiny.config(), tiny.params(), tiny.tokenizer(), tiny.PREPROCESS
    )
    (tmp_path / "hf" / "model.safetensors").unlink()
    for folder in (tmp_path / "hf", tiny.write_workdir(tmp_path / "run")):
        teacher = settle_models(experiment(teacher=TeacherConfig(str(folder)))).teacher
        assert teacher == runs_as_the_student(tiny.config())
    with pytest.raises(FileNotFoundError, match="is no model folder"):
        settle_models(experiment(teacher=TeacherConfig(str(tmp_path))))


def test_a_student_that_is_its_teacher():
    models = settle_models(experiment(init="teacher"), "ViT-B/16")
    assert models.experiment.model == models.teacher
    assert models.experiment.preprocess.image_size == 224
    assert models.notes == ()


@pytest.mark.parametrize("kind", ["auto", "file", "train"])
def test_a_student_has_the_vocabulary_that_it_has_in_training(tmp_path, kind):
    teacher = tiny.write_workdir(tmp_path / "teacher")
    file = tmp_path / "tokenizer.json"
    train_tokenizer(["other captions"] * 9, 16, 520).save(file)
    write_dataset(tmp_path / "data", captioned(), "retrieval")
    text = TextConfig(20, 700, 32, 1, 2, 64, 699)
    student = experiment(
        model=dataclasses.replace(tiny.config(), text=text),
        teacher=TeacherConfig(str(teacher)),
        tokenizer=TokenizerConfig(kind, str(file), vocab_size=530),
        train_data=SourceConfig(f"wds:{tmp_path}/data", "test", str(tmp_path / "index")),
    )
    trained = set_up_run(student, tmp_path / "run", is_resumed=False).experiment
    models = settle_models(student)
    assert models.experiment == trained
    sizes = {"auto": tiny.config().text.vocab_size, "file": 520, "train": 530}
    assert models.experiment.model.text.vocab_size == sizes[kind]
    assert len(models.notes) == (kind == "train")


def test_a_tokenizer_that_is_not_here_leaves_the_vocabulary_and_says_so():
    student = experiment(tokenizer=TokenizerConfig("file", "no.json"))
    models = settle_models(student, "ViT-B/16")
    assert models.experiment == student
    (note,) = models.notes
    assert re.match(r"no tokenizer at no\.json; .* vocabulary .* that of config\.model", note)


def test_a_student_for_which_the_loss_cannot_be_computed():
    loss = LossConfig(contrastive="sigmoid", similarity_weight=1.0)
    with pytest.raises(ValueError, match=r"needs model\.logit_bias=True"):
        settle_models(experiment(init="teacher", loss=loss), "ViT-B/16")


def test_a_start_that_is_not_here_leaves_the_config_and_says_so():
    models = settle_models(experiment(init="owner/start"), "tiny")
    assert models.experiment.model == experiment().model
    assert models.notes == (
        "init='owner/start' is no folder here: the student is taken to be config.model",
    )
