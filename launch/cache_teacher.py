"""The command `tclip cache_teacher`: see tclip/cli/cache_teacher.py."""

from tclip.cli.main import run_command

if __name__ == "__main__":
    run_command("cache_teacher")
