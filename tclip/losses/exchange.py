"""Ways to bring every device's images together with the texts of all devices, some at a time.

Both run within `jax.shard_map`. A visit is a function of some texts that compares them with the
device's own images, and gives two trees of sums: of the images, and of the texts, one row each.
What the visits of all texts give the device's images, and what the visits on all devices give the
device's own texts, is summed.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tclip.losses.partial_sums import Axes, add, empty_sums, scatter_sum

Visit = Callable[[Any], tuple[Any, Any]]


def ring(visit: Visit, texts: Any, axes: Axes) -> tuple[Any, Any]:
    """Every device's texts go from one device to the next, along with their sums, until home.

    Args:
      texts: tree of arrays [B/n, ...], the device's own.
      axes: of the mesh, over which texts are split.

    Returns:
      The sums of the device's images, and those of its texts.
    """
    n = jax.lax.axis_size(axes)
    send = functools.partial(
        jax.lax.ppermute, axis_name=axes, perm=[(i, (i + 1) % n) for i in range(n)]
    )
    packed, unpack = _pack(texts)

    def step(state: Any, _: None) -> tuple[Any, None]:
        packed, image_sums, text_sums = state
        of_images, of_texts = visit(unpack(packed))
        image_sums, text_sums = add(image_sums, of_images), add(text_sums, of_texts)
        packed_sums, unpack_sums = _pack(text_sums)
        packed, packed_sums = jax.tree.map(send, (packed, packed_sums))
        return (packed, image_sums, unpack_sums(packed_sums)), None

    nothing = empty_sums(jax.eval_shape(visit, texts), axes)
    (_, *sums), _ = jax.lax.scan(step, (packed, *nothing), length=n)
    return tuple(sums)


def _pack(tree: Any) -> tuple[dict[str, jax.Array], Callable[[dict[str, jax.Array]], Any]]:
    """Arrays [N, ...] side by side, one [N, M] of each dtype: a message costs time beside its size.

    Returns:
      The arrays by the name of their dtype, and the function back.
    """
    leaves, structure = jax.tree.flatten(tree)
    names = [x.dtype.name for x in leaves]
    packed = {
        name: jnp.concatenate(
            [x.reshape(len(x), -1) for x in leaves if x.dtype.name == name], axis=1
        )
        for name in names
    }

    def unpack(packed: dict[str, jax.Array]) -> Any:
        ends, parts = dict.fromkeys(packed, 0), []
        for x, name in zip(leaves, names, strict=True):
            start, ends[name] = ends[name], ends[name] + math.prod(x.shape[1:])
            parts.append(packed[name][:, start : ends[name]].reshape(x.shape))
        return jax.tree.unflatten(structure, parts)

    return packed, unpack


def chunked(visit: Visit, texts: Any, axes: Axes, chunks: int) -> tuple[Any, Any]:
    """All devices compare with the same chunk of texts, an equal part of which is from each.

    Arguments and result as of `ring`; `chunks` divides B/n.
    """

    def step(image_sums: Any, part: Any) -> tuple[Any, Any]:
        chunk = jax.tree.map(lambda x: jax.lax.all_gather(x, axes, tiled=True), part)
        of_images, of_texts = visit(chunk)
        return add(image_sums, of_images), scatter_sum(of_texts, axes)

    parts = jax.tree.map(lambda x: x.reshape(chunks, -1, *x.shape[1:]), texts)
    n = jax.lax.axis_size(axes)
    chunk = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((n * x.shape[1], *x.shape[2:]), x.dtype), parts
    )
    nothing, _ = empty_sums(jax.eval_shape(visit, chunk), axes)
    image_sums, text_sums = jax.lax.scan(step, nothing, parts)
    return image_sums, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), text_sums)
