"""Programs to put on PATH in place of gcloud, xpk, sbatch and others, which record their calls."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"

# What shells and yaml could take for something else.
AWKWARD = (
    *("a b", "two  spaces", "it's", 'say "x"', "", "*", "?", "~", "wds:data/{00000..00099}.tar"),
    *("$HOME", "$(date)", "$$", "`date`", "kernel$", "back\\slash", "x;y&z|w#", "-n", "!a", "é"),
)

TRAIN = ("python", "-m", "launch.train", "--config=configs/shapes.py:teacher", "--workdir=/mnt/b/r")
TPU = ("--name=run", "--zone=z")
SLICE = (*TPU, "--accelerator-type=v5litepod-256")
PACK = [
    ["mkdir", "-p", "dist"],
    [
        *("tar", "-czf", "dist/tclip.tgz", "--exclude=__pycache__"),
        *("README.md", "LICENSE", "pyproject.toml", "requirements.txt", "Dockerfile"),
        *("configs", "launch", "tclip"),
    ],
]

RECORDER = f"""#!{sys.executable} -ES
import json, os, sys
folder = os.path.dirname(sys.argv[0])
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(folder + "/calls", "a") as file:
    print(json.dumps(call), file=file)
with open(folder + "/replies") as file:
    replies = json.load(file)
for reply in replies:
    if reply["word"] in call:
        if reply["times"] == 0:
            continue
        if reply["times"]:
            reply["times"] -= 1
            with open(folder + "/replies", "w") as file:
                json.dump(replies, file)
        print(end=reply["out"])
        sys.exit(reply["code"])
"""


@dataclass
class StandIns:
    """A folder of recording programs.

    A program answers by the first reply that has a word of its call, and times left if they are
    counted; without one it prints nothing and exits with 0.
    """

    folder: Path

    def record(self, *names: str) -> None:
        for name in names:
            self.script(name, RECORDER)

    def script(self, name: str, text: str) -> None:
        file = self.folder / name
        file.write_text(text)
        file.chmod(0o755)

    def reply(self, word: str, out: str = "", code: int = 0, times: int | None = None) -> None:
        file = self.folder / "replies"
        reply = {"word": word, "out": out, "code": code, "times": times}
        file.write_text(json.dumps([*json.loads(file.read_text()), reply]))

    def states(self, *values: str) -> None:
        """Has the slices be in these states, one a look; at last they stay in the last one."""
        for value in values[:-1]:
            self.reply("describe", f"{value}\n", times=1)
        self.reply("describe", f"{values[-1]}\n")

    def calls(self) -> list[list[str]]:
        file = self.folder / "calls"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", **variables}

    def launch(self, script: str, *args: str, **variables: str) -> subprocess.CompletedProcess:
        """Runs launch/SCRIPT.sh with the stand-ins first on PATH."""
        return subprocess.run(
            [LAUNCH / f"{script}.sh", *args],
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=60,
        )


def make_stand_ins(folder: Path) -> StandIns:
    folder.mkdir(parents=True)
    (folder / "replies").write_text("[]")
    return StandIns(folder)


def make_recorders(folder: Path) -> StandIns:
    """Of all that launchers call."""
    programs = make_stand_ins(folder)
    programs.record("gcloud", "xpk", "kubectl", "sbatch", "scancel", "scontrol", "squeue")
    programs.record("mkdir", "tar", "sleep", "tail", "env")
    return programs


def printed_calls(output: str) -> list[list[str]]:
    """The calls that --dry-run printed, split as a shell does."""
    return [shlex.split(line) for line in output.splitlines()]
