"""What launchers of jobs send is run, as far as that goes without the machines they are for.

Slurm is a few lines of shell. The command is a program that writes down its arguments.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers.commands import COMMAND, PYTHON, ROOT, make_environment, started
from tests.helpers.stand_ins import LAUNCH, make_stand_ins


@pytest.fixture
def stand_ins(tmp_path):
    return make_stand_ins(tmp_path / "bin")


def test_gke_runs_the_arguments_and_passes_signals_on(tmp_path, stand_ins):
    stand_ins.record("xpk")
    stand_ins.script("python", PYTHON)
    flags = ("--name=run", "--cluster=c", "--docker-image=i", "--tpu-type=v5litepod-16")
    assert stand_ins.launch("gke", "train", *flags, "--", *COMMAND).returncode == 0
    (call,) = stand_ins.calls()
    line = call[-1].removeprefix("--command=")
    assert "\n" not in line  # it becomes a line of an indented block of yaml
    # Kubernetes: $$ is $; $(NAME) is a variable, left alone if there is none of that name.
    expanded = re.sub(r"\$(\$|\([^)]*\))", lambda m: "$" if m[1] == "$" else "EXPANDED", line)
    # xpk: the line runs in the background, and SIGTERM is sent to it.
    container = subprocess.Popen(
        ["bash", "-c", f"trap 'kill -SIGTERM $!' SIGTERM; ({expanded}) & wait $!; wait $!"],
        env=stand_ins.environment(HOME=str(tmp_path)),
    )
    assert started(tmp_path) == [list(COMMAND[1:])]
    container.terminate()
    assert container.wait(timeout=30) == 75


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        (75, "RUNNING", True),
        (75, "CANCELLED", False),
        (75, "COMPLETING", False),
        (0, "RUNNING", False),
        (1, "RUNNING", False),
    ],
)
def test_a_slurm_job_goes_back_into_the_queue_if_it_saved(
    tmp_path, stand_ins, code, state, requeued
):
    shutil.copytree(LAUNCH, tmp_path / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    make_environment(tmp_path, "cuda")
    (tmp_path / "go").write_text(str(code))
    stand_ins.script("srun", '#!/bin/bash\n[[ "$1 $2" == --*=*" "--*=* ]] && "${@:3}"\n')
    stand_ins.record("squeue", "scontrol")
    stand_ins.reply("squeue", f"{state}\n")
    job = subprocess.run(
        ["bash", LAUNCH / "slurm_job.sh", *COMMAND],
        cwd=tmp_path,
        env=stand_ins.environment(HOME=str(tmp_path), SLURM_JOB_ID="12"),
        timeout=60,
    )
    assert job.returncode == code
    assert started(tmp_path) == [list(COMMAND[1:])]
    assert (["scontrol", "requeue", "12"] in stand_ins.calls()) == requeued


def test_a_sweep_goes_through_a_launcher(tmp_path, stand_ins):
    stand_ins.record("sbatch", "mkdir")
    stand_ins.reply("--config.train_data.source=wds:{0..9}.tar", code=5)
    config = tmp_path / "x.py"
    config.write_text(
        "from tclip.run.experiment import default_config\n"
        "get_config = default_config\n"
        "def sweep():\n"
        "  yield {'optim.lr': 0.5}\n"
        "  yield {'optim.lr': 0.25}\n"
        "  yield {'train_data.source': 'wds:{0..9}.tar'}\n"
        "  yield {}\n"
    )
    workdir = tmp_path / "sweep"
    (workdir / "base").mkdir(parents=True)
    (workdir / "base/result.json").write_text('{"step": 3}')
    launcher = f"{LAUNCH}/slurm.sh train --name={{name}} --nodes=1 --gpus-per-node=8 --"
    flags = (f"--config={config}", f"--workdir={workdir}", "--execute", f"--launcher={launcher}")
    done = subprocess.run(
        [sys.executable, "-m", "launch.sweep", *flags],
        cwd=ROOT,
        env=stand_ins.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr  # one was refused
    calls = [call for call in stand_ins.calls() if call[0] == "sbatch"]
    assert len({call[1] for call in calls}) == 3
    assert all(re.fullmatch("--job-name=point-[0-9a-f]{12}", call[1]) for call in calls)
    commands = [call[call.index(f"{ROOT}/launch/slurm_job.sh") + 1 :] for call in calls]
    train = ["python", "-m", "launch.train", f"--config={config}"]
    assert commands == [
        [*train, f"--workdir={workdir}/optim.lr=0.5", "--config.optim.lr=0.5"],
        [*train, f"--workdir={workdir}/optim.lr=0.25", "--config.optim.lr=0.25"],
        [*train, commands[2][4], "--config.train_data.source=wds:{0..9}.tar"],
    ]
    records = json.loads((workdir / "results.json").read_text())
    assert [record["status"] for record in records] == ["queued", "queued", "failed", "skipped"]
