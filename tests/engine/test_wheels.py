"""The wheels of a release, built for both machines: each engine runs, or is emulated."""

import importlib.util
import os
import platform
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.c_example import EXAMPLE, SOURCES, assert_logits, example_inputs, run

ROOT = Path(__file__).parents[2]
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu")
LIBRARY = "tclip/engine/libtclip_engine.so"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None or platform.machine() != "x86_64",
        reason="takes x86-64 and ziglang (extra `wheels`)",
    ),
]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> dict[str, Path]:
    """The engine's library of each wheel, by its machine."""
    out = tmp_path_factory.mktemp("dist")
    run("bash", ROOT / "launch/wheels.sh", out, env=os.environ | {"PYTHON": sys.executable})
    found = {}
    for wheel in out.glob("tclip-*-py3-none-manylinux2014_*.manylinux_2_17_*.whl"):
        machine = wheel.stem.rpartition("manylinux_2_17_")[2]
        with zipfile.ZipFile(wheel) as archive:
            found[machine] = Path(archive.extract(LIBRARY, out / machine))
    return found


def test_there_is_one_of_each_machine(libraries):
    # e_machine of ELF: 62 is x86-64, 183 is aarch64.
    machines = {name: file.read_bytes()[18] for name, file in libraries.items()}
    assert machines == {"x86_64": 62, "aarch64": 183}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_example_runs_on_it(libraries, machine, tmp_path):
    command = []
    if machine == "aarch64":
        emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        if not emulator or not ARM_LIBRARIES.is_dir():
            pytest.skip("qemu-user and the C library of aarch64 are not installed")
        command = [emulator, "-cpu", "max", "-L", ARM_LIBRARIES]
    program, library = tmp_path / "classify", libraries[machine]
    compiler = sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.17"
    rpath = f"-Wl,-rpath,{library.parent}"
    run(*compiler, "-I", SOURCES / "include", EXAMPLE, library, rpath, "-o", program, "-lm")
    arguments, expected = example_inputs(tmp_path)
    assert_logits(run(*command, program, *arguments), expected)
