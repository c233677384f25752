"""What tpu_vm.sh sends to a worker is run, as far as that goes without the machines it is for.

ssh is a shell on this machine, a worker is a home folder. The command is a program that writes down
its arguments.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.commands import COMMAND, ROOT, make_environment, started, wait_for
from tests.helpers.stand_ins import LAUNCH, RECORDER, make_stand_ins

TPU = ("--name=run", "--zone=z")
MOUNT = (
    "gcsfuse --implicit-dirs --metadata-cache-ttl-secs=60 --metadata-cache-negative-ttl-secs=0 "
    "--rename-dir-limit=0 b /mnt/b"
)

# As gcloud's own code does: the command is split at spaces, and ssh joins it with spaces. sshd
# hands the line to the user's shell.
GCLOUD = f"""#!{sys.executable} -ES
import os, shutil, subprocess, sys
home = os.environ["WORKER"]
verb = sys.argv[4]
if verb == "describe":
    print("ACTIVE")
if verb == "scp":
    shutil.copy(sys.argv[5], home)
if verb == "ssh":
    (command,) = [word[10:] for word in sys.argv if word.startswith("--command=")]
    line = " ".join(command.split(" "))
    environment = {{**os.environ, "HOME": home}}
    sys.exit(subprocess.call(["bash", "-c", line], cwd=home, env=environment))
"""


@pytest.fixture
def stand_ins(tmp_path):
    return make_stand_ins(tmp_path / "bin")


@pytest.fixture
def worker(tmp_path, stand_ins):
    """The home of a worker, with tclip installed by the launcher; the bucket cannot be mounted."""
    home = tmp_path / "worker"
    make_environment(home / "tclip", "tpu")
    stand_ins.script("gcloud", GCLOUD)
    stand_ins.record("sudo", "curl", "lsb_release", "gcsfuse", "mountpoint")
    stand_ins.reply("mountpoint", code=1)
    done = stand_ins.launch("tpu_vm", "install", *TPU, "--bucket=b", WORKER=str(home))
    assert done.returncode == 0, done.stderr
    yield home
    (home / "go").write_text("0")  # ends what a test left running


def on_worker(worker, *args, path="/usr/bin:/bin"):
    return subprocess.run(
        [worker / "tclip/launch/worker.sh", *args],
        env={"PATH": path, "HOME": str(worker)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_install_unpacks_tclip_and_mounts_the_bucket(worker, stand_ins):
    for name in ("launch/train.py", "tclip/train/loop.py", "configs/shapes.py", "Dockerfile"):
        assert (worker / "tclip" / name).read_bytes() == (ROOT / name).read_bytes()
    assert not (worker / "tclip.tgz").exists()
    folder, owner, mount = stand_ins.calls()[-3:]
    assert folder == ["sudo", "mkdir", "-p", "/mnt/b"]
    assert owner[:2] == ["sudo", "chown"]
    assert " ".join(mount) == MOUNT


def test_install_brings_what_a_new_slice_lacks(tmp_path, stand_ins):
    home = tmp_path / "worker"
    home.mkdir()
    stand_ins.script("gcloud", GCLOUD)
    # Python 3.10, of which uv gets a newer one, that makes the environment.
    stand_ins.record("python3", "curl", "lsb_release", "pip")
    stand_ins.reply("-c", code=1)
    stand_ins.reply("find", f"{stand_ins.folder}/python3.12\n")
    stand_ins.reply("-cs", "jammy\n")
    stand_ins.script(
        "python3.12",
        f"""#!/bin/bash
