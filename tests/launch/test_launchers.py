"""Launchers: the exact calls they make, and what they refuse.

Nothing here reaches Google Cloud or a Slurm cluster: programs that record their calls stand in.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.stand_ins import (
    AWKWARD,
    LAUNCH,
    PACK,
    SLICE,
    TPU,
    TRAIN,
    make_recorders,
    printed_calls,
)

ROOT = LAUNCH.parent
GKE = ("--name=run", "--cluster=c", "--zone=z", "--project=p")
IMAGE = "--docker-image=us-docker.pkg.dev/p/r/tclip"
SLURM = ("--name=run", "--nodes=2", "--gpus-per-node=h100:8")
EVERY_CALL = [
    ("tpu_vm", "create", *SLICE),
    ("tpu_vm", "create", *SLICE, "--node-count=4", "--spot", "--project=p", "--network=n"),
    ("tpu_vm", "install", *TPU, "--bucket=b", "--tunnel-through-iap"),
    ("tpu_vm", "train", *TPU, "--internal-ip", "--", *TRAIN, *AWKWARD),
    ("tpu_vm", "logs", *TPU, "--node=1", "--worker=7"),
    ("tpu_vm", "resume", *SLICE, "--spot", "--bucket=b", "--", *TRAIN, *AWKWARD),
    ("tpu_vm", "delete", *TPU),
    ("gke", "install", *GKE[1:], IMAGE, "--bucket=b"),
    ("gke", "train", *GKE, IMAGE, "--tpu-type=v5litepod-256", "--", *TRAIN, *AWKWARD),
    ("gke", "resume", *GKE, IMAGE, "--tpu-type=v5litepod-256", "--num-slices=2", "--", *TRAIN),
    ("gke", "logs", *GKE),
    ("gke", "delete", *GKE),
    ("slurm", "install"),
    ("slurm", "train", *SLURM, "--time=1:00:00", "--", *TRAIN, *AWKWARD),
    ("slurm", "logs", "--name=run"),
    ("slurm", "delete", "--name=run"),
]


@pytest.fixture
def stand_ins(tmp_path):
    return make_recorders(tmp_path / "bin")


@pytest.mark.parametrize("call", EVERY_CALL, ids=lambda call: "-".join(call[:2]))
def test_dry_run_prints_exactly_what_runs(stand_ins, call):
    script, subcommand, *args = call
    dry = stand_ins.launch(script, subcommand, "--dry-run", *args)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert stand_ins.calls() == []
    # A dry run of resume supposes a slice that was preempted, all others one that is there.
    stand_ins.states(*(["SUSPENDED"] if subcommand == "resume" else []), "ACTIVE")
    real = stand_ins.launch(script, subcommand, *args)
    assert real.returncode == 0, real.stderr
    assert printed_calls(dry.stdout) == stand_ins.calls()
    assert len(stand_ins.calls()) >= 1


def test_gke_calls(stand_ins):
    where = ["--cluster=c", "--zone=z", "--project=p"]
    create = [
        *("xpk", "workload", "create", "--workload=run", *where, IMAGE, "--max-restarts=100"),
        *("--restart-on-exit-codes=75", "--termination-grace-period-seconds=300"),
    ]
    command = f"--command=exec {' '.join(TRAIN)}"
    caches = (
        "--env=TCLIP_DATA_DIR=/mnt/b/.cache/tclip",
        "--env=JAX_COMPILATION_CACHE_DIR=/mnt/b/.cache/tclip/xla",
    )
    image = IMAGE.removeprefix("--docker-image=")
    selector = (
        "jobset.sigs.k8s.io/jobset-name=run,jobset.sigs.k8s.io/job-index=0,"
        "batch.kubernetes.io/job-completion-index=0"
    )
    for call in (
        ("install", *GKE[1:], IMAGE, "--bucket=b"),
        ("train", *GKE, IMAGE, "--bucket=b", "--tpu-type=v5litepod-256", "--", *TRAIN),
        ("logs", *GKE),
        ("resume", *GKE, IMAGE, "--tpu-type=v5litepod-256", "--", *TRAIN),
        ("delete", *GKE),
    ):
        assert stand_ins.launch("gke", *call).returncode == 0
    assert stand_ins.calls() == [
        *PACK,
        ["gcloud", "builds", "submit", "dist/tclip.tgz", f"--tag={image}", "--project=p"],
        [
            *("xpk", "storage", "attach", "b", *where, "--type=gcsfuse", "--mount-point=/mnt/b"),
            *("--readonly=false", "--auto-mount=true", "--size=1000"),
            "--mount-options=implicit-dirs,metadata-cache:ttl-secs:60,"
            "metadata-cache:negative-ttl-secs:0,file-system:rename-dir-limit:0",
        ],
        [*create, *caches, "--tpu-type=v5litepod-256", command],
        ["xpk", "workload", "list", *where, "--filter-by-job=run"],
        ["kubectl", "logs", "--follow", "--tail=-1", "--all-containers", f"--selector={selector}"],
        [*create, "--tpu-type=v5litepod-256", "--quiet", command],
        ["xpk", "workload", "delete", "--workload=run", *where],
    ]


def test_slurm_calls(stand_ins):
    train = stand_ins.launch("slurm", "train", *SLURM, "--time=9", "--", *TRAIN, *AWKWARD)
    assert train.returncode == 0, train.stderr
    assert stand_ins.launch("slurm", "delete", "--name=run").returncode == 0
    logs = f"{ROOT}/runs/slurm"
    assert stand_ins.calls() == [
        ["mkdir", "-p", logs],
        [
            *("sbatch", "--job-name=run", "--dependency=singleton", "--requeue"),
            *("--signal=TERM@300", f"--chdir={ROOT}", f"--output={logs}/run.log"),
            *("--open-mode=append", "--ntasks-per-node=8", "--nodes=2", "--gpus-per-node=h100:8"),
            *("--time=9", f"{ROOT}/launch/slurm_job.sh", *TRAIN, *AWKWARD),
        ],
        ["scancel", "--me", "--name=run"],
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("tpu_vm",), "unknown subcommand ''; there are: create install train logs resume delete"),
        (("tpu_vm", "start", *TPU), "unknown subcommand 'start'"),
        (("tpu_vm", "create train", *TPU), "unknown subcommand 'create train'"),
        (("gke", "create", *GKE), "unknown subcommand 'create'; there are: install"),
        (("tpu_vm", "create", "--name=run"), "--zone=... is missing"),
        (("tpu_vm", "create", "--zone=z"), "--name='': give up to 40"),
        (("tpu_vm", "create", "--zone=z", "--name=Run_1"), "--name='Run_1': give up to 40"),
        (("tpu_vm", "create", *TPU), "--accelerator-type=... is missing"),
        (("tpu_vm", "create", *TPU, "--accelerator-type=v9-1"), "--runtime-version=... is missing"),
        (("tpu_vm", "create", *SLICE, "--node-count=two"), "--node-count=two"),
        (("tpu_vm", "create", *SLICE, "--", "python"), "create takes no command"),
        (("tpu_vm", "create", "--name", "run"), "unexpected argument 'run'"),
        (("tpu_vm", "train", *TPU), "no command: give it behind --"),
        (("tpu_vm", "train", *TPU, "--spot", "--", *TRAIN), "train has no flag --spot"),
        (("tpu_vm", "install", *TPU, "--bucket=gs://b"), "--bucket=gs://b: give the name"),
        (("tpu_vm", "resume", *TPU, "--", *TRAIN), "--accelerator-type=... is missing"),
        (
            ("tpu_vm", "train", *TPU, "--", "python", "--workdir=runs/x"),
            "--workdir=runs/x: give an absolute path",
        ),
        (("gke", "train", "--name=run", "--", *TRAIN), "--cluster=... is missing"),
        (("gke", "train", *GKE, "--", *TRAIN), "--docker-image=... is missing"),
        (("gke", "logs", *GKE, "--follow"), "logs has no flag --follow"),
        (("slurm", "train", "--name=run", "--", *TRAIN), "--gpus-per-node=... is missing"),
        (("slurm", "train", *SLURM, "--gpus-per-node=all", "--", *TRAIN), "--gpus-per-node=all"),
        (("slurm", "logs", "--name=run", "--nodes=2"), "logs has no flag --nodes=2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_refused_in_one_line_before_anything_runs(stand_ins, call, message):
    done = stand_ins.launch(*call)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{call[0]}: error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert (done.stdout, stand_ins.calls()) == ("", [])


@pytest.mark.parametrize("script", ["tpu_vm", "gke", "slurm"])
def test_help_is_the_comment_of_the_script(stand_ins, script):
    done = stand_ins.launch(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script}.sh train" in done.stdout
    assert "pipefail" not in done.stdout


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or "shellcheck"
    scripts = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci/run"]
    assert len(scripts) >= 9
    done = subprocess.run([shellcheck, *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
