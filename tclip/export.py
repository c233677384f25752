"""From a trained model to what ships: a packed folder, or one for transformers."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from tclip.checkpoint import load_trained
from tclip.data import load_preprocess, load_tokenizer
from tclip.experiment import is_workdir
from tclip.inference import Model, load
from tclip.interop import load_pretrained, save_huggingface
from tclip.packed import (
    PREPROCESSOR,
    TOKENIZER,
    cast_float,
    folder_bytes,
    is_packed,
    load_packed,
    save_packed,
    size_summary,
)
from tclip.quant import (
    TernaryPolicy,
    init_quant,
    quantize_params,
    ternarize_params,
    ternary_paths,
)


def export_packed(
    workdir: str | Path,
    out: str | Path,
    float_dtype: str = "float16",
    policy: TernaryPolicy | None = None,
) -> dict[str, float]:
    """Writes the newest weights of a run as a packed folder, and reads it back to be sure.

    Args:
      workdir: of a ternary run; if `policy` is given, of a float run or any float model that
        `tclip.load` takes.
      out: the packed folder.
      float_dtype: of scales and of what is not ternary.
      policy: ternarises a float model without training (post-training).

    Returns:
      `tclip.packed.size_summary` of the folder.

    Raises:
      ValueError: a policy for a run that is ternary already, none for a float run, or a value that
        `float_dtype` cannot hold.
      OSError: `workdir` cannot be read or `out` cannot be written.
    """
    model, quant, policy = _load(workdir, policy)
    if policy.policy == "none":
        raise ValueError(f"{workdir} is a float model: say with a policy what becomes ternary")
    # Scales stay float32 here; save_packed casts them and refuses those that do not fit.
    packed = quantize_params(model.params, quant, policy, dtype=jnp.float32)
    save_packed(out, model.config, packed, model.tokenizer, model.preprocess, float_dtype)
    _, stored, _, _ = load_packed(out)
    return size_summary(stored, folder_bytes(out))


def export_huggingface(
    workdir: str | Path,
    out: str | Path,
    float_dtype: str | None = None,
    policy: TernaryPolicy | None = None,
) -> dict[str, Any]:
    """Writes the newest weights of a run as a folder for transformers, and reads it back.

    Ternary weights are ordinary floats there, of three values a group.

    Args:
      workdir: of a float or a ternary run, or any float model that `tclip.load` takes.
      out: the folder, which must not exist yet.
      float_dtype: of all weights, "float16", "bfloat16" or "float32"; by default float32 for a
        float run and float16 for a ternary one.
      policy: ternarises a float model without training (post-training).

    Returns:
      size_bytes of the folder; parameters: their number; ternary_fraction: share of the parameters
      that is ternary; float_dtype.

    Raises:
      ValueError: a policy for a run that is ternary already, a value that `float_dtype` cannot
        hold, or an architecture that transformers does not have.
      OSError: `workdir` cannot be read or `out` cannot be written.
    """
    model, quant, policy = _load(workdir, policy)
    float_dtype = float_dtype or ("float32" if policy.policy == "none" else "float16")
    plain = dataclasses.replace(policy, activations="native")
    weights = flatten_dict(ternarize_params(model.params, quant, plain), sep="/")
    weights = {path: cast_float(path, leaf, float_dtype) for path, leaf in weights.items()}
    out, params = Path(out), unflatten_dict(weights, sep="/")
    save_huggingface(out, model.config, params, model.tokenizer, model.preprocess)
    load_pretrained(out)
    parameters = sum(leaf.size for leaf in weights.values())
    ternary = sum(weights[path].size for path in ternary_paths(model.params, policy))
    return {
        "size_bytes": sum(file.stat().st_size for file in out.iterdir()),
        "parameters": parameters,
        "ternary_fraction": ternary / parameters,
        "float_dtype": float_dtype,
    }


def _load(
    path: str | Path, policy: TernaryPolicy | None
) -> tuple[Model, dict[str, Any], TernaryPolicy]:
    """The model with its latent weights, scales and thresholds, and the policy that is theirs."""
    if is_workdir(path):
        experiment, params, quant = load_trained(path)
        tokenizer = load_tokenizer(Path(path) / TOKENIZER, experiment.model.text.context_length)
        preprocess = load_preprocess(Path(path) / PREPROCESSOR)
        model, trained = Model(experiment.model, params, tokenizer, preprocess), experiment.quant
    elif is_packed(path):
        raise ValueError(f"{path} is packed already; give the workdir it was exported from")
    else:
        model, quant, trained = load(path), {}, TernaryPolicy()
    if policy is None:
        return model, quant, trained
    if trained.policy != "none":
        raise ValueError(f"{path} was trained with policy {trained.policy!r} already")
    return model, init_quant(model.params, policy), policy
