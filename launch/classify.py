"""The command `tclip classify`: see tclip/cli/classify.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("classify")
