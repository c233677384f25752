"""From a trained model to what ships: a packed folder, or one for transformers."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from tclip.inference import Model
from tclip.interop import load_pretrained, save_huggingface
from tclip.loading import load_latent
from tclip.models import leaves_by_path
from tclip.packed import (
    cast_float,
    folder_bytes,
    load_packed,
    save_packed,
    size_summary,
)
from tclip.quant import TernaryPolicy, init_quant, quantize_params, ternarize_params, ternary_paths


def export_packed(
    workdir: str | Path,
    out: str | Path,
    float_dtype: str = "float16",
    policy: TernaryPolicy | None = None,
    step: str | int | None = None,
) -> dict[str, float]:
    """Writes the weights of a run as a packed folder, reads it back and encodes a text by it.

    Args:
      workdir: of a ternary run; if `policy` is given, of a float run or any float model that
        `tclip.load` takes.
      out: the packed folder.
      float_dtype: of scales and of what is not ternary.
      policy: ternarises a float model without training (post-training).
      step: of a run, which checkpoint, as in `tclip.loading.load`; the last by default.

    Returns:
      `tclip.packed.size_summary` of the folder.

    Raises:
      ValueError: a policy for a run that is ternary already, none for a float run, or a value that
        `float_dtype` cannot hold.
      OSError: `workdir` cannot be read or `out` cannot be written.
    """
    model, quant, policy = _load(workdir, policy, step)
    if policy.policy == "none":
        raise ValueError(f"{workdir} is a float model: say with a policy what becomes ternary")
    # Scales stay float32 here; save_packed casts them and refuses those that do not fit.
    packed = quantize_params(model.params, quant, policy, dtype=jnp.float32)
    save_packed(out, model.config, packed, model.tokenizer, model.preprocess, float_dtype)
    config, stored, tokenizer, preprocess = load_packed(out)
    # A folder that is whole and still cannot run would be found by whom it ships to.
    Model(config, stored, tokenizer, preprocess).encode_text([""])
    return size_summary(stored, folder_bytes(out))


def export_huggingface(
    workdir: str | Path,
    out: str | Path,
    float_dtype: str | None = None,
    policy: TernaryPolicy | None = None,
    step: str | int | None = None,
) -> dict[str, Any]:
    """Writes the weights of a run as a folder for transformers, and reads it back.

    Ternary weights are ordinary floats there, of three values a group.

    Args:
      workdir: of a float or a ternary run, or any float model that `tclip.load` takes.
      out: the folder, which must not exist yet.
      float_dtype: of all weights, "float16", "bfloat16" or "float32"; by default float32 for a
        float run and float16 for a ternary one.
      policy: ternarises a float model without training (post-training).
      step: of a run, which checkpoint, as in `tclip.loading.load`; the last by default.

    Returns:
      size_bytes of the folder; parameters: their number; ternary_fraction: share of the parameters
      that is ternary; float_dtype.

    Raises:
      ValueError: a policy for a run that is ternary already, a value that `float_dtype` cannot
        hold, or an architecture that transformers does not have.
      OSError: `workdir` cannot be read or `out` cannot be written.
    """
    model, quant, policy = _load(workdir, policy, step)
    float_dtype = float_dtype or ("float32" if policy.policy == "none" else "float16")
    weights = leaves_by_path(ternarize_params(model.params, quant, policy))
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
    path: str | Path, policy: TernaryPolicy | None, step: str | int | None
) -> tuple[Model, dict[str, Any], TernaryPolicy]:
    """The model with its latent weights, scales and thresholds, and the policy that is theirs."""
    latent = load_latent(path, step)
    if policy is None:
        return latent.model, latent.quant, latent.policy
    if latent.policy.policy != "none":
        raise ValueError(f"{path} was trained with policy {latent.policy.policy!r} already")
    return latent.model, init_quant(latent.model.params, policy), policy
