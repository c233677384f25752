"""Training runs of a tiny model: their configs, and what two of them are compared by."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from tclip.run.checkpoint import CHECKPOINTS
from tclip.train.metric_writer import CLOCK_METRICS, read_metrics

# One block a tower: most of the time of a short run is compilation.
TOWER = {"width": 32, "heads": 2, "mlp_dim": 64, "layers": 1}
CONFIG = {
    "model": {
        "embed_dim": 32,
        "vision": TOWER | {"image_size": 32, "patch_size": 8},
        "text": TOWER | {"context_length": 16},
    },
    "preprocess": {"image_size": 32},
    "optim": {"warmup_steps": 2},
}


def run_config(train_data: dict, **groups: dict) -> dict:
    """The config of a run of the tiny model; `groups` are what else differs from the defaults."""
    changed = {name: CONFIG.get(name, {}) | values for name, values in groups.items()}
    return CONFIG | {"train_data": train_data} | changed


def samples_in(folder: Path, index: str = "index") -> dict:
    """The source of what `benchmark_folders.write_dataset` has written to folder/data."""
    return {"source": f"wds:{folder}/data", "split": "test", "data_dir": str(folder / index)}


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
