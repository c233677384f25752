"""Checkpoints as safetensors itself writes them, and files of which nothing may be believed."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tclip.interop.tensors import read_tensors

VALUES = np.array([[0.0, 1.0, -2.5], [1 / 3, 65504.0, -1e-3]])


def test_floats_become_float32_and_integers_stay(tmp_path):
    dtypes = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
    integers = {"i64": np.arange(3), "u8": np.array([[7]], np.uint8), "bool": np.array([True])}
    stored = {name: VALUES.astype(dtype) for name, dtype in dtypes.items()} | integers
    save_file(stored | {"scalar": np.array(4.5, np.float16)}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    assert tensors.keys() == stored.keys() | {"scalar"}
    for name in dtypes:
        assert tensors[name].dtype == np.float32
        assert np.array_equal(tensors[name], stored[name].astype(np.float32))
    for name in integers:
        assert tensors[name].dtype == stored[name].dtype
        assert np.array_equal(tensors[name], stored[name])
    assert tensors["scalar"].shape == ()
    assert tensors["scalar"] == 4.5


def test_a_value_that_float32_cannot_hold_is_refused(tmp_path):
    save_file({"a": np.array([1.0]), "b": np.array([1e39])}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor 'b' is beyond the range"):
        read_tensors(tmp_path)


def write_shards(folder, shards, weight_map=None, name="model.safetensors"):
    for shard, tensors in shards.items():
        arrays = {key: np.full(2, value, np.float32) for key, value in tensors.items()}
        save_file(arrays, folder / shard)
    if weight_map is None:
        weight_map = {key: shard for shard, tensors in shards.items() for key in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


SHARDS = {"m-1-of-2.safetensors": {"a": 1, "b": 2}, "m-2-of-2.safetensors": {"c": 3}}


@pytest.mark.parametrize("name", ["model.safetensors", "open_clip_model.safetensors"])
def test_shards_are_joined(name, tmp_path):
    write_shards(tmp_path, SHARDS, name=name)
    tensors = read_tensors(tmp_path, name)
    assert {key: value.tolist() for key, value in tensors.items()} == {
        "a": [1, 1],
        "b": [2, 2],
        "c": [3, 3],
    }


def test_transformers_writes_shards_that_are_read(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.CLIPTextConfig(vocab_size=64, num_attention_heads=2, **sizes)
    model = transformers.CLIPTextModel(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert not (tmp_path / "model.safetensors").exists()
    expected = {key: value.float().numpy() for key, value in model.state_dict().items()}
    tensors = read_tensors(tmp_path)
    assert {key.removeprefix("text_model.") for key in tensors} == {
        key.removeprefix("text_model.") for key in expected
    }
    for key, value in tensors.items():
        assert np.array_equal(value, expected.get(key, expected.get(f"text_model.{key}")))


@pytest.mark.parametrize(
    ("weight_map", "error", "match"),
    [
        ({"a": "m-1-of-2.safetensors"}, ValueError, "m-1-of-2.*tensor 'b' is not in model"),
        (
            {"a": "m-1-of-2.safetensors", "b": "m-2-of-2.safetensors", "c": "m-2-of-2.safetensors"},
            ValueError,
            "m-1-of-2.*has tensor 'b' in m-2-of-2",
        ),
        (
            dict.fromkeys("abcd", "m-1-of-2.safetensors") | {"c": "m-2-of-2.safetensors"},
            ValueError,
            "m-1-of-2.*tensor 'd' is missing",
        ),
        ({"a": "m-3-of-2.safetensors"}, FileNotFoundError, "m-3-of-2.safetensors is missing"),
        ({"a": "../x.safetensors"}, ValueError, "'../x.safetensors' is not the name"),
        ({"a": "/x.safetensors"}, ValueError, "'/x.safetensors' is not the name"),
        ({"a": "./m-1-of-2.safetensors"}, ValueError, "is not the name"),
        ({"a": "sub/x.safetensors"}, ValueError, "is not the name"),
        ({"a": ".."}, ValueError, "'..' is not the name"),
        ({"a": "x\0.safetensors"}, ValueError, "is not the name"),
        ({"a": "pytorch_model.bin"}, ValueError, "'pytorch_model.bin' is not the name"),
        ({"a": ["m-1-of-2.safetensors"]}, ValueError, "is not the name"),
        ({"a": None}, ValueError, "None is not the name"),
        ({}, ValueError, "weight_map is not"),
        (["a"], ValueError, "weight_map is not"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(weight_map, error, match, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors")
    write_shards(folder, SHARDS, weight_map)
    with pytest.raises(error, match=match):
        read_tensors(folder)


def test_a_tensor_in_two_shards_is_named(tmp_path):
    shards = {"1.safetensors": {"a": 1}, "2.safetensors": {"a": 2, "b": 3}}
    write_shards(tmp_path, shards, {"a": "1.safetensors", "b": "2.safetensors"})
    with pytest.raises(ValueError, match=r"2\.safetensors: .*has tensor 'a' in 1\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"weight_map"', '{"a": 1}', "[" * 10**5])
def test_a_broken_index_is_named(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        read_tensors(tmp_path)


def safetensors_bytes(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


FLOAT8 = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a valid safetensors"),
        (b"\x80\x04\x95 a pickle", "not a valid safetensors"),
        (struct.pack("<Q", 2**62) + b"{}", "not a valid safetensors"),
        (safetensors_bytes(b"[" * 1000, b""), "not a valid safetensors"),
        (
            safetensors_bytes(
                b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                b'"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
                b"ab",
            ),
            "not a valid safetensors.*`w`",
        ),
        (safetensors_bytes(FLOAT8, b"ab"), "tensor 'w' is F8_E4M3"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(content, match, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors.*{match}"):
        read_tensors(tmp_path)


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_truncated_or_damaged_file_is_named_or_read(damaged_folder, data):
    file = damaged_folder / "model.safetensors"
    save_file({"a": VALUES, "b": np.arange(4)}, file)
    whole = file.read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:length])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a valid safetensors file"):
        read_tensors(damaged_folder)
    damaged = bytearray(whole)
    damaged[length] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(damaged))
    try:
        tensors = read_tensors(damaged_folder)
    except ValueError as error:
        assert "model.safetensors" in str(error)
    else:
        assert len(tensors) == 2


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "open_clip.pt", "m.pth", "last.ckpt", "flax.msgpack", "tf.h5"]
)
def test_other_formats_are_refused_unopened_with_the_remedy(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"anything")
    (tmp_path / name).chmod(0)
    with pytest.raises(ValueError, match=rf"{name} is not read.*safe_serialization=True"):
        read_tensors(tmp_path)


def test_safetensors_beside_a_pickle_are_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    save_file({"a": VALUES}, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path).keys() == {"a"}


def test_a_folder_without_a_checkpoint_says_what_is_missing(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor .*\.json"):
            read_tensors(folder)
