"""Several real processes on this machine, each with a few virtual CPU devices."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

HEARTBEAT_SECONDS = 10
PRELUDE = f"""
import json, os, sys
# For the program alone: Gloo's threads report their connections there, all at once.
sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
from tclip.parallel.processes import initialize
coordinator, count, number, arguments = json.loads(sys.argv[1])
if coordinator:
    initialize(coordinator, count, number, heartbeat_seconds={HEARTBEAT_SECONDS},
        defer_sigterm=True)
"""


def start(program: str, arguments: Any, processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts `program` in processes of so many devices each; it has the value `arguments`."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Compilation is most of what they do.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    # Whoever finds its program there would wait for the others longer than Gloo does.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    coordinator = f"127.0.0.1:{free_port()}" if processes > 1 else None
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PRELUDE + program,
                json.dumps((coordinator, processes, i, arguments)),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def finish(running: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Waits for them; returns the exit code, the output and the messages of each."""
    try:
        texts = [process.communicate(timeout=600) for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(running, texts, strict=True)]


def run(program: str, arguments: Any, processes: int, devices: int) -> list[str]:
    """Runs `program` to its end; returns what each process has printed."""
    ended = finish(start(program, arguments, processes, devices))
    for code, _, messages in ended:
        assert code == 0, messages[-5000:]
    return [output for _, output, _ in ended]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
