"""Flags of the entry points that several processes run together."""

from absl import flags

from tclip.parallel import processes

_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where no cluster tells."
)
_COUNT = flags.DEFINE_integer("num_processes", None, "How many processes run this command.")
_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")


def join_processes(defer_sigterm: bool = False) -> None:
    """Joins the other processes that run this command, if the flags or a cluster say so.

    Args:
      defer_sigterm: as of `tclip.parallel.processes.initialize`.
    """
    processes.initialize(_COORDINATOR.value, _COUNT.value, _ID.value, defer_sigterm=defer_sigterm)
