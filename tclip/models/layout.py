"""The two layouts of a tower's blocks in a parameter tree: one by one, or stacked for a scan."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from tclip.models.architectures import CLIPConfig

STACKED = "blocks"


def with_layout(params: Mapping[str, Any], config: CLIPConfig) -> dict[str, Any]:
    """Returns the parameters in the layout of `config`; pure, to be jitted or shape-evaluated.

    Args:
      params: of the architecture of `config`, in either layout: `blocks_0`, `blocks_1`, ... in each
        tower, or `blocks` whose leaves (`TernaryTensor`s too) have a leading layer axis.
      config: its `scan_layers` asks for the second.
    """
    layers = {"vision": config.vision.layers, "text": config.text.layers}
    convert = _stack if config.scan_layers else _unstack
    return {**params, **{tower: convert(params[tower], n) for tower, n in layers.items()}}


def leaves_by_path(params: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a parameter tree by their paths, such as "vision/blocks_0/mlp/fc1/kernel"."""
    return {str(path): leaf for path, leaf in flatten_dict(params, sep="/").items()}


def _stack(tower: Mapping[str, Any], layers: int) -> dict[str, Any]:
    if STACKED in tower:
        return dict(tower)
    names = [f"{STACKED}_{i}" for i in range(layers)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tower[name] for name in names))
    return {STACKED: stacked} | {name: tower[name] for name in tower if name not in names}


def _unstack(tower: Mapping[str, Any], layers: int) -> dict[str, Any]:
    if STACKED not in tower:
        return dict(tower)
    rest = {name: value for name, value in tower.items() if name != STACKED}
    each = {
        f"{STACKED}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], tower[STACKED])
        for i in range(layers)
    }
    return rest | each
