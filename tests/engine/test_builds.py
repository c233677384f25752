"""The engine built in other ways: with sanitizers, for ARM, with the example, by no compiler."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tclip
import tclip.engine
from tclip.demo import MODEL, PICTURES
from tclip.processing import read_pixels

SOURCES = Path(tclip.engine.__file__).parent
CHECK = Path(__file__).parent / "check_kernels.c"
EXAMPLE = SOURCES / "examples/classify.c"
SANITIZED = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
LABELS = ["a photo of a dog", "a photo of a cat", "a photo of a ship"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not installed"),
]


def run(*command, **options) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


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
def example_inputs(tmp_path_factory) -> tuple[list[Path], dict[str, float]]:
    """Arguments of the example, and the logits that the Python model gives for them."""
    model = tclip.load(MODEL, activations="int8", backend="jax")
    folder = tmp_path_factory.mktemp("example")
    pixels = read_pixels(PICTURES[0], model.preprocess)
    pixels.astype("<f4").tofile(folder / "pixels")
    rows = model.tokenizer.encode(LABELS).tolist()
    lines = (
        f"{label}\t{' '.join(map(str, ids))}\n" for label, ids in zip(LABELS, rows, strict=True)
    )
    (folder / "labels").write_text("".join(lines))
    cosines = model.encode_text(LABELS) @ model.encode_image([PICTURES[0]])[0]
    logits = np.asarray(cosines) * float(model.logit_scale)
    return [MODEL, folder / "pixels", folder / "labels"], dict(zip(LABELS, logits, strict=True))


def link(out: Path, compiler: list[str], program: Path, objects: list[Path]) -> Path:
    run(*compiler, "-I", SOURCES / "include", program, *objects, "-o", out, "-lm", "-lpthread")
    return out


def assert_logits(printed: str, expected: dict[str, float]) -> None:
    rows = dict(line.rsplit("\t", 1) for line in printed.splitlines())
    assert list(rows) == list(expected)
    for label, value in rows.items():
        # Float sums in another order move some activations to the next of 255 steps.
        assert float(value) == pytest.approx(expected[label], abs=0.05)


def test_sanitizers_find_nothing_in_the_kernels(sanitized, tmp_path):
    program = link(tmp_path / "check", ["cc", *SANITIZED.split()], CHECK, sanitized)
    assert "plain" in run(program).split()


def test_the_example_classifies_as_python_does(sanitized, example_inputs, tmp_path):
    program = link(tmp_path / "classify", ["cc", *SANITIZED.split()], EXAMPLE, sanitized)
    arguments, expected = example_inputs
    assert_logits(run(program, *arguments), expected)


def test_the_kernels_of_arm_are_exact(arm, tmp_path):
    compiler, objects, emulator = arm
    program = link(tmp_path / "check", compiler, CHECK, objects)
    assert run(*emulator, program).split() == ["plain", "dotprod", "i8mm"]


def test_the_example_classifies_on_arm(arm, example_inputs, tmp_path):
    compiler, objects, emulator = arm
    program = link(tmp_path / "classify", compiler, EXAMPLE, objects)
    arguments, expected = example_inputs
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
