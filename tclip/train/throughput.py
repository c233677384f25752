"""How fast training goes: where the time of its steps is spent, and what that is in rates."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from tclip.hardware.chips import chip_of
from tclip.models import CLIPConfig
from tclip.run.experiment import Experiment
from tclip.run.flops import step_flops


class StepTime(NamedTuple):
    """Seconds of a step, or of several.

    Attributes:
      total: from the end of the step before, or of the pause before, to the end of this one.
      input_wait: in which the devices had nothing left to do and the batch was not there.
      compute: from when step before and batch were both there to the end.
    """

    total: float = 0.0
    input_wait: float = 0.0
    compute: float = 0.0

    def plus(self, other: "StepTime") -> "StepTime":
        """Returns the sum, field by field."""
        return StepTime(*(a + b for a, b in zip(self, other, strict=True)))


class StepClock:
    """Splits the time of steps, of which the next is dispatched before the last has ended.

    So that a batch that comes while the devices are still busy is nothing waited for, times are
    taken on the devices' side: a step ends when its results are there.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Leaves out what happened since the last step ended."""
        self._idle_since = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Encloses the call that gets the batch of the next step."""
        asked = time.perf_counter()
        yield
        self.batch = asked, time.perf_counter()

    def ended(self, batch: tuple[float, float], end: float) -> StepTime:
        """Takes the moment at which the oldest step ended.

        Args:
          batch: what `self.batch` was when the step was dispatched: the moments at which its batch
            was asked for and was there.
          end: as of time.perf_counter().
        """
        asked, there = batch
        start, self._idle_since = self._idle_since, end
        return StepTime(
            total=end - start,
            input_wait=max(0.0, there - max(start, asked)),
            compute=end - max(start, there),
        )


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a training step has to do, and what does it.

    Attributes:
      batch_size: image-caption pairs a step, over all chips.
      chips: how many there are; a device that tclip does not know counts as one.
      flops_per_sample: operations that the model needs for a pair (see tclip/run/flops.py).
      peak_flops: bfloat16 operations a second of a chip; None where it is not known.
    """

    batch_size: int
    chips: float = 1.0
    flops_per_sample: float = 0.0
    peak_flops: float | None = None

    def rates(self, steps: int, time: StepTime) -> dict[str, float]:
        """Returns the rates of so many steps that took `time` in all.

        "mfu" (model FLOPs utilisation: the operations that the model needs, over those that the
        chips could have done in that time) is there only for chips whose peak is known.
        """
        steps_per_second = steps / time.total
        per_chip = steps_per_second * self.batch_size / self.chips
        rates = {
            "steps_per_second": steps_per_second,
            "samples_per_second": steps_per_second * self.batch_size,
            "samples_per_second_per_chip": per_chip,
            "input_wait": time.input_wait / time.total,
        }
        if self.peak_flops is not None:
            rates["mfu"] = per_chip * self.flops_per_sample / self.peak_flops
        return rates


def workload(
    experiment: Experiment, teacher_model: CLIPConfig | None, cached: bool, mesh: Mesh
) -> Workload:
    """Returns the work of a step of `experiment` on the devices of `mesh`.

    Args:
      teacher_model, cached: as of `tclip.run.flops.step_flops`.
    """
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return Workload(
        batch_size=experiment.train.batch_size,
        chips=mesh.size / (chip.devices if chip else 1),
        flops_per_sample=step_flops(experiment, teacher_model, cached),
        peak_flops=None if chip is None else chip.flops,
    )


def device_memory() -> dict[str, int]:
    """Returns what the fullest device of this process holds, in bytes: now, and at most so far.

    Empty where the platform does not say (a CPU).
    """
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    if not stats:
        return {}
    return {
        "hbm_bytes_in_use": max(s["bytes_in_use"] for s in stats),
        "hbm_peak_bytes_in_use": max(s["peak_bytes_in_use"] for s in stats),
    }
