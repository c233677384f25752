"""Reading the tensors of other people's checkpoints: safetensors only, whole or in shards."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax  # noqa: F401 (brings ml_dtypes, which teaches NumPy bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open

from tclip.files import naming

# What NumPy holds; float8 and float4 are left out: such weights mean nothing without their scales.
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
UNREAD_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
REMEDY = (
    "pickled weights can run code when they are loaded; where that may happen, convert them by "
    "transformers' model.save_pretrained(folder, safe_serialization=True) or by safetensors.torch"
)


def read_tensors(folder: Path, name: str = "model.safetensors") -> dict[str, np.ndarray]:
    """Returns all tensors of a checkpoint by name: floats as float32, integers as they are.

    Args:
      folder: holds `name`, or shards with the index `name`.index.json as Hugging Face writes them.

    Raises:
      FileNotFoundError: there is no such checkpoint, or a shard is absent.
      ValueError: only a checkpoint in another format is there; a file is no valid safetensors or
        index, or is truncated; a tensor is missing, twice there or of a dtype that is not read.
    """
    file, index = folder / name, folder / f"{name}.index.json"
    if file.is_file():
        return dict(_tensors(file))
    if index.is_file():
        return _sharded_tensors(index)
    if other := next((f for f in sorted(folder.glob("*")) if f.suffix in UNREAD_SUFFIXES), None):
        raise ValueError(f"{other} is not read, only {name} is: {REMEDY}")
    raise FileNotFoundError(
        f"{folder} holds neither {name} nor {index.name}; if it was published without: {REMEDY}"
    )


def _sharded_tensors(index: Path) -> dict[str, np.ndarray]:
    weight_map = _read_weight_map(index)
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        file = index.parent / shard
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {index.name} names it")
        for key, tensor in _tensors(file):
            if key not in weight_map:
                raise ValueError(f"{file}: tensor {key!r} is not in {index.name}")
            if weight_map[key] != shard:
                raise ValueError(f"{file}: {index.name} has tensor {key!r} in {weight_map[key]}")
            tensors[key] = tensor
    for key in weight_map.keys() - tensors.keys():
        raise ValueError(f"{index.parent / weight_map[key]}: tensor {key!r} is missing")
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError(f"{index}: no JSON with a weight_map") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: weight_map is not a list of tensors and their files")
    for shard in weight_map.values():
        # A plain name cannot lead out of the folder.
        if not (
            isinstance(shard, str)
            and shard == Path(shard).name
            and shard.endswith(".safetensors")
            and shard.isprintable()
        ):
            raise ValueError(f"{index}: {shard!r} is not the name of a safetensors file beside it")
    return weight_map


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        # Memory-mapped: one tensor at a time is copied.
        with naming(file), safe_open(file, "np") as reader:
            for key in reader.keys():  # noqa: SIM118 (it is no mapping)
                dtype = reader.get_slice(key).get_dtype()
                if dtype not in FLOATS + INTEGERS:
                    raise ValueError(f"{file}: tensor {key!r} is {dtype}, which is not read")
                tensor = reader.get_tensor(key)
                if dtype in FLOATS:
                    with np.errstate(over="raise"):
                        tensor = tensor.astype(np.float32, copy=False)
                yield key, tensor
    except FloatingPointError:
        raise ValueError(f"{file}: tensor {key!r} is beyond the range of float32") from None
    except SafetensorError as error:
        raise ValueError(f"{file} is not a valid safetensors file: {error}") from None
