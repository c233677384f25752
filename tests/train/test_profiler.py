"""Traces of the profiler: written for the steps that were asked for, and only then."""

import contextlib
import errno
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tclip.run.experiment import ProfileConfig
from tclip.train.profiler import PROFILE, Profiler


def run_steps(config: ProfileConfig, workdir: Path, steps: range) -> list[int]:
    """Returns the steps that had a pause before them."""
    paused = []
    with Profiler(config, workdir, lambda: contextlib.nullcontext(paused.append(step))) as profiler:
        for step in steps:
            with profiler.step(step):
                jnp.ones(3).block_until_ready()
    return paused


def traced_steps(workdir: Path) -> list[int]:
    """Numbers of the steps in the traces."""
    return sorted(
        dict(event.stats)["step_num"]
        for path in (workdir / PROFILE).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    )


@pytest.mark.parametrize(
    ("steps", "paused", "traced"),
    [
        (range(1, 7), [3, 5], [3, 4]),
        # Continued in the middle, and finished there.
        (range(4, 5), [4], [4]),
        # Continued after it.
        (range(5, 7), [], []),
    ],
)
def test_the_steps_of_the_config_are_traced(tmp_path, steps, paused, traced):
    assert run_steps(ProfileConfig(start=3, steps=2), tmp_path, steps) == paused
    assert traced_steps(tmp_path) == traced


def test_nothing_is_traced_unasked(tmp_path):
    assert run_steps(ProfileConfig(), tmp_path, range(1, 9)) == []
    assert not (tmp_path / PROFILE).exists()


def test_an_error_leaves_the_trace_that_was_begun(tmp_path):
    config = ProfileConfig(start=1, steps=9)
    with (
        pytest.raises(ZeroDivisionError),
        Profiler(config, tmp_path, contextlib.nullcontext) as profiler,
        profiler.step(1),
    ):
        _ = 1 / 0
    assert traced_steps(tmp_path) == [1]


def test_a_trace_that_cannot_be_written_hides_no_other_error(tmp_path, monkeypatch):
    stop_trace = jax.profiler.stop_trace

    def full():
        stop_trace()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    config = ProfileConfig(start=1, steps=9)
    for error in (ZeroDivisionError, OSError):
        with (
            pytest.raises(error),
            Profiler(config, tmp_path, contextlib.nullcontext) as profiler,
            profiler.step(1),
        ):
            _ = 1 / (error is not ZeroDivisionError)


@pytest.mark.parametrize("values", [{"start": -1}, {"start": 1, "steps": 0}])
def test_impossible_steps_are_refused(values):
    with pytest.raises(ValueError, match=f"profile.{list(values)[-1]}="):
        ProfileConfig(**values)
