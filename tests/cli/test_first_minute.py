"""What a newcomer types: help, mistakes, and the demo."""

import fnmatch
import glob
import importlib.metadata
import importlib.util
import pwd
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tclip import engine
from tclip.cli import jax_defaults
from tclip.cli.main import COMMANDS, run_command
from tclip.data.source import SourceConfig
from tclip.data.tfds_source import open_tfds
from tclip.packed import load_packed
from tclip.quant import TernaryTensor
from tclip.run.recipe import recipe_names
from tests.helpers import tiny
from tests.helpers.forked_commands import run_forked


def one_line(result) -> str:
    """The message of a command that refused its arguments, in one line and without a traceback."""
    code, _, message = result
    assert code == 1, message
    assert len(message.splitlines()) == 1, message
    return message


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_and_the_flags(command, tmp_path):
    ((code, text, errors),) = run_forked(command, ["--help"], cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert re.search(rf"^tclip {command}\b", text, re.MULTILINE)
    assert "flags:" in text


def test_mistakes_in_a_recipe_are_one_line_that_names_the_remedy(tmp_path):
    flags = ["--workdir=run", "--config.train_data.data_dir=empty"]
    absent, role, key, group, estimator, teacher, bare, number = run_forked(
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
    assert "config.optim.b1" in one_line(number)
    assert not (tmp_path / "run").exists()


def test_an_unknown_command_is_one_line_that_names_a_near_one():
    done = subprocess.run(
        [sys.executable, "-c", "from tclip.cli.main import main; main()", "clasify"],
        capture_output=True,
        text=True,
    )
    assert "classify" in one_line((done.returncode, done.stdout, done.stderr))


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


def no_host(*_):
    raise socket.gaierror("name or service not known")


def test_data_that_would_have_to_be_downloaded_are_one_line(tmp_path, monkeypatch):
    # A proxy that nobody listens to would be asked; without one the host's name is not found.
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr(socket, "getaddrinfo", no_host)
    with pytest.raises(FileNotFoundError, match=r"'mnist'.*tfds build mnist") as raised:
        open_tfds(SourceConfig("tfds:mnist", data_dir=str(tmp_path)), "mnist")
    assert len(str(raised.value).splitlines()) == 1


def squared_error(params: dict, packed: dict) -> dict[str, float]:
    """Of every ternary weight, by its path."""
    params, packed = (flatten_dict(tree, sep="/") for tree in (params, packed))
    return {
        path: float(np.square(np.asarray(params[path]) - np.asarray(leaf.dequantize())).sum())
        for path, leaf in packed.items()
        if isinstance(leaf, TernaryTensor)
    }


def test_export_names_the_estimators_and_the_flags_that_are_missing(tmp_path):
    unknown, several = run_forked(
        "export", ["--workdir=x", "--out=y", "--estimator=z"], [], cwd=tmp_path
    )
    assert "optimal" in one_line(unknown)
    assert all(flag in one_line(several) for flag in ("--workdir", "--out"))


@pytest.mark.slow
def test_export_takes_the_estimator_of_least_error_and_says_so(tmp_path):
    tiny.write_workdir(tmp_path / "float")
    flags = ["--workdir=float", "--policy=blocks"]
    default, twn = run_forked(
        "export",
        [*flags, "--out=default"],
        [*flags, "--out=twn", "--estimator=twn"],
        cwd=tmp_path,
    )
    assert (default[0], twn[0]) == (0, 0), (default, twn)
    assert "--estimator=optimal" in default[1]
    assert "--estimator" not in twn[1]
    weights = {name: load_packed(tmp_path / name)[1] for name in ("default", "twn")}
    error = {name: squared_error(tiny.params(), packed) for name, packed in weights.items()}
    assert all(error["default"][path] < error["twn"][path] for path in error["twn"])


def test_a_picture_is_classified_by_the_demo_model(tmp_path):
    (tmp_path / "red.png").write_bytes(tiny.png(tiny.square("red")))
    # Where there is no chip, the choice of the CPU is none that a plugin warns of.
    answer, missing = run_forked(
        "classify", ["red.png"], ["absent.png"], cwd=tmp_path, platforms=None
    )
    code, text, note = answer
    assert code == 0, note
    assert "airplane" in text
    assert "demo model" in one_line((1, text, note))
    code, _, message = missing
    assert code == 1
    assert "absent.png" in message


def test_the_demo_shows_its_pictures_and_what_to_do_next(tmp_path):
    ((code, text, errors),) = run_forked("demo", [], cwd=tmp_path)
    assert code == 0, errors
    assert all(f"{name}.jpg" in text for name in ("airplane", "ship", "truck"))
    assert "tclip classify" in text


@pytest.mark.parametrize(
    ("plugins", "libtpu", "devices", "variables", "expected"),
    [
        ((), False, (), {}, False),
        (("cuda",), False, (), {}, True),
        ((), True, (), {}, False),
        ((), True, ("/dev/accel0",), {}, True),
        ((), True, ("/dev/vfio/0",), {}, True),
        # The container of every VFIO driver, whatever the device.
        ((), True, ("/dev/vfio/vfio",), {}, False),
        ((), True, (), {"TPU_WORKER_ID": "0"}, True),
    ],
)
def test_the_cpu_is_chosen_where_there_is_no_chip(
    plugins, libtpu, devices, variables, expected, monkeypatch
):
    monkeypatch.delenv("TPU_WORKER_ID", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: libtpu or None)
    monkeypatch.setattr(glob, "glob", lambda pattern: fnmatch.filter(devices, pattern))
    assert jax_defaults.has_accelerator() == expected


def test_without_a_home_a_command_runs_and_says_what_it_does_not_keep(tmp_path, monkeypatch):
    for variable in ("HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)

    def unknown(*_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert jax_defaults.compilation_cache()[0] is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert jax_defaults.compilation_cache()[0] is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert jax_defaults.compilation_cache()[0] == str(tmp_path / ".cache/tclip/xla")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "kept"))
    assert jax_defaults.compilation_cache()[0] == str(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


def test_what_is_not_kept_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(SystemExit):
        run_command("evaluate", ["--help"])
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(tmp_path / "file") in message
    assert "JAX_COMPILATION_CACHE_DIR" in message


@pytest.mark.skipif(engine.unavailable() != "", reason="the engine was not built")
def test_the_demo_needs_no_jax(tmp_path):
    script = "from tclip.cli.main import run_command; run_command('demo', [])"
    absent = f"import sys; sys.modules.update(jax=None); {script}"
    process = subprocess.run([sys.executable, "-c", absent], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "airplane" in process.stdout


def test_the_home_of_nobody_is_one_line(tmp_path):
    (absent,) = run_forked("evaluate", ["--model=~nobody-of-this-name/x"], cwd=tmp_path)
    assert "~nobody-of-this-name/x" in one_line(absent)
