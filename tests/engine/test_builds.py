"""The engine built in other ways: with sanitizers, for ARM, with the example, by no compiler."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers.c_example import EXAMPLE, SOURCES, assert_logits, example_inputs, run

CHECK = Path(__file__).parent / "check_kernels.c"
SANITIZED = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed"),
]


def build(folder: Path, compiler: str, *options: str) -> list[Path]:
    """Compiles the engine; returns its object files."""
    environment = os.environ | {"CC": compiler}
    run("cmake", "-S", SOURCES, "-B", folder, *options, env=environment)
    run("cmake", "--build", folder, "--parallel", "2")
    return sorted(folder.rglob("*.c.o"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> list[Path]:
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    options = "-DCMAKE_BUILD_TYPE=Debug", f"-DCMAKE_C_FLAGS={SANITIZED}"
    return build(tmp_path_factory.mktemp("sanitized"), "cc", *options)


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> tuple[list[str], list[Path], list[str]]:
    """A compiler for ARM, the engine's object files, and the command that runs such a program."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang (extra `wheels`) is not installed")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not emulator:
        pytest.skip("qemu-user is not installed")
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    options = "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"
    objects = build(tmp_path_factory.mktemp("arm"), " ".join(compiler), *options)
    return [*compiler, "-static"], objects, [emulator, "-cpu", "max"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[list[Path], dict[str, float]]:
    return example_inputs(tmp_path_factory.mktemp("example"))


def link(out: Path, compiler: list[str], program: Path, objects: list[Path]) -> Path:
    run(*compiler, "-I", SOURCES / "include", program, *objects, "-o", out, "-lm", "-lpthread")
    return out


def test_sanitizers_find_nothing_in_the_kernels(sanitized, tmp_path):
    program = link(tmp_path / "check", ["cc", *SANITIZED.split()], CHECK, sanitized)
    assert "plain" in run(program).split()


def test_the_example_classifies_as_python_does(sanitized, inputs, tmp_path):
    program = link(tmp_path / "classify", ["cc", *SANITIZED.split()], EXAMPLE, sanitized)
    arguments, expected = inputs
    assert_logits(run(program, *arguments), expected)


def test_the_kernels_of_arm_are_exact(arm, tmp_path):
    compiler, objects, emulator = arm
    program = link(tmp_path / "check", compiler, CHECK, objects)
    assert run(*emulator, program).split() == ["plain", "dotprod", "i8mm"]


def test_the_example_classifies_on_arm(arm, inputs, tmp_path):
    compiler, objects, emulator = arm
    program = link(tmp_path / "classify", compiler, EXAMPLE, objects)
    arguments, expected = inputs
    assert_logits(run(*emulator, program, *arguments), expected)


def test_without_a_compiler_the_build_says_so_and_goes_on(tmp_path):
    cmake = shutil.which("cmake")
    maker = shutil.which("ninja") or shutil.which("make")
    (tmp_path / "bin").mkdir()
    os.symlink(maker, tmp_path / "bin" / Path(maker).name)
    environment = {k: v for k, v in os.environ.items() if k != "CC"}
    environment["PATH"] = str(tmp_path / "bin")
    generator = "Ninja" if maker.endswith("ninja") else "Unix Makefiles"
    arguments = "-S", SOURCES, "-B", tmp_path / "build", "-G", generator
    assert "without its engine" in run(cmake, *arguments, env=environment)
    run(cmake, "--build", tmp_path / "build", env=environment)
