"""The command `tclip sweep`: see tclip/cli/sweep.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("sweep")
