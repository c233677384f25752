"""The engine's reader of packed folders: damage is an error that names its file or tensor."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import tclip.engine
from tclip import engine
from tclip.packed import save_packed
from tests.helpers import tiny

SOURCES = Path(tclip.engine.__file__).parent
WORDS = "vision/blocks_0/mlp/fc1/kernel/words"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "packed"
    save_packed(path, tiny.config(), tiny.packed_params(), tiny.tokenizer(), tiny.PREPROCESS)
    return path


def edit_tensors(folder, change):
    """Applies `change` to the dict of tensors, with a matching SHA-256."""
    file, config = folder / "model.safetensors", folder / "config.json"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    file.write_bytes(safetensors.numpy.save(tensors))
    description = json.loads(config.read_text())
    description["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    config.write_text(json.dumps(description))


def set_first(name, value):
    def change(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[0] = value

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(WORDS), WORDS),
        (lambda t: t.update(extra=np.zeros(3, np.float16)), "extra"),
        (lambda t: t.update({WORDS: t[WORDS][:-1]}), WORDS),
        (lambda t: t.update({WORDS: t[WORDS].astype(np.float32)}), WORDS),
        (set_first(WORDS, 2), WORDS),
        (set_first("text/ln_final/scale", np.nan), "text/ln_final/scale"),
        (set_first("vision/blocks_0/mlp/fc1/kernel/scale", np.inf), "fc1/kernel/scale"),
    ],
)
def test_damaged_tensors_are_named(folder, change, named):
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=named):
        engine.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_file_is_named(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match=name):
        engine.load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        engine.load(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 33), ("heads", 0), ("layers", 10**9), ("mlp_dim", 2**40), ("colour", 1)],
)
def test_an_architecture_that_does_not_fit_is_refused(folder, key, value):
    config = folder / "config.json"
    description = json.loads(config.read_text())
    description["model"]["vision"][key] = value
    config.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="vision"):
        engine.load(folder)


@pytest.mark.slow
def test_mutated_folders_never_crash(folder, tmp_path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = "-std=gnu11 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fopenmp-simd"
    names = "choose config encode error json kernel_plain matmul model product safetensors threads"
    sources = [SOURCES / "csrc" / f"{name}.c" for name in (*names.split(), "transformer")]
    sources += [SOURCES / "csrc" / f"{name}.c" for name in ("floats", "quantize")]
    program, scratch = tmp_path / "fuzz_reader", tmp_path / "scratch"
    scratch.mkdir()
    built = subprocess.run(
        [
            compiler,
            *flags.split(),
            "-DTCLIP_SUFFIX=plain",
            f"-I{SOURCES / 'include'}",
            *map(str, sources),
            str(Path(__file__).with_name("fuzz_reader.c")),
            "-o",
            str(program),
            "-lm",
            "-pthread",
        ],
        capture_output=True,
        text=True,
    )
    if built.returncode:
        pytest.skip(f"the compiler has no sanitizers: {built.stderr[-200:]}")
    done = subprocess.run(
        [program, folder, scratch, "1", "600"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # A few mutations are harmless, such as those of values nobody reads.
    assert int(done.stdout) < 300
