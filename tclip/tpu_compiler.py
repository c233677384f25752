"""The compiler for TPUs, which needs no TPU: the libtpu wheel, in a process of its own.

It takes its options from the environment when it is loaded, and aborts its process over what it
does not know.
"""

import importlib.metadata
import os


def libtpu_version() -> str:
    """Raises ValueError where libtpu is not installed."""
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError('compiling for TPUs needs libtpu: pip install "tclip[tpu]"') from None


def environment() -> dict[str, str]:
    """Environment of a process that compiles by `jax.experimental.topologies` and runs on CPU."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compiling asks for no TPU: neither the metadata server nor the lock of the device.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
