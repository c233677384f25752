"""Rows of metrics: when they are written, and what a continued run finds."""

import errno
import io
import json
import logging
import re
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter

from tclip.files import read_json_lines
from tclip.train.goodput import GOODPUT_FILE
from tclip.train.metric_writer import CLOCK_METRICS, MetricWriter, read_metrics
from tclip.train.throughput import Workload
from tests.helpers import tiny
from tests.helpers.logs import own_messages


def scalars(loss: float) -> dict:
    norms = {"grad_norm": jnp.float32(1), "update_norm": jnp.float32(1)}
    return {"loss": jnp.float32(loss), **norms, "skipped": jnp.int32(3)}


def metric_writer(workdir: Path, start: int, steps: int, log_every: int) -> MetricWriter:
    return MetricWriter(workdir, start, steps, Workload(batch_size=8), log_every, time.time())


def take(writer: MetricWriter, step: int, metrics: dict) -> None:
    """A step of the loop."""
    with writer.waiting():
        pass
    writer.write_train(step, metrics)


def test_rows_are_written_every_so_many_steps_and_at_the_last(tmp_path):
    with metric_writer(tmp_path, 0, 5, log_every=2) as writer:
        for step in range(1, 6):
            take(writer, step, scalars(step / 2))
            if step == 4:
                with writer.pause():
                    writer.write_eval(4, {"top1": 0.25})
        # The last step is looked at when it is asked for.
        assert [row["step"] for row in read_metrics(tmp_path)] == [2, 4, 4]
        writer.flush()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 4, 5]
    assert rows[0]["loss"] == 1.0
    assert rows[0]["skipped"] == 3
    assert rows[0]["samples_per_second"] == pytest.approx(8 * rows[0]["steps_per_second"])
    assert rows[2] == {"step": 4, "eval/top1": 0.25}
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_row_says_how_fast_training_goes_and_what_it_was_good_for(tmp_path, monkeypatch):
    memory = {"bytes_in_use": 10, "peak_bytes_in_use": 20}
    monkeypatch.setattr(
        jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: memory)]
    )
    work = Workload(batch_size=8, chips=2, flops_per_sample=1e3, peak_flops=1e6)
    with MetricWriter(tmp_path, 0, 2, work, 2, time.time() - 100) as writer:
        for step in (1, 2):
            take(writer, step, scalars(1.0))
        writer.flush()
    (row,) = read_metrics(tmp_path)
    assert {*row} == {"step", *scalars(1.0), *CLOCK_METRICS}
    assert row["mfu"] == pytest.approx(row["steps_per_second"] * 8 / 2 * 1e3 / 1e6)
    # Two steps that were ready at once, a hundred seconds after the start.
    assert 0 < row["goodput"] < 0.01


def test_a_step_that_was_skipped_is_no_good(tmp_path):
    bad = scalars(float("nan")), scalars(1.0) | {"grad_norm": jnp.float32("inf")}
    with metric_writer(tmp_path, 0, 4, log_every=9) as writer:
        for step, metrics in enumerate([*bad, scalars(1.0)], start=1):
            take(writer, step, metrics)
            with writer.pause():
                pass
    _, *rows = read_json_lines(tmp_path / GOODPUT_FILE)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["seconds"] == rows[1]["seconds"] == 0 < rows[2]["seconds"]


def test_the_host_stays_one_step_ahead_of_the_devices(tmp_path):
    gate = threading.Event()

    class Running:
        """A loss that is there when the gate opens."""

        def block_until_ready(self):
            assert gate.wait(60)

        def __array__(self, *_, **__):
            self.block_until_ready()
            return np.array(2.0)

    with metric_writer(tmp_path, 0, 3, log_every=1) as writer:
        take(writer, 1, scalars(1.0))
        # Step 2 is running while step 1 is looked at, and nobody waits for it.
        take(writer, 2, scalars(1.0) | {"loss": Running()})
        assert [row["step"] for row in read_metrics(tmp_path)] == [1]
        gate.set()
        take(writer, 3, scalars(1.0))
        assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [
            (1, 1.0),
            (2, 2.0),
        ]


