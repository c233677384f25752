"""The command `tclip bench`: see tclip/cli/bench.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("bench")
