"""The command `tclip compile`: see tclip/cli/compile.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("compile")
