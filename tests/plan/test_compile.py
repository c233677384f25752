"""A step compiled for TPUs that are not there; needs libtpu."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tclip.hardware import tpu_compiler
from tclip.losses import LossConfig
from tclip.models import CLIPConfig, ClipPolicy
from tclip.parallel.sharding import MeshConfig
from tclip.plan import report, suggest
from tclip.plan.compiler import Compiled, Topology, compile_step
from tclip.plan.models import PlannedModels
from tclip.run.experiment import Experiment, TeacherConfig
from tclip.run.flops import step_flops
from tests.helpers import tiny

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the compiler, is not installed"
)
ROOT = Path(__file__).parents[2]
SQUARE = Topology("v5e:2x2")
PARAMETERS = sum(x.size for x in jax.tree.leaves(tiny.params()))


def model() -> CLIPConfig:
    return dataclasses.replace(tiny.config(), dtype="bfloat16", scan_layers=True)


def experiment(batch_size: int = 64, **groups) -> Experiment:
    default = Experiment(
        model=model(),
        preprocess=tiny.PREPROCESS,
        quant=ClipPolicy(policy="all"),
        teacher=TeacherConfig("teacher"),
        loss=LossConfig(similarity_weight=1.0, embedding_weight=1.0),
        **groups,
    )
    train = dataclasses.replace(default.train, batch_size=batch_size)
    return dataclasses.replace(default, train=train)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_step(experiment(), model(), False, SQUARE)


def test_the_program_does_the_work_of_the_model(compiled):
    """Once for each layer of the scan, and split over the devices."""
    done = compiled.devices * compiled.matrix_flops / experiment().train.batch_size
    # The formula counts a gradient of the pixels, which no one needs.
    unneeded = 2 * 16 * (3 * 8 * 8) * 32
    assert done == pytest.approx(step_flops(experiment(), model()) - unneeded, rel=0.01)
    # XLA counts a layer once, but everything that is done to an array.
    assert compiled.xla_flops < compiled.matrix_flops


def test_memory_and_places(compiled):
    assert (compiled.devices, compiled.chips, compiled.device_kind) == (4, 4, "TPU v5 lite")
    assert compiled.mesh == {"slice": 1, "data": 4, "fsdp": 1, "tensor": 1}
    # Parameters, two moments of them, and the teacher; a quarter of the batch.
    size = 4 * 4 * PARAMETERS + 16 * 32 * 32 * 3 * 4
    # Rows of 32 are padded to 128.
    assert size < compiled.argument_bytes < 4 * size
    assert compiled.temporary_bytes > 0
    assert compiled.out_of_memory == ""


def test_gradients_are_summed_over_all_devices(compiled):
    sums = [t for t in compiled.traffic if t.kind in ("all-reduce", "reduce-scatter")]
    assert {t.dimensions for t in sums} == {2}
    assert all(t.dcn_bytes == 0 for t in compiled.traffic)
    # Those of the blocks in bfloat16, others in float32; three quarters of them there and back.
    sent = sum(t.ici_bytes for t in sums)
    assert 2 * 0.75 * 2 * PARAMETERS < sent < 2 * 0.75 * 4 * PARAMETERS


def test_the_command_says_what_to_change_where_it_does_not_fit(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from tclip.config import to_dict\n"
        "from tclip.run.experiment import default_config\n"
        "from tclip.models import architecture\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model = to_dict(architecture('tiny'))\n"
        "    config.preprocess.image_size = 32\n"
        "    config.train.batch_size = 4 * 2**21\n"
        "    return config\n"
    )
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "launch.compile", f"--config={config}"]
    done = subprocess.run(
        [*command, "--topology=v5e:2x2", f"--out={out}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2, done.stderr
    assert "--config.model.remat=dots" in done.stdout
    assert "--config.optim.accumulate=2" in done.stdout
    plan = json.loads(out.read_text())
    assert plan["fits"] is False
    assert plan["memory"]["total"] > plan["memory"]["available"]
    # Two million images of a chip.
    assert plan["memory"]["arguments"] > 2**21 * 32 * 32 * 3 * 4


def test_stored_embeddings_of_no_teacher_are_refused():
    command = [sys.executable, "-m", "launch.compile", "--config=configs/shapes.py:teacher"]
    done = subprocess.run(
        [*command, "--topology=v5e:2x2", "--cached_teacher"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "teacher.cache needs teacher.path" in done.stderr


def test_a_config_that_does_not_fit_the_chips_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=62 is not divisible .* times the 4 devices"):
        compile_step(experiment(62), model(), False, SQUARE)


def test_an_unknown_topology_is_refused():
    with pytest.raises(ValueError, match="v9"):
        compile_step(experiment(), model(), False, Topology("v9:2x2"))


def test_the_death_of_the_compiler_is_a_message(monkeypatch):
    # What the compiler is given when it is loaded, and dies of.
    dying = tpu_compiler.environment() | {"LIBTPU_INIT_ARGS": "--xla_no_such_option=1"}
    monkeypatch.setattr(tpu_compiler, "environment", lambda: dying)
    with pytest.raises(
        ValueError, match=r"the compiler for v5e:2x2 ended with code -?\d+: .*no_such"
    ):
        compile_step(experiment(), model(), False, SQUARE)


def test_the_search_takes_what_fits_and_orders_by_speed(monkeypatch):
    """The grid, with a compiler that knows only the batch and the mesh."""
    asked = []

    def fake(experiment, teacher, cached, topology):
        fsdp, remat = experiment.mesh.fsdp, experiment.model.remat
        asked.append((experiment.train.batch_size, fsdp, remat))
        assert teacher.remat == remat
        if fsdp == 16:
            raise ValueError("mesh: fsdp=16 does not fit the 4 devices")
        return Compiled(
            device_kind="TPU v5 lite",
            devices=4,
            chips=4,
            mesh={"slice": 1, "data": 4 // fsdp, "fsdp": fsdp, "tensor": 1},
            argument_bytes=1e9 / fsdp,
            matrix_flops=1e12 * (1 + (remat == "full")),
            out_of_memory="Ran out" if remat == "none" else "",
        )

    monkeypatch.setattr(report, "compile_step", fake)
    models = PlannedModels(experiment(64, mesh=MeshConfig()), model())
    found = suggest.search(models, cached=False, topology=SQUARE)
    # Stops at the first that fits, and at what the chips refuse.
    assert [call for call in asked if call[0] == 64] == [
        (64, 1, "none"),
        (64, 1, "dots"),
        (64, 4, "none"),
        (64, 4, "dots"),
        (64, 16, "none"),
    ]
    best = found[0].changes
    assert (best["train.batch_size"], best["mesh.fsdp"], best["model.remat"]) == (128, 4, "dots")
    assert best["train.steps"] == 500
    assert len(found) == 4
    table = suggest.describe_candidates(found)
    assert "--config.train.batch_size=128 --config.train.steps=500" in table


def test_nothing_that_can_be_compiled_is_an_error(monkeypatch):
    def refuse(*_):
        raise ValueError("no such chip")

    monkeypatch.setattr(report, "compile_step", refuse)
    with pytest.raises(ValueError, match="no such chip"):
        suggest.search(PlannedModels(experiment(), model()), cached=False, topology=SQUARE)
