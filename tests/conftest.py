"""Eight virtual CPU devices for every test, and a core for every process that runs tests."""

import gc
import importlib.metadata
import os
from pathlib import Path

import pytest

# Before jax initialises its backend. A GPU is there only for the tests that ask for one by name.
plugins = importlib.metadata.entry_points(group="jax_plugins")
gpu = os.path.exists("/dev/nvidiactl") and any(p.name.startswith("xla_cuda") for p in plugins)
os.environ["JAX_PLATFORMS"] = "cpu,cuda" if gpu else "cpu"
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Programs that several files compile, and the commands that they start, are compiled once.
cache = Path(__file__).parents[1] / ".pytest_cache/xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

# XLA's threads spin while they wait: processes that share their cores slow each other down.
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Frees what a file's tests have compiled, gigabytes for kernels in interpret mode."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
