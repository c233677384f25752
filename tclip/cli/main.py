"""The console script `tclip`: a command by its name, its help, and what it needs installed."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import tclip
from tclip.cli.jax_defaults import set_jax_defaults

# Name -> (what it does, the extra that it needs installed besides the base requirements).
COMMANDS = {
    "demo": ("show the demo model at work", ""),
    "classify": ("say which of some labels fits an image best", ""),
    "export": ("write a trained or float model as the folder that ships", ""),
    "evaluate": ("measure zero-shot classification and retrieval", "train"),
    "train": ("train or distil a model", "train"),
    "sweep": ("train a recipe at every point of its sweep", "train"),
    "cache_teacher": ("store a teacher's embeddings to train from", "train"),
    "compile": ("plan a run on TPUs, without a TPU", "train,tpu"),
    "report": ("compare teacher and student, with plots", "train,report"),
    "bench": ("run a benchmark", "train"),
}


def main() -> None:
    """The entry point of the console script: tclip COMMAND [ARGUMENT ...]."""
    first, *rest = sys.argv[1:] or ["--help"]
    if first == "--version":
        print(f"tclip {tclip.__version__}")
    elif first in ("--help", "-h", "help"):
        print(usage())
    elif first.replace("-", "_") in COMMANDS:
        run_command(first.replace("-", "_"), rest)
    else:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? See" if near else "see"
        print(f"tclip: error: no command {first!r}; {hint} tclip --help", file=sys.stderr)
        sys.exit(1)


def usage() -> str:
    """What `tclip --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {description}" for name, (description, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tclip COMMAND [ARGUMENT ...]",
            "       tclip COMMAND --help",
            "       tclip --version",
            "",
            "commands:",
            *lines,
        ]
    )


def run_command(name: str, arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code.

    Args:
      name: in `COMMANDS`.
      arguments: what follows the name; those of the process by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    extras = COMMANDS[name][1]
    not_kept = set_jax_defaults()
    try:
        app = importlib.import_module("tclip.cli.app")
        command = importlib.import_module(f"tclip.cli.{name}")
    except ModuleNotFoundError as error:
        if not extras or (error.name or "").startswith("tclip"):
            raise
        print(
            f"tclip {name}: error: {error.name} is not installed: pip install 'tclip[{extras}]'",
            file=sys.stderr,
        )
        sys.exit(1)
    if not_kept and "jax" in sys.modules:
        message = f"compiled programs are not kept ({not_kept}): set JAX_COMPILATION_CACHE_DIR"
        print(message, file=sys.stderr)
    app.run(name, command, arguments)
