"""What the entry points share: errors that a user can mend are one line, not a traceback."""

import logging
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging

from tclip.run.recipe import checked_recipe

# That of an abort, by which jax ends a process that no longer hears from another. Schedulers take
# it for a failure of the machine, after which they start a job again.
LOST = 128 + signal.SIGABRT
INTERRUPTED = 128 + signal.SIGINT


def run(name: str, command: ModuleType, arguments: Sequence[str]) -> NoReturn:
    """Runs the `main(argv)` of a command under absl and exits with its code.

    An error of the input is one line on stderr and the exit code 1; its traceback is shown with
    --verbosity=1. One of several processes that fails otherwise, as where another was lost, exits
    with `LOST`.

    Args:
      command: module with `main`, a docstring that is its help, flags, and where flags depend on
        the arguments a function `define_flags(arguments)`.
    """
    if hasattr(command, "define_flags"):
        command.define_flags(arguments)
    if not {"--help", "-h", "-help"}.isdisjoint(arguments):
        print(describe(command))
        sys.exit(0)

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)  # libraries are talkative
        code = 1
        try:
            return command.main(argv)
        except (ValueError, OSError, FloatingPointError) as error:
            absl_logging.debug("traceback:", exc_info=True)
            print(f"{name}: error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            code = INTERRUPTED
        except Exception:
            if not _is_distributed():
                raise
            traceback.print_exc()
            code = LOST
        if _is_distributed():
            _end_without_the_others(code)
        return code

    try:
        arguments = with_recipes(arguments)
    except (ValueError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(1)
    # Where ml_collections looks for the keys that are overridden.
    sys.argv = [name, *arguments]
    app.run(guarded, flags_parser=_parse_flags)


def describe(command: ModuleType) -> str:
    """The help of a command: its docstring and its flags."""
    values = flags.FLAGS
    own = values.get_key_flags_for_module(command)
    lines = [line for flag in own for line in _flag_lines(flag)]
    return "\n".join([(command.__doc__ or "").strip(), "", "flags:", *lines])


def _flag_lines(flag: flags.Flag) -> list[str]:
    default = "" if flag.default in (None, "", []) else f" (default: {flag.default_as_str})"
    if isinstance(flag.parser, flags.EnumParser):
        default = f" ({'|'.join(flag.parser.enum_values)}){default}"
    text = textwrap.wrap(f"{flag.help}{default}", 92)
    return [f"  --{flag.name}", *(f"      {line}" for line in text)]


def with_recipes(arguments: Sequence[str]) -> list[str]:
    """Replaces the name of a recipe after --config by the path of its file.

    Raises:
      FileNotFoundError: there is no such recipe or file.
      ValueError: it does not have the role that is asked for, or is no recipe.
    """
    resolved, is_config = [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if is_config:
            argument = checked_recipe(argument)
        elif flag == "--config" and equals:
            argument = f"--config={checked_recipe(value)}"
        is_config = argument == "--config"
        resolved.append(argument)
    return resolved


def log_progress() -> None:
    """Sends what tclip says to stderr as plain lines; of other libraries only warnings.

    Of several processes only the first says more than warnings.
    """
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("tclip")
    logger.setLevel(logging.INFO if _is_first() else logging.WARNING)
    logger.addHandler(handler)
    logger.propagate = False


def _is_distributed() -> bool:
    if "jax" not in sys.modules:
        return False
    import jax

    return jax.distributed.is_initialized()


def _is_first() -> bool:
    if not _is_distributed():
        return True
    from tclip.parallel import processes

    return processes.is_main()


def _end_without_the_others(code: int) -> NoReturn:
    """Ends the process at once: the usual way out waits for the others, who wait for this one."""
    import jax

    print(
        f"process {jax.process_index()} of {jax.process_count()} ends, and the others will; "
        "if this is because one was lost, start all processes again",
        file=sys.stderr,
        flush=True,
    )
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        missing = re.findall(r"Flag (--\w+) must have a value other than None", str(error))
        message = f"give {' and '.join(missing)}" if missing else str(error)
    except (AttributeError, KeyError, ValueError, OSError) as error:
        # From a config that has no such key; the message is that of a KeyError, in quotes.
        message = str(error).replace("\\n", ". ").replace("\\'", "").strip("'\"")
    print(f"{argv[0]}: error: {message}; see tclip {argv[0]} --help", file=sys.stderr)
    sys.exit(1)
