"""The folder that ships: ternary codes, scales, the floats that are left, tokenizer, preprocessing.

    config.json               architecture, list of ternary tensors, SHA-256 of the other files
    model.safetensors         PATH/words int32 [.., ceil(K/16), N] and PATH/scale for a ternary
                              leaf of shape [.., K, N], PATH for what stayed float
    tokenizer.json            Hugging Face tokenizers
    preprocessor_config.json  Hugging Face image processor

PATH is the parameter's path joined by "/". A folder is an untrusted input: everything read from it
is checked against the architecture before it is used.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from tclip.config import build, to_dict
from tclip.files import naming, whole_folder
from tclip.model_kind import CONFIG, PACKED, model_kind
from tclip.models import CLIPConfig, init_params, leaves_by_path
from tclip.processing import (
    PreprocessConfig,
    Tokenizer,
    load_preprocess,
    load_tokenizer,
    save_preprocess,
)
from tclip.quant import TernaryTensor
from tclip.quant.packing import CODES_PER_WORD

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor_config.json"
FLOAT_DTYPES = ("float16", "float32")


def save_packed(
    path: str | Path,
    config: CLIPConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    preprocess: PreprocessConfig,
    float_dtype: str = "float16",
) -> None:
    """Writes a packed folder; whoever looks at `path` sees a whole folder or none.

    Args:
      path: the folder; an older packed folder there is replaced, anything else is left alone.
      config: architecture of `params`.
      params: parameter tree whose ternary leaves are `TernaryTensor`s.
      tokenizer: what made the text tower's ids.
      preprocess: what made the image tower's pixels.
      float_dtype: "float16" or "float32", for the scales and for what is not ternary.

    Raises:
      ValueError: no ternary leaf, an unknown dtype, or a value that `float_dtype` cannot hold; the
        message names the leaf.
      FileExistsError: `path` is something else than a packed folder.
      OSError: a file cannot be written, for instance because the disk is full; it is named.
    """
    path = Path(path)
    if float_dtype not in FLOAT_DTYPES:
        raise ValueError(f"float_dtype: expected one of {FLOAT_DTYPES}, got {float_dtype!r}")
    if path.exists() and model_kind(path) != "packed":
        raise FileExistsError(f"{path} exists and is no packed model; choose another folder")
    tensors, ternary = {}, {}
    for name, leaf in leaves_by_path(params).items():
        if isinstance(leaf, TernaryTensor):
            ternary[name] = {"shape": list(leaf.shape), "scale_shape": list(leaf.scale.shape)}
            tensors[f"{name}/words"] = np.asarray(leaf.words)
            tensors[f"{name}/scale"] = cast_float(f"{name}/scale", leaf.scale, float_dtype)
        else:
            tensors[name] = cast_float(name, leaf, float_dtype)
    if not ternary:
        raise ValueError(f"{path}: nothing to pack, no parameter is ternary; give a policy")

    with whole_folder(path) as folder:
        with naming(path / WEIGHTS):
            (folder / WEIGHTS).write_bytes(safetensors.numpy.save(tensors, {"format": "np"}))
        with naming(path / TOKENIZER):
            tokenizer.save(folder / TOKENIZER)
        with naming(path / PREPROCESSOR):
            save_preprocess(preprocess, folder / PREPROCESSOR)
        description = {
            "model_type": PACKED,
            "format_version": FORMAT_VERSION,
            "model": to_dict(config),
            "float_dtype": float_dtype,
            "ternary": ternary,
            "sha256": {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                for name in (WEIGHTS, TOKENIZER, PREPROCESSOR)
            },
        }
        with naming(path / CONFIG):
            (folder / CONFIG).write_text(json.dumps(description, indent=1) + "\n")


def load_packed(
    path: str | os.PathLike[str],
) -> tuple[CLIPConfig, dict[str, Any], Tokenizer, PreprocessConfig]:
    """Reads a packed folder; ternary weights stay packed, other floats become float32.

    Raises:
      FileNotFoundError: a file of the folder is missing.
      ValueError: a file was changed after export, is of another format version, or holds a tensor
        that does not fit the architecture; the message names the file or the tensor.
    """
    path = Path(path)
    description = _read_description(path)
    content = {name: _read(path / name) for name in (WEIGHTS, TOKENIZER, PREPROCESSOR)}
    for name, data in content.items():
        if hashlib.sha256(data).hexdigest() != description["sha256"].get(name):
            raise ValueError(f"{path / name}: content differs from the SHA-256 in {CONFIG}")
    config = build(CLIPConfig, description["model"], f"{path / CONFIG}: model")
    try:
        tensors = safetensors.numpy.load(content[WEIGHTS])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path / WEIGHTS}: no valid safetensors file: {error}") from None
    params = _params_from(
        tensors, config, description["ternary"], description["float_dtype"], path / WEIGHTS
    )
    tokenizer = load_tokenizer(path / TOKENIZER, config.text.context_length)
    return config, params, tokenizer, load_preprocess(path / PREPROCESSOR)


def folder_bytes(path: str | Path) -> int:
    """Bytes on disk of all that a packed folder needs to run."""
    names = (CONFIG, WEIGHTS, TOKENIZER, PREPROCESSOR)
    return sum((Path(path) / name).stat().st_size for name in names)


def size_summary(params: Mapping[str, Any], size_bytes: int) -> dict[str, float]:
    """How small a packed model is.

    Args:
      params: parameter tree with at least one `TernaryTensor` leaf.
      size_bytes: bytes of the whole folder on disk.

    Returns:
      size_bytes; parameters: entries of the architecture; compression_ratio: float32 bytes of the
      same architecture over size_bytes; bits_per_ternary_weight: words, padding and scales counted;
      ternary_fraction: share of the parameters that is ternary; sparsity: share of zero codes.
    """
    leaves = list(leaves_by_path(params).values())
    ternary = [leaf for leaf in leaves if isinstance(leaf, TernaryTensor)]
    parameters = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    weights = sum(int(np.prod(leaf.shape)) for leaf in ternary)
    stored = sum(leaf.words.nbytes + leaf.scale.nbytes for leaf in ternary)
    nonzero = sum(_count_nonzero(np.asarray(leaf.words)) for leaf in ternary)
    return {
        "size_bytes": size_bytes,
        "parameters": parameters,
        "compression_ratio": 4 * parameters / size_bytes,
        "bits_per_ternary_weight": 8 * stored / weights,
        "ternary_fraction": weights / parameters,
        "sparsity": 1 - nonzero / weights,
    }


def cast_float(name: str, leaf: jax.Array, dtype: str) -> np.ndarray:
    """Returns a parameter in a dtype; ValueError, with its name, if a value does not survive it."""
    value = np.asarray(leaf, np.float32)
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    if not np.isfinite(cast).all():
        worst = value[~np.isfinite(cast)][0]
        raise ValueError(
            f"{name}: {dtype} cannot hold the value {worst:g}"
            + ("; export with float_dtype=float32" if np.isfinite(worst) else "")
        )
    if name.endswith("/scale") and (cast[value > 0] == 0).any():
        raise ValueError(f"{name}: a scale vanishes in {dtype}; export with float_dtype=float32")
    return cast


def _count_nonzero(words: np.ndarray) -> int:
    # A code is odd exactly when it is not zero (0b01, 0b11), and padding codes are zero.
    return int(np.bitwise_count(words.view(np.uint32) & np.uint32(0x55555555)).sum())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing; export the model again") from None


def _read_description(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    try:
        description = json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no valid JSON: {error}") from None
    if not isinstance(description, dict) or description.get("model_type") != PACKED:
        raise ValueError(f"{file}: model_type is not {PACKED!r}")
    version = description.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{file}: format_version {version!r} is not {FORMAT_VERSION}")
    expected = {"model": dict, "ternary": dict, "sha256": dict, "float_dtype": str}
    for key, kind in expected.items():
        if not isinstance(description.get(key), kind):
            raise ValueError(f"{file}: {key} is missing or of the wrong type")
    if description["float_dtype"] not in FLOAT_DTYPES:
        raise ValueError(f"{file}: float_dtype is none of {FLOAT_DTYPES}")
    return description


def _params_from(
    tensors: dict[str, np.ndarray],
    config: CLIPConfig,
    ternary: dict[str, Any],
    float_dtype: str,
    file: Path,
) -> dict[str, Any]:
    if max(config.vision.layers, config.text.layers) > len(tensors) and not config.scan_layers:
        raise ValueError(f"{file}: too few tensors for the layers that {CONFIG} names")
    try:
        shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    except OverflowError:
        raise ValueError(f"{file.parent / CONFIG}: no model is of these sizes") from None
    shapes = {name: leaf.shape for name, leaf in leaves_by_path(shapes).items()}
    expected = {}
    for name, shape in shapes.items():
        if name not in ternary:
            expected[name] = (shape, float_dtype)
            continue
        scale_shape = _scale_shape(name, shape, ternary[name], file)
        words_shape = (*shape[:-2], -(-shape[-2] // CODES_PER_WORD), shape[-1])
        expected[f"{name}/words"] = (words_shape, "int32")
        expected[f"{name}/scale"] = (scale_shape, float_dtype)
    for name in ternary.keys() - shapes.keys():
        raise ValueError(f"{file.parent / CONFIG}: ternary tensor {name!r} is not in the model")
    for name in expected.keys() - tensors.keys():
        raise ValueError(f"{file}: tensor {name!r} is missing")
    for name in tensors.keys() - expected.keys():
        raise ValueError(f"{file}: tensor {name!r} is not in the model")
    for name, (shape, dtype) in expected.items():
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(
                f"{file}: tensor {name!r} is {tensor.dtype}{list(tensor.shape)}, "
                f"expected {dtype}{list(shape)}"
            )
        if dtype != "int32" and not np.isfinite(tensor).all():
            raise ValueError(f"{file}: tensor {name!r} holds NaN or infinity")
    params = {}
    for name, shape in shapes.items():
        if name in ternary:
            words = tensors[f"{name}/words"]
            _check_codes(f"{file}: tensor '{name}/words'", words, rows=shape[-2])
            scale = jnp.asarray(tensors[f"{name}/scale"])
            params[name] = TernaryTensor(jnp.asarray(words), scale, shape[-2])
        else:
            params[name] = jnp.asarray(tensors[name], jnp.float32)
    return unflatten_dict(params, sep="/")


def _scale_shape(name: str, shape: tuple[int, ...], entry: Any, file: Path) -> tuple[int, ...]:
    try:
        stored, scale = tuple(entry["shape"]), tuple(entry["scale_shape"])
        fits = stored == shape and len(scale) == len(shape) and len(shape) >= 2
        fits = fits and all(n > 0 and dim % n == 0 for dim, n in zip(shape, scale, strict=True))
    except (TypeError, KeyError):
        fits = False
    if not fits:
        where = file.parent / CONFIG
        raise ValueError(f"{where}: ternary tensor {name!r}: {entry!r} does not fit {list(shape)}")
    return scale


def _check_codes(where: str, words: np.ndarray, rows: int) -> None:
    bits = words.view(np.uint32)
    if ((bits >> 1) & ~bits & np.uint32(0x55555555)).any():
        raise ValueError(f"{where} holds the code 0b10, which is no ternary digit")
    used = rows % CODES_PER_WORD
    if used and (bits[..., -1, :] >> np.uint32(2 * used)).any():
        raise ValueError(f"{where} holds codes beyond its {rows} rows")
