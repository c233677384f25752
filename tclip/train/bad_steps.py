"""Steps without a finite loss or gradient: each is skipped, and too many in a row end the run."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tclip.files import write_whole
from tclip.parallel.processes import is_main, wait_for_all

BAD_BATCHES = "bad_batches.json"
# Samples of a bad batch that are named: their names are read one after the other.
NAMED = 256

logger = logging.getLogger(__name__)


def is_bad(metrics: Mapping[str, float]) -> bool:
    """Whether the step with these metrics was skipped."""
    return not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]))


class BadSteps:
    """Looks at the metrics of every step, in their order."""

    def __init__(self, limit: int, workdir: Path, keys_of: Callable[[int], Sequence[str]]):
        """Begins to count.

        Args:
          limit: bad steps in a row that end the run.
          workdir: receives `BAD_BATCHES` then.
          keys_of: gives the keys of the first `NAMED` samples of a step.
        """
        self._limit, self._path, self._keys_of = limit, workdir / BAD_BATCHES, keys_of
        self._steps: list[int] = []

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises FloatingPointError, naming steps and samples, at the last one that is bearable."""
        if not is_bad(metrics):
            self._steps.clear()
            return
        loss, norm = metrics["loss"], metrics["grad_norm"]
        logger.warning("step %d is skipped: loss %s, gradient norm %s", step, loss, norm)
        self._steps.append(step)
        if len(self._steps) < self._limit:
            return
        examples = ""
        if is_main():
            keys = {bad: list(self._keys_of(bad)) for bad in self._steps}
            write_whole(self._path, json.dumps(keys, indent=1) + "\n")
            examples = f" (the last begin with {', '.join(keys[step][:3])})"
        # Who ends first ends the others.
        wait_for_all("bad batches")
        raise FloatingPointError(
            f"loss or gradient were not finite at steps {', '.join(map(str, self._steps))} "
            f"(train.max_bad_steps={self._limit}); their samples, at most {NAMED} of each, are in "
            f"{self._path}{examples}; the checkpoints before are kept: lower optim.lr or "
            "optim.grad_clip, or see the samples"
        )
