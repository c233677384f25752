"""The benchmark of the index, through its command line."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*args):
    command = [sys.executable, "-m", "launch.bench", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_table_and_figures(tmp_path):
    out = tmp_path / "figures.json"
    done = bench("index", "--samples=5000", "--shards=7", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "5000 samples in 7 shards" in done.stdout
    figures = json.loads(out.read_text())
    assert (figures["samples"], figures["shards"]) == (5000, 7)
    for name in ("first", "later", "visited"):
        assert figures[name]["seconds"] > 0
        assert figures[name]["peak_bytes"] > 2**20


def test_wrong_names_and_flags_are_refused():
    for args, message in (
        ([], "name one benchmark: encoder, engine, "),
        (["nothing"], "no benchmark 'nothing'; there are encoder, engine, "),
        (["index", "--layers=2"], "Unknown command line flag 'layers'"),
    ):
        done = bench(*args)
        assert done.returncode == 1
        assert message in done.stderr
