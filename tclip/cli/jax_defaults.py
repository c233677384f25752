"""How the commands have jax run: by environment variables, which it reads when it is imported."""

import contextlib
import ctypes
import glob
import importlib.metadata
import importlib.util
import os


def set_jax_defaults() -> str:
    """Chooses platform and compilation cache, where the user did not; call before jax is imported.

    Returns:
      Why compiled programs are not kept, "" if they are.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms and not has_accelerator():
        # Without a chip the TPU plugin reports errors before it gives up.
        platforms = os.environ["JAX_PLATFORMS"] = "cpu"
    if platforms == "cpu":
        keep_freed_memory()
    folder, reason = compilation_cache()
    if folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    else:
        os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return reason


def compilation_cache() -> tuple[str | None, str]:
    """The folder for compiled programs, by which what is resumed or repeated starts at once.

    Returns:
      None where there is no such folder and none can be made; and then the reason.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.path.expanduser("~/.cache/tclip/xla")
    if folder.startswith("~"):
        return None, "there is no home folder"
    if "://" in folder:
        return folder, ""  # jax reads and writes it by other means
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return None, f"{folder}: {error.strerror}"
    return (folder, "") if os.access(folder, os.W_OK) else (None, f"{folder} is read-only")


def keep_freed_memory() -> None:
    """Has the process keep memory that it frees; call before jax starts its threads.

    On a CPU every step allocates and frees its temporaries, gigabytes for ViT-B/16. Given back to
    the system and faulted in again they cost up to a third of a step. Only glibc has this.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # malloc.h
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)
        mallopt(m_arena_max, 1)


def has_accelerator() -> bool:
    """Whether jax may find something else than the CPU; looks without starting a backend."""
    if importlib.metadata.entry_points(group="jax_plugins"):
        return True
    if importlib.util.find_spec("libtpu") is None:
        return False
    # Chips of a Cloud TPU VM, or what GKE tells a container about them.
    devices = *glob.glob("/dev/accel[0-9]*"), *glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) or "TPU_WORKER_ID" in os.environ
