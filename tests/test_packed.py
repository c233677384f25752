"""The packed folder: exact round trips, and one clear error for every kind of damage."""

import dataclasses
import functools
import gzip
import hashlib
import itertools
import json
import string

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

from tclip.inference import Model
from tclip.model_kind import model_kind
from tclip.models import ClipPolicy, architecture, init_params
from tclip.packed import folder_bytes, load_packed, save_packed, size_summary
from tclip.processing import clip_tokenizer
from tclip.quant import (
    TernaryTensor,
    init_quant,
    quantize_params,
    ternarize_params,
    ternary_paths,
    unpack,
)
from tests.helpers import tiny

KERNEL = "vision/blocks_0/mlp/fc1/kernel"


def save(path, params=None, config=None, float_dtype="float32"):
    params = tiny.packed_params() if params is None else params
    save_packed(
        path, config or tiny.config(), params, tiny.tokenizer(), tiny.PREPROCESS, float_dtype
    )
    return path


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "packed")


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder, change):
    """Applies `change` to the dict of tensors, with a matching SHA-256."""
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    write_weights(folder, safetensors.numpy.save(tensors))


def write_weights(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    digests = json.loads((folder / "config.json").read_text())["sha256"]
    edit_config(folder, sha256=digests | {"model.safetensors": hashlib.sha256(data).hexdigest()})


def test_round_trip_is_exact_in_float32(folder):
    config, params, tokenizer, preprocess = load_packed(folder)
    assert config == tiny.config()
    assert (preprocess.image_size, preprocess.mean) == (32, tiny.PREPROCESS.mean)
    texts = ["a red square", "ünïcode", ""]
    np.testing.assert_array_equal(tokenizer.encode(texts), tiny.tokenizer().encode(texts))
    stored, loaded = flatten_dict(tiny.packed_params()), flatten_dict(params)
    assert stored.keys() == loaded.keys()
    jax.tree.map(np.testing.assert_array_equal, stored, loaded)


def test_codes_are_those_of_the_fake_quantised_weights_and_stay_packed(folder):
    _, params, _, _ = load_packed(folder)
    fake = flatten_dict(tiny.fake_quant_model().params, sep="/")
    leaves = flatten_dict(params, sep="/")
    paths = ternary_paths(tiny.params(), tiny.POLICY)
    assert len(paths) == 2 * 2 * 6 + 4
    for path in paths:
        assert isinstance(leaves[path], TernaryTensor)
        assert leaves[path].words.dtype == np.int32
        codes = np.asarray(unpack(leaves[path].words, leaves[path].rows))
        np.testing.assert_array_equal(codes, np.sign(fake[path]))


@pytest.mark.parametrize(
    ("float_dtype", "tolerance"),
    [
        ("float32", 1e-5),
        # float16 rounds scales and other floats by up to 2^-12; a few dozen roundings in a row
        # of a unit vector stay below ten times that.
        ("float16", 10 * 2**-12),
    ],
)
def test_embeddings_agree_with_the_fake_quantised_model(tmp_path, float_dtype, tolerance):
    packed = Model(*load_packed(save(tmp_path / "packed", float_dtype=float_dtype)))
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype(np.float32)
    texts = ["a red square", "two", "a photo of a green square"]
    fake = tiny.fake_quant_model()
    for one, other in (
        (packed.encode_image(images), fake.encode_image(images)),
        (packed.encode_text(texts), fake.encode_text(texts)),
    ):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=0)


def test_layers_under_scan_and_blocks_of_inputs_survive(tmp_path):
    config = dataclasses.replace(tiny.config(), scan_layers=True)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    policy = ClipPolicy(policy="blocks", group="block:16")
    quant = init_quant(params, policy)
    pack = functools.partial(quantize_params, policy=policy, dtype=np.float32)
    packed = jax.jit(pack)(params, quant)
    loaded = Model(*load_packed(save(tmp_path / "packed", packed, config)))
    fake = Model(config, ternarize_params(params, quant, policy), loaded.tokenizer, tiny.PREPROCESS)
    np.testing.assert_allclose(loaded.encode_text(["one"]), fake.encode_text(["one"]), atol=1e-5)


def test_an_older_packed_folder_is_replaced_and_nothing_else(tmp_path, folder):
    save(folder, float_dtype="float16")
    assert json.loads((folder / "config.json").read_text())["float_dtype"] == "float16"
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    other = tmp_path / "thesis"
    other.mkdir()
    with pytest.raises(FileExistsError, match="thesis"):
        save(other)


