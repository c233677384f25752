"""Goodput over kills and restarts, on a clock that the test holds."""

import time

import pytest

from tclip.train.goodput import GOODPUT_FILE, Goodput


class Wall:
    """Stands for time.time."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(time, "time", wall)
    return wall


def run_steps(goodput: Goodput, wall: Wall, count: int, seconds: float) -> None:
    for _ in range(count):
        wall.now += seconds
        goodput.add(seconds)


def test_only_steps_that_were_kept_count_and_all_time_does(tmp_path, wall):
    first = Goodput(tmp_path, 0, started=wall.now)
    wall.now += 30  # compiles
    run_steps(first, wall, 10, 2.0)
    assert first.value() == pytest.approx(20 / 50)
    first.save(10)
    wall.now += 5  # saves a checkpoint
    run_steps(first, wall, 7, 2.0)
    first.save(17)
    # Killed before the checkpoint of step 17 was whole; started again ten minutes later.
    wall.now += 600
    second = Goodput(tmp_path, 10, started=wall.now)
    wall.now += 31
    run_steps(second, wall, 10, 3.0)
    assert second.value() == pytest.approx((20 + 30) / (30 + 20 + 5 + 14 + 600 + 31 + 30))
    second.save(20)
    # The checkpoint of step 20 turns out to be damaged.
    third = Goodput(tmp_path, 10, started=wall.now)
    run_steps(third, wall, 1, 4.0)
    assert third.value() == pytest.approx(24 / (wall.now - 1000))


def test_time_before_the_first_checkpoint_is_not_forgotten(tmp_path, wall):
    run_steps(Goodput(tmp_path, 0, started=wall.now), wall, 5, 2.0)
    second = Goodput(tmp_path, 0, started=wall.now)
    run_steps(second, wall, 5, 2.0)
    assert second.value() == pytest.approx(10 / 20)


def test_a_torn_line_is_left_out(tmp_path, wall):
    goodput = Goodput(tmp_path, 0, started=wall.now)
    run_steps(goodput, wall, 1, 2.0)
    goodput.save(1)
    with (tmp_path / GOODPUT_FILE).open("a") as file:
        file.write('{"step": 2, "sec')
    again = Goodput(tmp_path, 1, started=wall.now)
    assert again.value() == 1.0
    again.save(1)
    assert Goodput(tmp_path, 1, started=wall.now).value() == 1.0


def test_a_process_that_does_not_write_leaves_no_file(tmp_path, wall):
    goodput = Goodput(None, 0, started=wall.now)
    run_steps(goodput, wall, 1, 2.0)
    goodput.save(1)
    assert goodput.value() == 1.0
    assert not list(tmp_path.iterdir())
