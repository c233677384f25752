"""What importing tclip costs."""

import subprocess
import sys

from tclip import engine
from tclip.interop import save_huggingface
from tclip.packed import save_packed
from tests.helpers import tiny

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


TRAINING = (
    "orbax",
    "optax",
    "grain",
    "ml_collections",
    "array_record",
    "tensorstore",
    "tensorflow_datasets",
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


def test_a_packed_model_opens_without_what_trains_one(tmp_path):
    parts = tiny.config(), tiny.packed_params(), tiny.tokenizer(), tiny.PREPROCESS
    save_packed(tmp_path / "packed", *parts)
    load = f"import tclip; tclip.load({str(tmp_path / 'packed')!r}, backend="
    modules = imported_by(f"{load}'jax')")
    assert "jax" in modules
    assert modules.isdisjoint(TRAINING)
    if not engine.unavailable():
        modules = imported_by(f"{load}'engine')")
        assert modules.isdisjoint({"jax", "flax", *TRAINING})


def test_a_folder_of_hugging_face_opens_without_what_trains_a_model(tmp_path):
    folder = tmp_path / "hf"
    save_huggingface(folder, tiny.config(), tiny.params(), tiny.tokenizer(), tiny.PREPROCESS)
    modules = imported_by(f"import tclip; tclip.load({str(folder)!r})")
    assert modules.isdisjoint(TRAINING)


def test_processing_needs_no_jax():
    modules = imported_by("import tclip.processing")
    assert modules.isdisjoint({"jax", "flax", *TRAINING})


def test_the_commands_of_a_base_installation_import_nothing_that_trains():
    for command in ("classify", "demo", "export"):
        modules = imported_by(f"import tclip.cli.app, tclip.cli.{command}")
        assert modules.isdisjoint(TRAINING), command