def test_a_full_disk_names_the_file_and_leaves_the_old_folder_and_no_rubbish(tmp_path, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with tiny.little_disk(20_000), pytest.raises(OSError, match=f"{folder}/model.safetensors"):
        save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_values_beyond_float16_are_refused_by_name(tmp_path):
    params = jax.tree.map(lambda x: x, tiny.packed_params())
    params["text"]["ln_final"]["bias"] = params["text"]["ln_final"]["bias"].at[3].set(7e4)
    with pytest.raises(ValueError, match=r"text/ln_final/bias: float16 cannot hold .* 70000"):
        save(tmp_path / "packed", params, float_dtype="float16")
    save(tmp_path / "packed", params, float_dtype="float32")
    params["text"]["ln_final"]["bias"] = params["text"]["ln_final"]["bias"].at[3].set(np.nan)
    with pytest.raises(ValueError, match=r"text/ln_final/bias: float32 cannot hold .* nan"):
        save(tmp_path / "packed", params, float_dtype="float32")


def test_scales_that_vanish_in_float16_are_refused_by_name(tmp_path):
    params = jax.tree.map(lambda x: x, tiny.packed_params())
    leaf = params["text"]["projection"]["kernel"]
    small = dataclasses.replace(leaf, scale=leaf.scale.at[0, 1].set(1e-9))
    params["text"]["projection"]["kernel"] = small
    with pytest.raises(ValueError, match="text/projection/kernel/scale: a scale vanishes"):
        save(tmp_path / "packed", params, float_dtype="float16")


def test_a_model_without_ternary_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no parameter is ternary"):
        save(tmp_path / "packed", tiny.params())


FILES = ["model.safetensors", "tokenizer.json", "preprocessor_config.json"]


@pytest.mark.parametrize("name", [*FILES, "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        load_packed(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: content differs"):
        load_packed(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version 2 is not 1"),
        ({"model_type": "clip"}, "model_type is not 'tclip'"),
        ({"ternary": []}, "ternary is missing or of the wrong type"),
        ({"model": {"widht": 3}}, "widht: unknown key"),
        ({"model": {"vision": {"layers": 10**9}}}, "too few tensors"),
        ({"ternary": {"no/such": {}}}, "is missing|no/such"),
        ({"ternary": {KERNEL: {"shape": [3, 4], "scale_shape": [1, 1]}}}, KERNEL),
        ({"ternary": {KERNEL: {"shape": [32, 64], "scale_shape": [0, 64]}}}, KERNEL),
        ({"ternary": {KERNEL: None}}, KERNEL),
        ({"model": {"text": {"vocab_size": 10**30, "eot_token_id": 3}}}, "no model is of these"),
        ({"float_dtype": "object"}, "float_dtype is none of"),
        ({"sha256": {}}, "content differs"),
    ],
)
def test_a_changed_config_is_one_clear_error(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_packed(folder)


@pytest.mark.parametrize("text", ["{", "[" * 10**6, "\x00", '"tclip"'])
def test_a_config_that_is_no_json_object_is_named(folder, text):
    (folder / "config.json").write_text(text)
    assert model_kind(folder) != "packed"
    with pytest.raises(ValueError, match=r"config\.json: (no valid JSON|model_type)"):
        load_packed(folder)


def set_code(tensors, word):
    tensors[f"{KERNEL}/words"][0, 0] = word


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{KERNEL}/words"), f"'{KERNEL}/words' is missing"),
        (lambda t: t.pop("logit_scale"), "'logit_scale' is missing"),
        (lambda t: t.update(extra=np.zeros(3)), "'extra' is not in the model"),
        (
            lambda t: t.update({f"{KERNEL}/words": np.zeros((2, 63), np.int32)}),
            r"is int32\[2, 63\], expected int32\[2, 64\]",
        ),
        (
            lambda t: t.update({f"{KERNEL}/words": np.zeros((2, 64), np.int64)}),
            r"is int64\[2, 64\], expected int32\[2, 64\]",
        ),
        (lambda t: t["text/ln_final/bias"].fill(np.inf), "'text/ln_final/bias' holds NaN"),
        (lambda t: set_code(t, 0b10_00), "words' holds the code 0b10"),
        (lambda t: set_code(t, np.int32(-(2**31))), "words' holds the code 0b10"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, message):
    edit_tensors(folder, change)
    with pytest.raises(ValueError, match=message):
        load_packed(folder)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\xff" * 7 + b"\x00{}", b"\x02" + b"\0" * 7])
def test_a_header_out_of_range_is_one_clear_error(folder, data):
    write_weights(folder, data)
    with pytest.raises(ValueError, match=r"model.safetensors: no valid safetensors file"):
        load_packed(folder)


def test_codes_beyond_the_rows_are_refused(tmp_path):
    # Patches of 8x8x3 fill their words; a width of 24 leaves half a word of padding.
    vision = dataclasses.replace(tiny.config().vision, width=24)
    config = dataclasses.replace(tiny.config(), vision=vision)
    params = jax.jit(lambda: init_params(config, jax.random.key(0)))()
    policy = ClipPolicy(policy="ffn")
    pack = jax.jit(lambda params: quantize_params(params, init_quant(params, policy), policy))
    packed = pack(params)
    folder = save(tmp_path / "packed", packed, config)
    load_packed(folder)
    edit_tensors(folder, lambda t: t[f"{KERNEL}/words"].__setitem__((1, 5), 1 << 16))
    with pytest.raises(ValueError, match="holds codes beyond its 24 rows"):
        load_packed(folder)


def test_sizes_are_what_counting_gives(folder):
    _, params, _, _ = load_packed(folder)
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert folder_bytes(folder) == size
    summary = size_summary(params, size)
    fake = flatten_dict(tiny.fake_quant_model().params, sep="/")
    ternary = [np.asarray(fake[path]) for path in ternary_paths(tiny.params(), tiny.POLICY)]
    weights = sum(leaf.size for leaf in ternary)
    bits = sum(
        32 * -(-leaf.shape[0] // 16) * leaf.shape[1] + 32 * leaf.shape[1] for leaf in ternary
    )
    total = sum(np.asarray(leaf).size for leaf in fake.values())
    assert summary["parameters"] == total
    assert summary["compression_ratio"] == 4 * total / size
    assert summary["bits_per_ternary_weight"] == pytest.approx(bits / weights, abs=1e-12)
    assert summary["ternary_fraction"] == weights / total
    zeros = sum((leaf == 0).sum() for leaf in ternary)
    assert summary["sparsity"] == pytest.approx(zeros / weights, abs=1e-12)


def write_merges(path):
    """As many merges as CLIP has, and a little longer: four-letter heads of ten-letter words."""
    letters, count = string.ascii_lowercase, 48_894
    pairs = list(map("".join, itertools.product(letters, letters)))
    ends = [f"{pair}</w>" for pair in pairs]
    heads = list(itertools.islice(itertools.product(pairs, pairs), 8_000))
    merges = [(pair[0], pair[1:]) for pair in (*pairs, *ends)] + heads
    words = itertools.product(map("".join, heads), ends)
    merges += itertools.islice(words, count - len(merges))
    with gzip.open(path, "wt") as file:
        file.write("\n".join(["#version: 0.2", *map(" ".join, merges)]))
    return path


@pytest.mark.slow
def test_vit_b16_ships_14_times_smaller(tmp_path):
    config = architecture("ViT-B/16")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.02, shapes)
    policy = ClipPolicy(policy="all", estimator="absmean")
    quant = init_quant(params, policy)
    packed = jax.jit(lambda p, q: quantize_params(p, q, policy))(params, quant)
    preprocess = dataclasses.replace(tiny.PREPROCESS, image_size=224)
    folder = tmp_path / "packed"
    tokenizer = clip_tokenizer(write_merges(tmp_path / "merges.txt.gz"), 77)
    save_packed(folder, config, packed, tokenizer, preprocess)
    # The file of CLIP's own tokenizer has 1.68 MB.
    assert tokenizer.vocab_size == 49_408
    assert (folder / "tokenizer.json").stat().st_size >= 1_680_000
    _, loaded, _, _ = load_packed(folder)
    summary = size_summary(loaded, folder_bytes(folder))
    assert summary["parameters"] == 149_620_737
    assert summary["compression_ratio"] >= 14.5
    assert summary["bits_per_ternary_weight"] <= 2.03
    assert summary["ternary_fraction"] >= 0.989
