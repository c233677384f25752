"""What importing tclip costs."""

import subprocess
import sys

HEAVY = (
    "flax",
    "optax",
    "orbax",
    "tensorflow_datasets",
    "grain",
    "PIL",
    "tokenizers",
    "matplotlib",
)


def imported_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_package_root_is_light():
    modules = imported_by("import tclip")
    assert modules.isdisjoint(HEAVY)
    assert "jax" not in modules


def test_the_op_needs_jax_and_nothing_above_it():
    modules = imported_by("from tclip.quant import ternarize")
    assert "jax" in modules
    assert modules.isdisjoint(HEAVY)


def test_neither_tensorflow_nor_torch_is_ever_imported():
    modules = imported_by("import tclip.trainer, tclip.report, tclip.data.shapes")
    assert modules.isdisjoint({"tensorflow", "torch"})
