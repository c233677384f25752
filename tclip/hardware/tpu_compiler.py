"""The compiler for TPUs, which needs no TPU: the libtpu wheel, in a process of its own.

It takes its options from the environment when it is loaded, and aborts its process over what it
does not know.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

# What an answer is marked with, as the compiler prints too.
_ANSWER = "answer "


def libtpu_version() -> str:
    """Raises ValueError where libtpu is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError('compiling for TPUs needs libtpu: pip install "tclip[tpu]"') from None


def environment() -> dict[str, str]:
    """Environment of a process that compiles by `jax.experimental.topologies` and runs on CPU."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compiling asks for no TPU: neither the metadata server nor the lock of the device.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def ask(module: str, job: Any, who: str) -> Any:
    """Runs a module that reads a job as JSON, and returns what it gives to `answer`.

    Args:
      module: to be run by `python -m`, in the `environment` of the compiler.
      who: subject of the message of the error.

    Raises:
      ValueError: it has ended without an answer.
    """
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment(),
    )
    answers = list(read_answers(done.stdout.splitlines()))
    if not answers:
        raise ValueError(f"{who} ended with code {done.returncode}: {_last_words(done.stderr)}")
    return answers[0]


def answer(value: Any) -> None:
    """Prints what the process that has asked is to read."""
    print("\n" + _ANSWER + json.dumps(value), flush=True)


def read_answers(lines: Iterable[str]) -> Iterator[Any]:
    """Yields what was given to `answer`, from the lines of an output."""
    for line in lines:
        if line.startswith(_ANSWER):
            yield json.loads(line.removeprefix(_ANSWER))


def _last_words(stderr: str) -> str:
    """The line that says most: of a fatal check if there is one, else the last."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"F\d{4} |.*(?:Check failed|Fatal|Error:)", line)]
    return (fatal or lines or ["it says nothing"])[-1][:500]
