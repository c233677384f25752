"""The command `tclip report`: see tclip/cli/report.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("report")
