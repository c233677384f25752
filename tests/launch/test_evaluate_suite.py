"""The suite through a real command line: two models, a damaged data set, and a second run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tclip
from tests.helpers import benchmark_folders as folders
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """Two trained models and four data sets, one of which lacks a shard."""
    where = tmp_path_factory.mktemp("suite")
    for seed in (0, 1):
        tiny.write_workdir(where / f"model{seed}", seed)
    data = where / "data"
    folders.write_dataset(data / "wds_vtab-cifar10", folders.labelled())
    folders.write_dataset(data / "voc2007_multilabel", folders.multilabelled(), "multilabel")
    folders.write_dataset(data / "wds_flickr30k", folders.captioned(), "retrieval")
    folders.write_dataset(data / "wds_mnist", folders.labelled())
    (data / "wds_mnist/test/1.tar").rename(data / "1.tar")
    return where


def evaluate(where, *args, code=0):
    """Returns stdout and stderr of the command in `where`."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "PYTHONPATH": str(ROOT),
        "TCLIP_DATA_DIR": str(where / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(where / "cache/xla"),
    }
    command = [sys.executable, "-m", "launch.evaluate", "--suite=clip_benchmark", *args]
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_two_models_side_by_side_and_what_failed_is_done_later(where):
    models = ["--model=model0", "--model=model1"]
    out, _ = evaluate(where, *models, "--data=data", "--batch_size=8", code=1)
    assert "mnist, model1: failed: data/wds_mnist/test/1.tar is missing" in out
    assert "Missing, 37 of 41: imagenet1k" in out
    assert "vtab/cifar10: 1 unusable samples were skipped" in out
    results = where / "clip_benchmark_results"
    records = json.loads((results / "suite.json").read_text())["results"]
    assert len(records) == 8

    samples = [sample for i, sample in enumerate(folders.labelled()) if i != 4]
    labels = np.array([int(sample["cls"]) for sample in samples])
    for name in ("model0", "model1"):
        model = tclip.load(where / name)
        prompts = [t.replace("{c}", c) for t in folders.TEMPLATES for c in folders.CLASSES]
        classes = sum(np.split(model.encode_text(prompts), 2))
        classes /= np.linalg.norm(classes, axis=1, keepdims=True)
        images = model.encode_image([sample["png"] for sample in samples])
        acc1 = np.mean((images @ classes.T).argmax(axis=1) == labels)
        (record,) = (r for r in records if (r["model"], r["dataset"]) == (name, "vtab/cifar10"))
        assert record["metrics"]["acc1"] == pytest.approx(acc1, abs=1e-6)

    # A killed run leaves whole files of what it measured and at most a part of the next.
    marked = sorted(results.glob("*/vtab-cifar10.json"))
    for file in marked:
        saved = json.loads(file.read_text())
        saved["metrics"]["acc1"] = 0.4321
        file.write_text(json.dumps(saved))
    lost = sorted(results.glob("*/flickr30k.json"))
    assert len(marked) == len(lost) == 2
    lost[0].rename(lost[0].with_name("flickr30k.json.partial"))
    lost[1].write_text(lost[1].read_text()[:50])
    (where / "data/1.tar").rename(where / "data/wds_mnist/test/1.tar")
    out, _ = evaluate(where, *models, "--data=data", "--batch_size=8")
    assert "43.21%" in out
    again = json.loads((results / "suite.json").read_text())["results"]
    for old, new in zip(records, again, strict=True):
        assert not new["error"]
        if new["dataset"] == "vtab/cifar10":
            assert new["metrics"]["acc1"] == 0.4321
        elif new["dataset"] != "mnist":
            assert new == old


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model=model0"], "needs one --data"),
        (["--model=model0", "--data=cache"], "no data set of CLIP_benchmark in cache: expected"),
        (["--model=model0", "--model=nothing", "--data=data"], "nothing"),
    ],
)
def test_what_cannot_run_is_one_line(where, args, message):
    (where / "cache").mkdir(exist_ok=True)
    out, err = evaluate(where, *args, "--out=no", code=1)
    assert err.startswith("evaluate: error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not out


def test_an_unknown_suite_is_told_the_known_one(where):
    _, err = evaluate(where, "--model=model0", "--data=data", "--suite=vtab", code=1)
    assert "clip_benchmark" in err
