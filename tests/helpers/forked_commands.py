"""Runs a command of tclip with several argument lists, each in a fork of one process.

python -m tests.helpers.forked_commands NAME JSON, a list of argument lists, prints a JSON list of
[exit code, stdout, stderr]. What the command imports, most of its time, is imported once; nothing
has started a thread of jax when it forks.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tclip.cli.jax_defaults import set_jax_defaults
from tclip.cli.main import COMMANDS, run_command

ROOT = Path(__file__).parents[2]


def run_forked(
    name: str, *argument_lists: list[str], cwd: Path, platforms: str | None = "cpu"
) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of the command for each list of arguments.

    `platforms` is JAX_PLATFORMS; None leaves the choice to the command.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platforms or ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.forked_commands", name, json.dumps(argument_lists)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(result) for result in json.loads(done.stdout)]


def _fork(name: str, arguments: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (child := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            try:
                run_command(name, arguments)
                code = 0
            except SystemExit as error:
                code = error.code or 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
        return os.waitstatus_to_exitcode(status), *texts


if __name__ == "__main__":
    command, lists = sys.argv[1], json.loads(sys.argv[2])
    assert command in COMMANDS
    set_jax_defaults()
    importlib.import_module("tclip.cli.app")
    importlib.import_module(f"tclip.cli.{command}")
    print(json.dumps([_fork(command, arguments) for arguments in lists]))
