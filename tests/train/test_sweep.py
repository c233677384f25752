"""Sweeps: points are checked before anything runs, and the commands mean what the points say."""

import csv
import json
import re
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from tclip.run.experiment import default_config, experiment_from_config
from tclip.train.loop import RESULT_FILE
from tclip.train.sweep import execute, plan, run_name, write_results

POINTS = [
    {"optim.lr": 3e-4, "quant.policy": "all"},
    {"optim.lr": 1e-3, "quant.policy": r"vision/.*kernel, text/.*kernel"},
    {"preprocess.train_scale": (0.5, 1.0), "preprocess.flip": True, "train.steps": 7_000},
    {},
]


def make_plan(tmp_path, points=POINTS):
    return plan(default_config(), points, "configs/x.py:arg", tmp_path)


def finish(run, **result):
    run.workdir.mkdir(parents=True)
    (run.workdir / RESULT_FILE).write_text(json.dumps(result))


def test_the_commands_give_the_experiments_of_the_points(tmp_path, monkeypatch):
    config_file = tmp_path / "x.py"
    config_file.write_text(
        "from tclip.run.experiment import default_config\n"
        "def get_config(arg):\n  return default_config()\n"
    )
    runs = plan(default_config(), POINTS, f"{config_file}:arg", tmp_path)
    for run, point in zip(runs, POINTS, strict=True):
        assert run.command[:3] == (sys.executable, "-m", "launch.train")
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        # config_flags reads the overrides from the command line of the process.
        monkeypatch.setattr(sys, "argv", ["launch.train", *run.command[3:]])
        values(sys.argv)
        expected = default_config()
        expected.update_from_flattened_dict(point)
        assert experiment_from_config(values.config) == experiment_from_config(expected)
        assert values.workdir == str(run.workdir)


def test_workdirs_depend_on_the_overrides_alone(tmp_path):
    names = [run.workdir.name for run in make_plan(tmp_path)]
    assert names[0] == "optim.lr=0.0003,quant.policy=all"
    assert names[3] == "base"
    assert names == [run.workdir.name for run in make_plan(tmp_path)]
    assert run_name({"b": 1, "a": 2}) == run_name({"a": 2, "b": 1})


def test_names_are_safe_and_differ_where_points_do():
    points = [{"x": "a/b"}, {"x": "a_b"}, {"x": "a:b"}, {"x": "../.."}, {"x": "y" * 300}]
    points.append({"x": "y" * 299 + "z"})
    names = [run_name(point) for point in points]
    assert len(set(names)) == len(points)
    assert all("/" not in name and len(name) <= 120 for name in names)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"optim.lrr": 1.0}, r"sweep point 1: config\.optim\.lrr: unknown key; did you mean 'lr'"),
        ({"optim.lr.x": 1.0}, r"sweep point 1: 'optim\.lr\.x': unknown key"),
        ({"nothing": 1.0}, r"sweep point 1: config\.nothing: unknown key"),
        ({"optim": {"lr": 1.0}}, r"sweep point 1: 'optim' is a group"),
        ({"optim.lr": "fast"}, r"sweep point 1: config\.optim\.lr: expected float"),
        ({"train.steps": 1.5}, r"sweep point 1: config\.train\.steps: expected int"),
        ({"quant.estimator": "best"}, "sweep point 1: config.quant: unknown estimator"),
        ({}, "sweep point 1: the same overrides"),
    ],
)
def test_a_wrong_point_is_refused_by_number(tmp_path, point, message):
    with pytest.raises(ValueError, match=message):
        make_plan(tmp_path, [{}, point])


def test_a_sweep_without_points_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no points"):
        make_plan(tmp_path, [])


def test_runs_go_on_past_failures_and_skip_what_is_finished(tmp_path):
    runs = make_plan(tmp_path)
    finish(runs[0], **{"step": 5, "eval/zeroshot_top1": 0.5})
    started = []

    def call(command):
        started.append(command)
        if command == runs[1].command:
            return 1
        if command == runs[2].command:
            finish(runs[2], step=5, **{"eval/zeroshot_top1": 0.75})
        return 0  # and the last one says it is fine but has no result

    outcomes = execute(runs, call)
    assert outcomes == ["skipped", "failed", "finished", "failed"]
    assert started == [run.command for run in runs[1:]]

    table = write_results(runs, outcomes, tmp_path)
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["status"] for record in records] == outcomes
    assert [record.get("eval/zeroshot_top1") for record in records] == [0.5, None, 0.75, None]
    assert records[0]["optim.lr"] == 3e-4
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["eval/zeroshot_top1"] for row in rows] == ["0.5", "", "0.75", ""]
    assert [row["run"] for row in rows] == [run.workdir.name for run in runs]
    assert "0.75" in table
    assert "failed" in table


def test_a_launcher_stands_before_each_command_with_a_name_of_the_run(tmp_path):
    launcher = ("sh/slurm.sh", "train", "--name={name}", "--nodes=1", "--")
    plain = make_plan(tmp_path)
    runs = plan(default_config(), POINTS, "configs/x.py:arg", tmp_path, launcher)
    names = [run.command[2].removeprefix("--name=") for run in runs]
    assert len(set(names)) == len(runs)
    assert all(re.fullmatch("[a-z][a-z0-9-]{0,39}", name) for name in names)
    for run, here, name in zip(runs, plain, names, strict=True):
        assert run.command[:5] == ("sh/slurm.sh", "train", f"--name={name}", "--nodes=1", "--")
        # The interpreter is that of the machine where it runs.
        assert run.command[5:] == ("python", *here.command[1:])
    # Names depend on the folder of the run, not on its place in the sweep.
    again = plan(default_config(), POINTS[1:], "configs/x.py:arg", tmp_path, launcher)
    assert [run.command for run in again] == [run.command for run in runs[1:]]


def test_what_a_launcher_took_is_queued_until_it_has_a_result(tmp_path):
    runs = make_plan(tmp_path)
    finish(runs[0], step=5)

    def call(command):
        if command == runs[1].command:
            finish(runs[1], step=5)  # a launcher that waits for the end
        return int(command == runs[2].command)

    outcomes = execute(runs, call, queued=True)
    assert outcomes == ["skipped", "finished", "failed", "queued"]
    write_results(runs, outcomes, tmp_path)
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record.get("step") for record in records] == [5, 5, None, None]
