"""Opening a model of any kind: packed, a training run, or anyone's CLIP."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from tclip.inference import Model
from tclip.interop import load_pretrained
from tclip.model_kind import model_kind
from tclip.models import ClipPolicy, effective_weights
from tclip.packed import PREPROCESSOR, TOKENIZER, load_packed
from tclip.processing import load_preprocess, load_tokenizer
from tclip.quant import with_int8_activations


def load(
    path: str | os.PathLike[str], activations: str | None = None, step: str | int | None = None
) -> Model:
    """Loads a model of any kind.

    Args:
      path: a packed folder (weights stay packed), a training workdir (its newest weights), a CLIP
        or SigLIP folder of Hugging Face, a CLIP folder of open_clip, or the id of one on the hub.
      activations: what ternary kernels multiply: "native", or "int8", rounded to 8 bits token by
        token. By default a workdir's are those it was trained with, others native.
      step: of a workdir, which checkpoint: "last" (the default), "best" by its train.best_metric,
        or the number of a step.

    Raises:
      FileNotFoundError: `path` or a file that it needs is missing.
      ValueError: a file in it is damaged, or does not fit the architecture; or a `step` that is not
        there, or of what is no workdir.
    """
    if activations not in (None, "native", "int8"):
        raise ValueError(f"unknown activations {activations!r}; use 'native' or 'int8'")
    if model_kind(path) == "packed":
        _refuse_step(path, step)
        config, params, tokenizer, preprocess = load_packed(path)
        params = with_int8_activations(params) if activations == "int8" else params
        return Model(config, params, tokenizer, preprocess)
    latent = load_latent(path, step)
    if activations == "int8" and latent.policy.policy == "none":
        raise ValueError(f"{path} has no ternary weights, which int8 activations are for")
    return latent.ternarized(activations)


@dataclasses.dataclass(frozen=True)
class LatentModel:
    """A model before its weights are made ternary.

    Attributes:
      model: with latent (float) weights.
      quant: learned scales and thresholds, as `tclip.quant.init_quant` returns them.
      policy: what is ternary; of a float model nothing.
    """

    model: Model
    quant: dict[str, Any]
    policy: ClipPolicy

    def ternarized(self, activations: str | None = None) -> Model:
        """The model with its weights as inference sees them; see `load` for `activations`."""
        policy = dataclasses.replace(
            self.policy, activations=activations or self.policy.activations
        )
        params = effective_weights(self.model.params, self.quant, policy)
        return dataclasses.replace(self.model, params=params)


def load_latent(path: str | os.PathLike[str], step: str | int | None = None) -> LatentModel:
    """Loads a training run, or anyone's float CLIP, with the weights that training works on.

    Args:
      step: see `load`.

    Raises:
      FileNotFoundError: `path` or a file that it needs is missing.
      ValueError: it is a packed folder, which has no such weights, or a file is damaged; or `step`
        as in `load`.
    """
    kind = model_kind(path)
    if kind == "packed":
        raise ValueError(f"{path} is packed already; give the workdir it was exported from")
    if kind != "workdir":
        _refuse_step(path, step)
        return LatentModel(Model(*load_pretrained(path)), {}, ClipPolicy())
    # Orbax takes long to import, and only training runs need it.
    from tclip.run.checkpoint import LAST, load_trained

    path = Path(path)
    experiment, params, quant = load_trained(path, LAST if step is None else step)
    tokenizer = load_tokenizer(path / TOKENIZER, experiment.model.text.context_length)
    preprocess = load_preprocess(path / PREPROCESSOR)
    return LatentModel(
        Model(experiment.model, params, tokenizer, preprocess), quant, experiment.quant
    )


def _refuse_step(path: str | os.PathLike[str], step: str | int | None) -> None:
    if step is not None:
        raise ValueError(f"step={step!r}: {path} is no training workdir, which has checkpoints")
