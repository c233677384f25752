"""Bounds, costs and remedies follow from a program's figures as written out here."""

import dataclasses

import pytest

from tclip.hardware.chips import chip_of
from tclip.parallel.sharding import MeshConfig
from tclip.plan.collectives import Traffic
from tclip.plan.compiler import Compiled, Topology, parse_topology
from tclip.plan.report import describe, make_plan, remedies
from tclip.run.experiment import Experiment
from tclip.run.flops import step_flops
from tests.helpers import tiny

TRAFFIC = (
    Traffic("all-gather", 1, 3, ici_bytes=1e9, dcn_bytes=0.0),
    Traffic("all-reduce", 0, 2, ici_bytes=0.0, dcn_bytes=3.125e7),
    Traffic("all-reduce", 2, 2, ici_bytes=4e9, dcn_bytes=0.0),
)
COMPILED = Compiled(
    device_kind="TPU v5 lite",
    devices=8,
    chips=8,
    mesh={"slice": 2, "data": 4, "fsdp": 1, "tensor": 1},
    argument_bytes=1e9,
    output_bytes=2e6,
    temporary_bytes=3e9,
    code_bytes=4e6,
    matrix_flops=197e10,
    hbm_bytes=819e7,
    traffic=TRAFFIC,
)


def experiment(batch_size: int = 64, **groups) -> Experiment:
    default = Experiment(model=tiny.config(), preprocess=tiny.PREPROCESS, **groups)
    train = dataclasses.replace(default.train, batch_size=batch_size, steps=7200)
    return dataclasses.replace(default, train=train)


def plan_of(compiled: Compiled, **changes):
    return make_plan(experiment(**changes), None, False, Topology("v5e:2x2", 2), compiled)


def test_time_and_cost():
    plan = plan_of(COMPILED)
    # Over one dimension there are two links of 50 GB/s, over two there are four.
    assert plan.seconds == pytest.approx(
        {"compute": 0.01, "HBM": 0.01, "ICI": 0.01 + 0.02, "DCN": 0.01}
    )
    assert (plan.binds, plan.step_seconds) == ("ICI", pytest.approx(0.03))
    assert plan.samples_per_second == pytest.approx(64 / 0.03)
    assert plan.hours == pytest.approx(7200 * 0.03 / 3600)
    flops = 64 * step_flops(experiment(), None)
    assert plan.model_flops == flops
    assert plan.mfu == pytest.approx(flops / (8 * 197e12 * 0.03))
    values = plan.to_dict()
    assert values["chip_hours"] == pytest.approx(8 * plan.hours)
    assert values["traffic"][0]["kind"] == "all-gather"


def test_memory():
    plan = plan_of(COMPILED)
    assert plan.memory["total"] == 4.006e9
    assert plan.memory["available"] == chip_of("TPU v5e").hbm_bytes
    assert plan.fits
    full = plan_of(dataclasses.replace(COMPILED, temporary_bytes=16e9))
    assert not full.fits
    assert "NO" in describe(full)


def test_a_chip_of_two_devices():
    halves = dataclasses.replace(COMPILED, device_kind="TPU7x", devices=16)
    plan = plan_of(halves)
    assert plan.memory["arguments"] == 2e9
    # Both halves send over the links of their chip.
    assert plan.seconds["ICI"] == pytest.approx(2 * (1e9 / 200e9 + 4e9 / 400e9))
    assert plan.seconds["compute"] == pytest.approx(2 * 197e10 / 2307e12)


def test_what_was_not_compiled_has_no_times():
    plan = plan_of(dataclasses.replace(COMPILED, out_of_memory="Ran out", traffic=()))
    assert not plan.fits
    assert plan.seconds == {}
    assert "samples/s" not in describe(plan)
    assert "hours" not in plan.to_dict()


def test_the_table_says_what_binds():
    table = describe(plan_of(COMPILED))
    assert "least time by ICI (binds)" in table
    assert "30 ms" in table
    assert "DCN, all-reduce x 2" in table
    assert "ICI, all-gather x 3" in table


def test_remedies():
    plan = plan_of(COMPILED, batch_size=64)
    flags = [line.partition(":")[0] for line in remedies(experiment(64), plan)]
    assert flags == [
        "--config.model.remat=dots",
        "--config.model.remat=full",
        "--config.optim.accumulate=2",
        "--config.mesh.fsdp=4",
        "more chips, or chips with more memory",
    ]
    # Eight chips share eight pairs: there is no smaller micro-batch; all is recomputed already.
    small = experiment(8, mesh=MeshConfig(fsdp=4))
    small = dataclasses.replace(small, model=dataclasses.replace(small.model, remat="full"))
    spread = dataclasses.replace(COMPILED, mesh=COMPILED.mesh | {"data": 1, "fsdp": 4})
    plan = make_plan(small, None, False, Topology("v5e:2x2", 2), spread)
    assert remedies(small, plan) == ["more chips, or chips with more memory"]


def test_a_chip_without_peaks_is_refused():
    with pytest.raises(ValueError, match="the peaks of 'TPU v9' are not known"):
        plan_of(dataclasses.replace(COMPILED, device_kind="TPU v9"))


@pytest.mark.parametrize(
    ("text", "topology"),
    [
        ("v5e:16x16", Topology("v5e:16x16", 1)),
        ("2xv5p:4x4x8", Topology("v5p:4x4x8", 2)),
        ("tpu7x:4x4x4", Topology("tpu7x:4x4x4", 1)),
    ],
)
def test_topologies(text, topology):
    assert parse_topology(text) == topology
    assert str(topology) == text


@pytest.mark.parametrize("text", ["v5e", "v5e-256", "0xv5e:2x2", "v5e:2x", "16x16"])
def test_topologies_that_are_none(text):
    with pytest.raises(ValueError, match=f"topology '{text}': write it as v5e:16x16"):
        parse_topology(text)