[[ "$1 $2" == "-m venv" ]] || exit 0
mkdir -p "$3/bin"
printf '#!/bin/bash\nexec {stand_ins.folder}/pip "$@"\n' | tee "$3/bin/pip" >"$3/bin/python"
chmod +x "$3"/bin/*
""",
    )
    # No gcsfuse until apt-get installs it.
    stand_ins.script(
        "sudo",
        f"""{RECORDER}
if "tee" in call:
    sys.stdin.read()
if call[-2:] == ["install", "gcsfuse"]:
    import shutil
    shutil.copy(sys.argv[0], folder + "/gcsfuse")
""",
    )
    done = stand_ins.launch("tpu_vm", "install", *TPU, "--bucket=b", WORKER=str(home))
    assert done.returncode == 0, done.stderr
    calls = [" ".join(call) for call in stand_ins.calls()]
    site = "https://packages.cloud.google.com/apt"
    assert calls.index(f"curl -fsSL {site}/doc/apt-key.gpg") < calls.index(
        "sudo apt-get -qq -o DPkg::Lock::Timeout=600 install gcsfuse"
    )
    assert MOUNT in calls
    uv = calls.index("python3 -m pip install --quiet --user uv")
    assert calls[uv + 1 :] == [
        "python3 -m uv python install 3.12",
        "python3 -m uv python find 3.12",
        "pip -m pip install --quiet --disable-pip-version-check -e .[tpu]",
    ]
    assert (home / "tclip/.venv/installed-tpu").exists()


def test_install_fails_where_gcloud_did_not_copy(worker, stand_ins):
    stand_ins.script("gcloud", GCLOUD.replace("shutil.copy", "print"))
    done = stand_ins.launch("tpu_vm", "install", *TPU, WORKER=str(worker))
    assert done.returncode == 2
    assert "tclip.tgz" in done.stderr


def test_train_on_a_worker_gets_its_arguments_and_ends_with_its_code(worker, stand_ins):
    (worker / "go").write_text("75")
    done = stand_ins.launch("tpu_vm", "train", *TPU, "--", *COMMAND, WORKER=str(worker))
    assert done.returncode == 75, done.stderr
    assert started(worker) == [list(COMMAND[1:])]
    assert done.stdout.splitlines()[-2:] == ["training /mnt/b/.cache/tclip", "trained"]
    # The same again: what has ended is started, with a log of its own.
    (worker / "go").write_text("0")
    done = stand_ins.launch("tpu_vm", "train", *TPU, "--", *COMMAND, WORKER=str(worker))
    assert done.returncode == 0, done.stderr
    assert len(started(worker)) == 2


def test_the_command_outlives_what_started_it_and_runs_once(worker, stand_ins):
    session = subprocess.Popen(
        [LAUNCH / "tpu_vm.sh", "train", *TPU, "--", *COMMAND],
        env=stand_ins.environment(WORKER=str(worker)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    started(worker)
    wait_for((worker / ".tclip-run/pid").exists)
    os.killpg(session.pid, signal.SIGTERM)
    session.communicate(timeout=30)
    assert session.returncode != 0

    # Half a minute is long for a test.
    stand_ins.script("flock", f'#!/bin/bash\nexec {shutil.which("flock")} "${{@/#30/0.1}}"\n')
    path = f"{stand_ins.folder}:/usr/bin:/bin"
    again = on_worker(worker, "start", *COMMAND, path=path)
    assert (again.returncode, again.stdout) == (0, "runs already\n")
    other = on_worker(worker, "start", "python", "other.py", path=path)
    assert other.returncode == 2
    assert "worker: error: busy with another command: python -m launch.train" in other.stderr

    (worker / "go").write_text("3")
    done = stand_ins.launch("tpu_vm", "logs", *TPU, WORKER=str(worker))
    assert done.returncode == 3
    assert done.stdout.splitlines()[-2:] == ["training /mnt/b/.cache/tclip", "trained"]
    assert len(started(worker)) == 1
    # What has ended is shown again.
    assert on_worker(worker, "follow").returncode == 3


def test_a_start_waits_for_a_run_that_is_ending(worker):
    assert on_worker(worker, "start", *COMMAND).returncode == 0
    started(worker)
    second = subprocess.Popen(
        [worker / "tclip/launch/worker.sh", "start", *COMMAND],
        env={"PATH": "/usr/bin:/bin", "HOME": str(worker)},
    )
    time.sleep(0.3)
    assert second.poll() is None
    (worker / "go").write_text("0")
    assert second.wait(timeout=30) == 0
    assert len(started(worker, times=2)) == 2


def test_a_killed_command_is_no_success(worker):
    assert on_worker(worker, "follow").returncode == 2
    (worker / "go").write_text("0")
    assert on_worker(worker, "start", *COMMAND).returncode == 0
    assert on_worker(worker, "follow").returncode == 0
    (worker / "go").unlink()
    assert on_worker(worker, "start", *COMMAND).returncode == 0
    started(worker, times=2)
    os.killpg(int((worker / ".tclip-run/pid").read_text()), signal.SIGKILL)
    done = on_worker(worker, "follow")
    assert done.returncode == 128 + signal.SIGKILL
    assert "the command left no exit code" in done.stderr
