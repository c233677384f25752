"""What two training runs are compared by."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from tclip.checkpoint import CHECKPOINTS
from tclip.metrics import CLOCK_METRICS, read_metrics


def rows_of(workdir: Path, after: int = 0) -> list[dict]:
    """Rows of the metrics of the steps after `after`, without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if key not in CLOCK_METRICS}
        for row in read_metrics(workdir)
        if row["step"] > after
    ]


def state_of(workdir: Path, step: int) -> Any:
    """Everything that a checkpoint holds, wherever it was saved from."""
    path = workdir / CHECKPOINTS / str(step)
    here = SingleDeviceSharding(jax.devices()[0])
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        ocp.checkpointables_metadata(path).metadata["state"],
    )
    return ocp.load_checkpointables(path, {"state": state})["state"]


def assert_same_bits(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
