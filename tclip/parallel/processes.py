"""Several processes that run one program: who takes part, who waits, and who holds which rows.

All processes see the same file system. Without `initialize` there is one process, and nothing here
waits.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from tclip.folder_lock import FolderInUseError, folder_lock

# A process that is silent for so long is lost, and the others end.
HEARTBEAT_SECONDS = 60
# Process 0 may index data or train a tokenizer while the others wait.
WAIT_SECONDS = 7 * 24 * 3600


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    defer_sigterm: bool = False,
) -> None:
    """Joins the other processes of this program; call before anything asks jax for its devices.

    Without arguments the processes of Cloud TPU, GKE, Slurm and Open MPI find each other, and
    elsewhere, or where such a job has one process, nothing happens.

    Args:
      coordinator_address: HOST:PORT on which process 0 can be reached by the others.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat_seconds: when one has been silent for so long, the others end.
      defer_sigterm: whether SIGTERM is left to `tclip.train.preemption` and does not end the
        process.

    Raises:
      ValueError: some of the arguments are given, and others not.
    """
    given = coordinator_address, num_processes, process_id
    if None in given and given != (None, None, None):
        raise ValueError(
            "coordinator_address, num_processes and process_id go together: give all, or none"
        )
    if coordinator_address is None and not _is_cluster():
        return
    jax.config.update("jax_enable_preemption_service", defer_sigterm)
    jax.distributed.initialize(
        *given,
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=heartbeat_seconds,
    )


def _is_cluster() -> bool:
    """Whether this is one of the several processes of a cluster that jax knows."""
    for cluster in ClusterEnv._cluster_types:
        if not cluster.opt_in_only_method and cluster.is_env_present():
            return cluster.get_process_count() > 1
    return False


def is_main() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns once every process has come here; `name` is that of the place."""
    # Unlike multihost_utils.sync_global_devices it has no device wait for hours.
    if jax.process_count() > 1:
        client: Any = distributed.global_state.client
        client.wait_at_barrier(name, WAIT_SECONDS * 1000)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Has process 0 run the block before the others do, who find on disk what it has left there."""
    if not is_main():
        wait_for_all(name)
    yield
    if is_main():
        wait_for_all(name)


def main_says(value: bool | int) -> int:
    """Returns the `value` of process 0; each has to ask.

    What the others see of the file system may be out of date.
    """
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def folder_of_all(folder: str | Path) -> Iterator[None]:
    """Has all processes of this program own `folder` within the block, as one owner.

    Raises:
      FolderInUseError: another program owns it.
      OSError: process 0 cannot write to it.
    """
    with contextlib.ExitStack() as lock:
        failure = None
        if is_main():
            try:
                lock.enter_context(folder_lock(folder))
            except OSError as error:
                failure = error
        if not main_says(failure is None):
            raise failure or FolderInUseError(f"{folder}: process 0 could not take it")
        yield


def largest(value: int) -> int:
    """Returns the largest `value` of any process; each has to ask."""
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def local_rows(sharding: NamedSharding, size: int) -> tuple[int, ...]:
    """The rows of a batch of `size` that this process's devices hold, in ascending order.

    Two processes hold the same rows where the mesh splits something else between them.
    """
    indices = sharding.addressable_devices_indices_map((size,)).values()
    return tuple(sorted({row for index in indices if index for row in range(size)[index[0]]}))


def put_rows(local: Any, size: int, sharding: NamedSharding) -> Any:
    """Returns batches of `size` rows over a mesh, from arrays of the `local_rows` of each."""
    place = {row: i for i, row in enumerate(local_rows(sharding, size))}

    def put(x: np.ndarray) -> jax.Array:
        def rows(index: Any) -> np.ndarray:
            # A device holds neighbouring rows, which lie together here as well.
            first, *_ = held = range(size)[index[0]]
            return x[place[first] : place[first] + len(held)]

        return jax.make_array_from_callback((size, *x.shape[1:]), sharding, rows)

    return jax.tree.map(put, local)


def put_whole(tree: Any, shardings: Any) -> Any:
    """Returns arrays over a mesh, from arrays of which every process has the whole.

    Unlike jax.device_put it does not send them around to compare them.
    """

    def put(x: np.ndarray, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)
