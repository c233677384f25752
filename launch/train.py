"""The command `tclip train`: see tclip/cli/train.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("train")
