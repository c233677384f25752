"""The command `tclip evaluate`: see tclip/cli/evaluate.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("evaluate")
