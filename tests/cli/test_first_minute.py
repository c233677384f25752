"""What a newcomer types: help, mistakes, and the demo."""

import pwd

import pytest

from tclip.cli.app import compilation_cache
from tclip.cli.main import COMMANDS
from tclip.run.recipe import recipe_names
from tests.helpers import tiny
from tests.helpers.forked_commands import run_forked


def one_line(result) -> str:
    """The message of a command that refused its arguments, in one line and without a traceback."""
    code, _, message = result
    assert code in (1, 2), message
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "bench"])
def test_help_shows_an_example_and_the_flags(command, tmp_path):
    ((code, text, errors),) = run_forked(command, ["--help"], cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert f"tclip {command}" in text or f"launch.{command}" in text
    assert "flags:" in text


def test_mistakes_in_a_recipe_are_one_line_that_names_the_remedy(tmp_path):
    flags = ["--workdir=run", "--config.train_data.data_dir=empty"]
    absent, role, key, group, estimator, teacher, bare, download = run_forked(
        "train",
        ["--config=nope.py", *flags],
        ["--config=cifar10:studnt", *flags],
        ["--config=cifar10:student", "--config.optim.lrr=1", *flags],
        ["--config=cifar10:student", "--config.optin.lr=1", *flags],
        ["--config=cifar10:student", "--config.quant.estimator=median", *flags],
        ["--config=shapes:student", "--config.teacher.path=./none", *flags],
        ["--workdir=run"],
        ["--config=cifar10:teacher", "--config.optim.b1=7", *flags],
        cwd=tmp_path,
    )
    assert all(name in one_line(absent) for name in ("nope.py", *recipe_names()))
    assert "teacher, student" in one_line(role)
    assert '"lr"' in one_line(key)
    assert '"optim"' in one_line(group)
    message = one_line(estimator)
    assert "config.quant" in message
    assert "optimal" in message
    assert "none" in one_line(teacher)
    assert "--config" in one_line(bare)
    assert "config.optim.b1" in one_line(download)
    assert not (tmp_path / "run").exists()


def test_mistakes_in_flags_and_paths_are_one_line(tmp_path):
    unknown, absent, label = run_forked(
        "classify",
        ["--labls=a,b", "x.jpg"],
        ["--model=./none", "--labels=a,b", "x.jpg"],
        [],
        cwd=tmp_path,
    )
    assert "labels" in one_line(unknown)
    assert "none" in one_line(absent)
    assert "tclip classify" in one_line(label)


def test_export_names_the_estimators_that_there_are(tmp_path):
    (message,) = run_forked("export", ["--workdir=x", "--out=y", "--estimator=z"], cwd=tmp_path)
    assert "optimal" in one_line(message)


def test_a_picture_is_classified_by_the_demo_model(tmp_path):
    (tmp_path / "red.png").write_bytes(tiny.png(tiny.square("red")))
    answer, missing = run_forked("classify", ["red.png"], ["absent.png"], cwd=tmp_path)
    code, text, note = answer
    assert code == 0, note
    assert "airplane" in text
    assert "demo model" in note
    code, _, message = missing
    assert code == 1
    assert "absent.png" in message


def test_the_demo_shows_its_pictures_and_what_to_do_next(tmp_path):
    ((code, text, errors),) = run_forked("demo", [], cwd=tmp_path)
    assert code == 0, errors
    assert all(f"{name}.jpg" in text for name in ("airplane", "ship", "truck"))
    assert "tclip classify" in text


def test_without_a_home_a_command_runs_and_says_what_it_does_not_keep(tmp_path, monkeypatch):
    for variable in ("HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(*_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert compilation_cache() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert compilation_cache() is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation_cache() == str(tmp_path / ".cache/tclip/xla")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    assert compilation_cache() == str(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


def test_what_is_not_kept_is_said_in_one_line_each(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file"))
    assert compilation_cache() is None
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(tmp_path / "file") in message
    assert "JAX_COMPILATION_CACHE_DIR" in message


def test_the_home_of_nobody_is_one_line(tmp_path):
    (absent,) = run_forked("evaluate", ["--model=~nobody-of-this-name/x"], cwd=tmp_path)
    assert "~nobody-of-this-name/x" in one_line(absent)
