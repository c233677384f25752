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


def test_tensorflow_is_never_imported_and_torch_never_needed():
    # None in sys.modules is an ImportError. TensorBoard's writer takes torch where it is there.
    absent = "sys.modules.update(torch=None, transformers=None)"
    modules = imported_by(f"{absent}; import tclip.train.loop, tclip.report, tclip.data.shapes")
    assert "tensorflow" not in modules


def test_inference_imports_no_torch():
    modules = imported_by("import tclip.inference, tclip.evals, tclip.export, tclip.interop")
    assert modules.isdisjoint({"tensorflow", "torch", "transformers"})