def test_of_several_processes_one_writes(tmp_path, caplog):
    with (
        caplog.at_level(logging.INFO, "tclip.train.metric_writer"),
        MetricWriter(None, 0, 2, Workload(batch_size=8), 1, time.time()) as writer,
    ):
        take(writer, 1, scalars(1.0))
        with writer.pause():
            writer.write_eval(1, {"top1": 0.25})
        take(writer, 2, scalars(1.0))
        writer.flush()
    assert not own_messages(caplog)
    assert not list(tmp_path.iterdir())


def test_a_continued_run_drops_what_came_after_its_checkpoint(tmp_path):
    rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    with metric_writer(tmp_path, 2, 3, log_every=1) as writer:
        assert read_metrics(tmp_path) == rows[:2]
        take(writer, 3, scalars(2.0))
        writer.flush()
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]


def test_where_there_is_no_terminal_every_row_is_a_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with (
        caplog.at_level(logging.INFO, "tclip.train.metric_writer"),
        metric_writer(tmp_path, 0, 4, log_every=2) as writer,
    ):
        for step in range(1, 5):
            take(writer, step, scalars(step / 2))
        writer.flush()
        writer.write_eval(4, {"top1": 0.25})
        assert sys.stderr.getvalue() == ""
    one, two, evaluation = own_messages(caplog)
    line = (
        r"step 2/4: loss 1.0000, \d+ samples/s, input wait [\d.]+%, goodput [\d.]+%, 0:00:0\d left"
    )
    assert re.fullmatch(line, one)
    assert two.startswith("step 4/4: loss 2.0000")
    assert evaluation == "step 4/4: evaluation: top1 0.25"


def test_every_step_is_handed_out_once_when_the_next_was_taken(tmp_path):
    with metric_writer(tmp_path, 0, 9, log_every=5) as writer:
        take(writer, 1, scalars(1.0))
        assert writer.take_ended() == []
        take(writer, 2, scalars(2.0))
        assert writer.take_ended() == [
            (1, {"loss": 1.0, "grad_norm": 1.0, "update_norm": 1.0, "skipped": 3})
        ]
        take(writer, 3, scalars(3.0))
        writer.flush()
        assert [(step, metrics["loss"]) for step, metrics in writer.take_ended()] == [
            (2, 2.0),
            (3, 3.0),
        ]
        assert writer.take_ended() == []


def test_what_is_not_finite_is_missing_from_its_row(tmp_path):
    with metric_writer(tmp_path, 0, 2, log_every=1) as writer:
        take(writer, 1, scalars(float("nan")))
        take(writer, 2, scalars(1.0) | {"grad_norm": jnp.float32("inf")})
        writer.flush()
    first, second = read_metrics(tmp_path)
    assert "loss" not in first
    assert first["grad_norm"] == second["loss"] == 1.0
    assert "grad_norm" not in second


@pytest.mark.parametrize(
    ("row", "name"),
    # An event has the longer header, JSON the longer numbers.
    [({"x": 1.0}, "tensorboard"), ({"x": 1 / 3, "y": 1 / 3, "z": 1 / 3}, "metrics.jsonl")],
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, row, name):
    with (
        pytest.raises(OSError, match=f"{tmp_path}/{name}"),
        tiny.little_disk(3000),
        metric_writer(tmp_path, 0, 99, log_every=1) as writer,
    ):
        for step in range(1, 100):
            writer.write_eval(step, row)


def test_an_error_on_closing_hides_no_other(tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(EventsWriter, "close", full)
    with pytest.raises(FloatingPointError), metric_writer(tmp_path, 0, 9, log_every=1):
        raise FloatingPointError
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/tensorboard'"),
        metric_writer(tmp_path, 0, 9, log_every=1),
    ):
        pass


def test_without_a_file_there_are_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []
