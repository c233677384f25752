"""A program in the place of the command that is launched, and what it has written down."""

import json
import sys
import time

from tests.helpers.stand_ins import AWKWARD, LAUNCH

ROOT = LAUNCH.parent
COMMAND = ("python", "-m", "launch.train", "--workdir=/mnt/b/r", *AWKWARD, "new\nline")

# Writes down its arguments, waits for the file "go" beside them, and exits with what is in it.
PYTHON = f"""#!{sys.executable} -ES
import json, os, signal, sys, time
def stop(*_):
    print("saving")
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
home = os.environ["HOME"]
with open(home + "/started", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
print("training", os.environ.get("TCLIP_DATA_DIR"), flush=True)
while not os.path.exists(home + "/go"):
    time.sleep(0.02)
print("trained")
sys.exit(int(open(home + "/go").read()))
"""


def make_environment(folder, extras):
    """An environment that launch/environment.sh takes for installed, with PYTHON as its python."""
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("pip", "python"):
        (folder / ".venv/bin" / name).write_text(PYTHON)
        (folder / ".venv/bin" / name).chmod(0o755)
    requirements = (ROOT / "pyproject.toml").read_text() + (ROOT / "requirements.txt").read_text()
    (folder / f".venv/installed-{extras}").write_text(requirements)


def started(home, times=1):
    """The arguments of each start of the command, once it was started so often."""
    file = home / "started"
    wait_for(lambda: file.exists() and len(file.read_text().splitlines()) >= times)
    return [json.loads(line) for line in file.read_text().splitlines()]


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
