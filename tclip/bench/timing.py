"""Timings in turn, so that what else the machine does at a time meets all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def in_turn(timers: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Calls every timer, then all of them again; returns the `repeats` results of each."""
    results = {name: [] for name in timers}
    for _ in range(repeats):
        for name, timer in timers.items():
            results[name].append(timer())
    return results


def seconds_of(program: Callable[[], Any]) -> float:
    """Runs a program and returns how long it took until its arrays were there."""
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start
