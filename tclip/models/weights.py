"""The weights that the encoders see of a model that is trained."""

from typing import Any

from tclip.quant import TernaryPolicy, ternarize_params, with_int8_activations
from tclip.quant.params import Quant


def effective_weights(params: Any, quant: Quant, policy: TernaryPolicy) -> Any:
    """Returns `ternarize_params(params, quant, policy)`, its kernels marked for int8 activations
    where the policy has them.

    Raises:
      ValueError: as `ternarize_params`.
    """
    weights = ternarize_params(params, quant, policy)
    return with_int8_activations(weights, policy) if policy.activations == "int8" else weights
