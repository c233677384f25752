"""The time of steps, by stamps of a clock that the test holds; rates against their formulas."""

import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tclip.parallel.sharding import MeshConfig, make_mesh
from tclip.run.experiment import Experiment
from tclip.run.flops import step_flops
from tclip.train.throughput import StepClock, StepTime, Workload, device_memory, workload
from tests.helpers import tiny


@pytest.mark.parametrize(
    ("asked", "there", "end", "expected"),
    [
        # The batch came while the step before, which ended at 10, was running.
        (8, 9, 13, StepTime(total=3, input_wait=0, compute=3)),
        # It came 2 seconds after that: what was waited before 10 starved nobody.
        (8, 12, 15, StepTime(total=5, input_wait=2, compute=3)),
        # The host came for it late, and then waited a second.
        (13, 14, 17, StepTime(total=7, input_wait=1, compute=3)),
    ],
)
def test_a_step_begins_when_the_one_before_has_ended_and_its_batch_is_there(
    monkeypatch, asked, there, end, expected
):
    stamps = iter((0.0, asked, there))
    monkeypatch.setattr(time, "perf_counter", lambda: next(stamps))
    clock = StepClock()
    assert clock.ended((0.0, 1.0), 10.0) == StepTime(total=10, input_wait=1, compute=9)
    with clock.waiting():
        pass
    assert clock.ended(clock.batch, end) == expected


def test_a_pause_belongs_to_no_step(monkeypatch):
    stamps = iter((0.0, 50.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(stamps))
    clock = StepClock()
    clock.ended((0.0, 0.0), 10.0)
    clock.restart()
    assert clock.ended((51.0, 52.0), 55.0) == StepTime(total=5, input_wait=1, compute=3)


def test_rates_are_those_of_the_formulas():
    work = Workload(batch_size=96, chips=4, flops_per_sample=5e9, peak_flops=1e12)
    rates = work.rates(10, StepTime(total=20, input_wait=1, compute=18))
    assert rates == {
        "steps_per_second": 0.5,
        "samples_per_second": 48.0,
        "samples_per_second_per_chip": 12.0,
        "input_wait": 0.05,
        "mfu": 0.06,
    }
    assert "mfu" not in Workload(batch_size=1).rates(1, StepTime(total=1))


@pytest.mark.parametrize(
    ("kind", "chips", "peak"), [("TPU v5e", 8, 197e12), ("TPU7x", 4, 2307e12), ("cpu", 8, None)]
)
def test_the_work_of_a_step_is_shared_by_chips(kind, chips, peak):
    devices = np.array([SimpleNamespace(device_kind=kind)] * 8)
    experiment = Experiment(model=tiny.config(), preprocess=tiny.PREPROCESS)
    work = workload(experiment, None, False, SimpleNamespace(devices=devices, size=8))
    assert work == Workload(experiment.train.batch_size, chips, step_flops(experiment, None), peak)


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    assert device_memory() == {}
    stats = [
        {"bytes_in_use": 3, "peak_bytes_in_use": 5},
        {"bytes_in_use": 2, "peak_bytes_in_use": 9},
    ]
    devices = [SimpleNamespace(memory_stats=lambda s=s: s) for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory() == {"hbm_bytes_in_use": 3, "hbm_peak_bytes_in_use": 9}


def test_a_mesh_of_this_machine_has_no_known_peak():
    experiment = Experiment(model=tiny.config(), preprocess=tiny.PREPROCESS)
    work = workload(experiment, None, False, make_mesh(MeshConfig()))
    assert (work.chips, work.peak_flops) == (8, None)
