"""Exports for transformers against the fake-quantised model; packed ones are in test_packed.py."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from tclip.export import export_huggingface, export_packed
from tclip.inference import Model
from tclip.interop import load_pretrained
from tclip.models import CLIP, ClipPolicy
from tclip.quant import ternarize_params, ternary_paths
from tests.helpers import tiny

TEXTS = ["a red square", "two", "a photo of a green square", ""]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A ternary run."""
    return tiny.write_workdir(tmp_path_factory.mktemp("run") / "ternary", quant=tiny.POLICY)


@pytest.fixture(scope="module")
def float_workdir(tmp_path_factory):
    return tiny.write_workdir(tmp_path_factory.mktemp("run") / "float")


@functools.cache
def images():
    return np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def raw_embeddings(config, params, images, tokens):
    return CLIP(config).apply({"params": params}, images, tokens)


@pytest.mark.parametrize(
    ("float_dtype", "compute", "bound"),
    # Weights in bfloat16 are eight times as coarse as in float16.
    [("float16", "float32", 1e-3), ("float16", "float16", 1e-3), ("bfloat16", "float32", 1e-2)],
)
def test_transformers_reproduces_the_ternary_student(
    workdir, tmp_path, float_dtype, compute, bound
):
    torch = pytest.importorskip("torch", reason="needs the extra `reference`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `reference`")
    summary = export_huggingface(workdir, tmp_path / "hf", float_dtype)
    assert 0.9 < summary["ternary_fraction"] < 1
    model = transformers.CLIPModel.from_pretrained(tmp_path / "hf")
    assert model.dtype == getattr(torch, float_dtype)
    model = model.to(getattr(torch, compute)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    pixels = torch.from_numpy(images().transpose(0, 3, 1, 2)).to(model.dtype)
    with torch.no_grad():
        theirs = (
            model.get_image_features(pixels).pooler_output.float().numpy(),
            model.get_text_features(**batch).pooler_output.float().numpy(),
        )
    fake = tiny.fake_quant_model()
    tokens = tiny.tokenizer().encode(TEXTS)
    ours = raw_embeddings(fake.config, fake.params, images(), tokens)
    for a, b in zip(ours, theirs, strict=True):
        units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (np.asarray(a), b)]
        assert np.abs(np.subtract(*units)).max() <= bound


def test_ternary_leaves_have_three_values_an_output(workdir, tmp_path):
    export_huggingface(workdir, tmp_path / "hf")
    tensors = safetensors.numpy.load_file(tmp_path / "hf/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}
    kernel = tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]
    for output in kernel:
        magnitudes = np.unique(np.abs(output[output != 0]))
        assert len(magnitudes) == 1
    # Every ternary weight is there, and as what training saw, rounded once.
    _, params, _, _ = load_pretrained(tmp_path / "hf")
    fake = tiny.fake_quant_model().params
    for loaded, trained in zip(jax.tree.leaves(params), jax.tree.leaves(fake), strict=True):
        np.testing.assert_array_equal(loaded, np.asarray(trained, np.float16).astype(np.float32))


def test_a_float_run_is_written_as_it_is(float_workdir, tmp_path):
    summary = export_huggingface(float_workdir, tmp_path / "hf")
    config, params, tokenizer, preprocess = load_pretrained(tmp_path / "hf")
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params())
    assert (summary["float_dtype"], summary["ternary_fraction"]) == ("float32", 0)
    size = sum(file.stat().st_size for file in (tmp_path / "hf").iterdir())
    assert summary["size_bytes"] == size
    assert config == tiny.config()
    loaded = Model(config, params, tokenizer, preprocess)
    difference = loaded.encode_text(TEXTS) - tiny.float_model().encode_text(TEXTS)
    assert np.abs(difference).max() <= 1e-6


def test_a_float_run_is_ternarised_on_request(float_workdir, workdir, tmp_path):
    policy = ClipPolicy("ffn", "channel", "absmean")
    export_huggingface(float_workdir, tmp_path / "hf", policy=policy)
    _, params, _, _ = load_pretrained(tmp_path / "hf")
    fixed = dataclasses.replace(policy, learn_scale=False, learn_threshold=False)
    fake = ternarize_params(tiny.params(), {}, fixed)
    for path in ternary_paths(params, policy):
        leaf, expected = params, fake
        for key in path.split("/"):
            leaf, expected = leaf[key], expected[key]
        np.testing.assert_array_equal(np.sign(leaf), np.sign(expected))
    with pytest.raises(ValueError, match="trained with policy 'all' already"):
        export_huggingface(workdir, tmp_path / "no", policy=policy)
    with pytest.raises(ValueError, match="float model: say with a policy"):
        export_packed(float_workdir, tmp_path / "no")


def test_anyones_float_clip_is_packed_like_a_run_of_ours(float_workdir, tmp_path):
    policy = ClipPolicy("blocks", "channel", "optimal")
    export_huggingface(float_workdir, tmp_path / "hf")
    sizes = export_packed(tmp_path / "hf", tmp_path / "theirs", policy=policy)
    assert 0 < sizes["ternary_fraction"] < 1
    export_packed(float_workdir, tmp_path / "ours", policy=policy)
    weights = [tmp_path / name / "model.safetensors" for name in ("theirs", "ours")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    with pytest.raises(ValueError, match="ours is packed already"):
        export_packed(tmp_path / "ours", tmp_path / "no", policy=policy)


def test_on_the_command_line(workdir, tmp_path):
    command = [sys.executable, "-m", "launch.export", f"--workdir={workdir}", "--format=hf"]
    command += [f"--out={tmp_path}/hf", "--float_dtype=bfloat16"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| stored as " in done.stdout
    load_pretrained(tmp_path / "hf")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"export: error: {tmp_path}/hf exists; choose another folder or remove it\n"
    )
