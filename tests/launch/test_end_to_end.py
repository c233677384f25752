"""The user's whole path on the command line, on the shipped recipe made small.

Train a teacher, kill it, resume, distil a student, export, report, evaluate, classify.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tclip
from tclip.quant import TernaryTensor
from tclip.run.checkpoint import CHECKPOINTS, load_trained

ROOT = Path(__file__).parents[2]
TOWER = {"width": 32, "layers": 1, "heads": 2, "mlp_dim": 64}
SMALL = {
    "config.train_data.source": "shapes:tiny",
    "config.eval.data.source": "shapes:tiny",
    "config.train.steps": 12,
    "config.train.batch_size": 32,
    "config.train.eval_every": 12,
    "config.train.checkpoint_every": 3,
    "config.train.log_every": 1,
    "config.optim.warmup_steps": 2,
    "config.model.embed_dim": 32,
    **{f"config.model.vision.{key}": value for key, value in TOWER.items()},
    **{f"config.model.text.{key}": value for key, value in TOWER.items()},
}


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Starts `python -m launch.NAME ARGS`, with its data and compiled programs in a new folder."""
    folder = tmp_path_factory.mktemp("cache")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {
        "TCLIP_DATA_DIR": str(folder / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(name: str, *args: object) -> subprocess.Popen:
        command = [sys.executable, "-m", f"launch.{name}", *map(str, args)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )

    return start


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def train_args(role: str, workdir: Path, **overrides: object) -> list[str]:
    flags = [f"--{key}={value}" for key, value in (SMALL | overrides).items()]
    return [f"--config=configs/shapes.py:{role}", f"--workdir={workdir}", *flags]


@pytest.mark.slow
def test_from_teacher_to_answer(launch, tmp_path):
    teacher, student, packed = (tmp_path / name for name in ("teacher", "student", "packed"))

    process = launch("train", *train_args("teacher", teacher))
    while not (teacher / CHECKPOINTS / "3").exists():
        assert process.poll() is None, "the teacher ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (teacher / "result.json").exists()
    finish(launch("train", *train_args("teacher", teacher)))
    assert json.loads((teacher / "result.json").read_text())["step"] == 12

    finish(launch("train", *train_args("student", student, **{"config.teacher.path": teacher})))
    export = finish(launch("export", f"--workdir={student}", f"--out={packed}"))
    assert "bits per ternary weight" in export

    folders = [f"--teacher={teacher}", f"--student={student}", f"--packed={packed}"]
    finish(launch("report", *folders, f"--out={tmp_path / 'report'}"))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for name in ("teacher", "post_training", "student"):
        assert 0 <= report[name]["zeroshot_top1"] <= 1
        assert report[name]["size_bytes"] > 0

    finish(launch("evaluate", f"--model={packed}", "--data=shapes:tiny"))
    evaluation = json.loads((packed / "evaluation.json").read_text())
    (scores,) = evaluation["results"].values()
    assert scores["zeroshot_top1"] == pytest.approx(report["student"]["zeroshot_top1"])

    # The codes that ship are those that the latent weights and thresholds of the run stand for.
    _, params, quant = load_trained(student)
    params_packed = tclip.load(packed, backend="jax").params
    shipped = params_packed["vision"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert isinstance(shipped, TernaryTensor)
    latent = np.asarray(params["vision"]["blocks_0"]["mlp"]["fc1"]["kernel"])
    threshold = np.exp(np.asarray(quant["vision/blocks_0/mlp/fc1/kernel"]["log_threshold"]))
    expected = np.where(np.abs(latent) > threshold, np.sign(latent), 0)
    scale = np.asarray(shipped.scale, np.float32)
    np.testing.assert_array_equal(np.asarray(shipped.dequantize(np.float32)) / scale, expected)

    images = sorted((tmp_path / "report" / "examples").glob("*.png"))
    labels = (tmp_path / "report" / "examples" / "labels.txt").read_text()
    answer = json.loads(
        finish(launch("classify", f"--model={packed}", *images, f"--labels={labels}", "--json"))
    )
    assert [Path(item["image"]) for item in answer] == images
    for item in answer:
        assert sum(line["probability"] for line in item["labels"]) == pytest.approx(1)
