"""Steps without a finite loss, gradient or update: they are skipped; many in a row end the run."""

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
# What is finite in a good step, in the order in which a step computes it, with the remedies where
# it is the first that is not. The norms are global.
FINITE = {
    "loss": "lower optim.lr, or see the samples",
    "grad_norm": "lower optim.lr, or see the samples",
    "update_norm": "the gradient was finite, the optimiser is to blame: lower optim.lr, or raise "
    "optim.eps",
}

logger = logging.getLogger(__name__)


def is_bad(metrics: Mapping[str, float]) -> bool:
    """Whether the step with these metrics was skipped."""
    return bool(_not_finite(metrics))


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
        self._causes: dict[str, str] = {}

    @property
    def in_a_row(self) -> int:
        """How many of the newest steps were bad."""
        return len(self._steps)

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises FloatingPointError, naming steps and samples, at the last one that is bearable."""
        bad = _not_finite(metrics)
        if not bad:
            self._steps.clear()
            self._causes.clear()
            return
        values = ", ".join(f"{name} {metrics[name]}" for name in FINITE)
        logger.warning("step %d is skipped: %s", step, values)
        self._steps.append(step)
        self._causes[bad[0]] = FINITE[bad[0]]
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
            f"{' and '.join(self._causes)} not finite at steps {', '.join(map(str, self._steps))} "
            f"(train.max_bad_steps={self._limit}); their samples, at most {NAMED} of each, are in "
            f"{self._path}{examples}; the checkpoints before are kept: "
            f"{'; '.join(dict.fromkeys(self._causes.values()))}"
        )


def _not_finite(metrics: Mapping[str, float]) -> list[str]:
    return [name for name in FINITE if not math.isfinite(metrics[name])]
