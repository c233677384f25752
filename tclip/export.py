"""From a training run to what ships: a packed folder, or one for transformers."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from tclip.checkpoint import load_trained
from tclip.data import PreprocessConfig, Tokenizer, load_preprocess, load_tokenizer
from tclip.experiment import Experiment
from tclip.interop import load_pretrained, save_huggingface
from tclip.packed import (
    PREPROCESSOR,
    TOKENIZER,
    cast_float,
    folder_bytes,
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
      workdir: of a ternary run; of a float run if `policy` is given.
      out: the packed folder.
      float_dtype: of scales and of what is not ternary.
      policy: ternarises a float run without training (post-training).

    Returns:
      `tclip.packed.size_summary` of the folder.

    Raises:
      ValueError: a policy for a run that is ternary already, none for a float run, or a value that
        `float_dtype` cannot hold.
      OSError: `workdir` cannot be read or `out` cannot be written.
    """
    experiment, params, quant, policy = _load(workdir, policy)
    if policy.policy == "none":
        raise ValueError(f"{workdir} is a float run: say with a policy what becomes ternary")
    # Scales stay float32 here; save_packed casts them and refuses those that do not fit.
    packed = quantize_params(params, quant, policy, dtype=jnp.float32)
    save_packed(out, experiment.model, packed, *_inputs(workdir, experiment), float_dtype)
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
      workdir: of a float or a ternary run.
      out: the folder, which must not exist yet.
      float_dtype: of all weights, "float16", "bfloat16" or "float32"; by default float32 for a
        float run and float16 for a ternary one.
      policy: ternarises a float run without training (post-training).

    Returns:
      size_bytes of the folder; parameters: their number; ternary_fraction: share of the parameters
      that is ternary; float_dtype.

    Raises:
      ValueError: a policy for a run that is ternary already, a value that `float_dtype` cannot
        hold, or an architecture that transformers does not have.
      OSError: `workdir` cannot be read or `out` cannot be written.
    """
    experiment, params, quant, policy = _load(workdir, policy)
    float_dtype = float_dtype or ("float32" if policy.policy == "none" else "float16")
    weights = flatten_dict(ternarize_params(params, quant, policy), sep="/")
    weights = {path: cast_float(path, leaf, float_dtype) for path, leaf in weights.items()}
    tokenizer, preprocess = _inputs(workdir, experiment)
    out = Path(out)
    save_huggingface(out, experiment.model, unflatten_dict(weights, sep="/"), tokenizer, preprocess)
    load_pretrained(out)
    parameters = sum(leaf.size for leaf in weights.values())
    ternary = sum(weights[path].size for path in ternary_paths(params, policy))
    return {
        "size_bytes": sum(file.stat().st_size for file in out.iterdir()),
        "parameters": parameters,
        "ternary_fraction": ternary / parameters,
        "float_dtype": float_dtype,
    }


def _load(
    workdir: str | Path, policy: TernaryPolicy | None
) -> tuple[Experiment, Any, dict[str, Any], TernaryPolicy]:
    """The experiment, latent weights, scales and thresholds, and the policy that is theirs."""
    experiment, params, quant = load_trained(workdir)
    if policy is None:
        return experiment, params, quant, experiment.quant
    if experiment.quant.policy != "none":
        raise ValueError(f"{workdir} was trained with policy {experiment.quant.policy!r} already")
    return experiment, params, init_quant(params, policy), policy


def _inputs(workdir: str | Path, experiment: Experiment) -> tuple[Tokenizer, PreprocessConfig]:
    context_length = experiment.model.text.context_length
    tokenizer = load_tokenizer(Path(workdir) / TOKENIZER, context_length)
    return tokenizer, load_preprocess(Path(workdir) / PREPROCESSOR)
