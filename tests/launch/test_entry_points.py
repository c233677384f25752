"""Every entry point through a real command line, from a workdir to an answer."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import tclip
from tclip.folder_lock import folder_lock
from tclip.models import ClipPolicy
from tclip.quant import ternarize_params
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]


def launch(name, *args, code=0):
    """Returns stdout and stderr of `python -m launch.NAME ARGS` on one device."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", f"launch.{name}", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module", autouse=True)
def own_caches(tmp_path_factory):
    """Keeps compiled programs and indices of data out of the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JAX_COMPILATION_CACHE_DIR", "TCLIP_DATA_DIR"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A float run packed by the command, post-training."""
    folder = tmp_path_factory.mktemp("launch")
    tiny.write_workdir(folder / "float")
    table, _ = launch(
        *("export", f"--workdir={folder / 'float'}", f"--out={folder / 'packed'}"),
        *("--policy=all", "--estimator=twn", "--float_dtype=float32"),
    )
    assert "bits per ternary weight" in table
    return folder / "packed"


@pytest.fixture
def dataset(tmp_path):
    """Squares in the layout of CLIP_benchmark, one image broken."""
    source = tiny.squares(6)
    shard = tmp_path / "data/test/0.tar"
    shard.parent.mkdir(parents=True)
    with tarfile.open(shard, "w") as tar:
        for sample in source.samples:
            image = b"broken" if sample.key == "4" else sample.image
            for name, data in (
                (f"{sample.key}.png", image),
                (f"{sample.key}.cls", b"%d" % sample.label),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (tmp_path / "data/test/nshards.txt").write_text("1")
    (tmp_path / "data/classnames.txt").write_text("\n".join(source.classnames))
    templates = "\n".join(template.replace("{}", "{c}") for template in source.templates)
    (tmp_path / "data/zeroshot_classification_templates.txt").write_text(templates)
    return tmp_path / "data"


def test_export_packs_the_teacher_after_training(packed):
    policy = ClipPolicy(policy="all", estimator="twn", learn_scale=False, learn_threshold=False)
    fake = ternarize_params(tiny.params(), {}, policy)
    model = tclip.load(packed)
    expected = tclip.inference.Model(model.config, fake, model.tokenizer, model.preprocess)
    texts = ["a red square", "two"]
    difference = model.encode_text(texts) - expected.encode_text(texts)
    assert abs(difference).max() <= 1e-5
    sizes = json.loads((packed / "size.json").read_text())
    assert 0.9 < sizes["ternary_fraction"] < 1


def test_evaluate_prints_a_table_and_writes_json(packed, dataset):
    table, _ = launch("evaluate", f"--model={packed}", f"--data=wds:{dataset}")
    assert "zeroshot_top1" in table
    (scores,) = json.loads((packed / "evaluation.json").read_text())["results"].values()
    assert (scores["zeroshot_n"], scores["skipped"]) == (5, 1)


def test_evaluate_prints_before_it_writes(packed, dataset, tmp_path):
    args = (f"--model={packed}", f"--data=wds:{dataset}", f"--out={tmp_path}/no/evaluation.json")
    table, err = launch("evaluate", *args, code=1)
    assert "zeroshot_top1" in table
    assert "no/evaluation.json" in err


def test_classify_answers_what_it_can_read(packed, tmp_path):
    tiny.square("red").save(tmp_path / "red.png")
    tiny.square("blue").convert("CMYK").save(tmp_path / "blue.jpg")
    (tmp_path / "bad.png").write_text("no image")
    files = [tmp_path / name for name in ("red.png", "bad.png", "blue.jpg", "gone.png")]
    labels = "--labels=red square, blue square,dog"
    out, err = launch("classify", f"--model={packed}", *files, labels, "--json", code=1)
    answers = json.loads(out)
    assert [Path(answer["image"]).name for answer in answers] == ["red.png", "blue.jpg"]
    model = tclip.load(packed)
    texts = model.encode_text(["red square", "blue square", "dog"])
    for answer in answers:
        probabilities = [line["probability"] for line in answer["labels"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-6)
        logits = model.logit_scale * texts @ model.encode_image([answer["image"]])[0]
        assert answer["labels"][0]["label"] == ["red square", "blue square", "dog"][logits.argmax()]
    lines = [line for line in err.splitlines() if "error" in line]
    assert len(lines) == 2
    assert "bad.png: not an image file" in lines[0]
    assert "gone.png" in lines[1]


def test_errors_are_one_line(tmp_path):
    _, err = launch("classify", f"--model={tmp_path}/no", "x.png", "--labels=a", code=1)
    assert err.startswith("classify: error:")
    assert "no model folder at" in err
    assert len(err.splitlines()) == 1
    _, err = launch("bench", "train_stop", code=1)
    assert err.startswith("bench: error: no benchmark 'train_stop'; there are ")


def test_sweep_prints_the_commands_or_refuses_the_point(tmp_path):
    config = tmp_path / "x.py"
    header = "from tclip.run.experiment import default_config\nget_config = default_config\n"
    config.write_text(header + "def sweep():\n  yield {'optim.lr': 0.5}\n")
    out, _ = launch("sweep", f"--config={config}", f"--workdir={tmp_path}/runs")
    assert out.strip().endswith(f"--workdir={tmp_path}/runs/optim.lr=0.5 --config.optim.lr=0.5")
    config.write_text(header + "def sweep():\n  yield {'optim.rl': 0.5}\n")
    _, err = launch("sweep", f"--config={config}", f"--workdir={tmp_path}/runs", code=1)
    assert "sweep point 0: " in err
    assert "optim.rl" in err


def test_a_sweep_that_runs_already_is_refused_in_one_line(tmp_path):
    config = tmp_path / "x.py"
    config.write_text(
        "from tclip.run.experiment import default_config\nget_config = default_config\n"
        "def sweep():\n  yield {}\n"
    )
    with folder_lock(tmp_path / "runs"):
        flags = f"--config={config}", f"--workdir={tmp_path}/runs", "--execute"
        _, err = launch("sweep", *flags, code=1)
    assert err.startswith(f"sweep: error: {tmp_path}/runs is in use by process {os.getpid()} ")
    assert err.count("\n") == 1


def test_export_and_evaluate_take_a_step(tmp_path, dataset):
    workdir = tiny.write_workdir(tmp_path / "run")
    flags = f"--workdir={workdir}", f"--out={tmp_path}/packed", "--policy=all"
    launch("export", *flags, "--step=1")
    _, err = launch("export", *flags, "--step=7", code=1)
    assert "step='7'" in err
    launch("evaluate", f"--model={workdir}", f"--data=wds:{dataset}", "--step=last")
    assert json.loads((workdir / "evaluation.json").read_text())["step"] == "last"
    _, err = launch(
        "evaluate", f"--model={tmp_path}/packed", f"--data=wds:{dataset}", "--step=1", code=1
    )
    assert "no training workdir" in err
