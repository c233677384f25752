"""From a training run to what ships."""

from pathlib import Path

import jax.numpy as jnp

from tclip.checkpoint import load_trained
from tclip.data import load_preprocess, load_tokenizer
from tclip.packed import (
    PREPROCESSOR,
    TOKENIZER,
    folder_bytes,
    load_packed,
    save_packed,
    size_summary,
)
from tclip.quant import TernaryPolicy, init_quant, quantize_params


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
    experiment, params, quant = load_trained(workdir)
    if policy is None:
        policy = experiment.quant
        if policy.policy == "none":
            raise ValueError(f"{workdir} is a float run: say with a policy what becomes ternary")
    elif experiment.quant.policy != "none":
        raise ValueError(f"{workdir} was trained with policy {experiment.quant.policy!r} already")
    else:
        quant = init_quant(params, policy)
    tokenizer = load_tokenizer(Path(workdir) / TOKENIZER, experiment.model.text.context_length)
    preprocess = load_preprocess(Path(workdir) / PREPROCESSOR)
    # Scales stay float32 here; save_packed casts them and refuses those that do not fit.
    packed = quantize_params(params, quant, policy, dtype=jnp.float32)
    save_packed(out, experiment.model, packed, tokenizer, preprocess, float_dtype)
    _, stored, _, _ = load_packed(out)
    return size_summary(stored, folder_bytes(out))
