"""Ternary weights as functions of arrays: the op, estimators, packing, and which leaves get it.

Depends on jax and nothing above it, so that it can be used from any model.
"""

from tclip.quant.estimators import ESTIMATORS
from tclip.quant.op import ternarize, ternary_codes
from tclip.quant.packing import pack, unpack
from tclip.quant.params import (
    init_quant,
    quantize_params,
    ternarize_params,
    ternary_paths,
    with_int8_activations,
)
from tclip.quant.policy import TernaryPolicy
from tclip.quant.tensor import Int8Activations, TernaryTensor

__all__ = [
    "ESTIMATORS",
    "Int8Activations",
    "TernaryPolicy",
    "TernaryTensor",
    "init_quant",
    "pack",
    "quantize_params",
    "ternarize",
    "ternarize_params",
    "ternary_codes",
    "ternary_paths",
    "unpack",
    "with_int8_activations",
]
