"""The command `tclip export`: see tclip/cli/export.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("export")
