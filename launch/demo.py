"""The command `tclip demo`: see tclip/cli/demo.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("demo")
