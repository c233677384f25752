"""What products with ternary weights take on the device at hand, against XLA's dense ones.

A product runs many times in one compiled loop, so that starting it costs nothing. A pass of the
loop multiplies by several weights in turn, since a model does not find the one that it used last in
a cache either. An element of x depends on the product before; what that and the loop take is a row
of its own. Dense int8 products get activations that are quantised already; the ternary ones
quantise theirs.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from tclip.bench.gpu_schedule import tile_product
from tclip.bench.timing import in_turn, seconds_of
from tclip.bench.tpu_schedule import BATCHES, LAYERS
from tclip.hardware.chips import chip_of
from tclip.kernels import ternary_matmul
from tclip.kernels.int8 import quantize_rows
from tclip.kernels.ternary_matmul import gpu_blocks
from tclip.quant import TernaryTensor, pack
from tclip.tables import markdown_table, percent

SQUARES = [(4096, 4096), (8192, 8192)]
# Chips without an int8 matrix unit; the others multiply int8 at twice the rate of bfloat16.
NO_INT8 = ("v4", "tpu7x")
DENSE = ("dense bfloat16", "dense int8")
ALONE = "loop alone"
TILES = {tile.name: tile for tile in gpu_blocks.TILES}


def run(
    shapes: Annotated[str, "KxN, by commas; 'all': CLIP's layers and two squares"] = (
        "768x3072,3072x768"
    ),
    rows: Annotated[str, "M, by commas; 'all': from a token to 128 images"] = "1,8,77,197",
    implementations: Annotated[
        str, "of ternary_matmul, by commas; 'default': its choice, 'tiles': each of its GPU kernel"
    ] = "default",
    weights: Annotated[int, "that take turns, of each shape"] = 4,
    passes: Annotated[int, "over these weights in a timed loop"] = 2,
    repeats: Annotated[int, "timings of each product, in turn"] = 5,
) -> dict[str, Any]:
    """Times bfloat16 x [M, K] by w [K, N]: dense in bfloat16 and int8, ternary with either.

    What to choose for how many rows is in the second table that it prints. With
    `implementations=default,pallas_gpu,xla` it says from where on `MOST_ROWS` should leave products
    to XLA, with `default,tiles` what the costs in `gpu_blocks.TILES` should be.

    Returns:
      The device, and by MxKxN and product: median and range of its microseconds, the median of its
      pairwise ratios to dense bfloat16, and the fraction of the roofline that it reaches, None for
      a chip that `tclip.hardware.chips` does not know.
    """
    device = jax.devices()[0].device_kind
    figures = {}
    for m, k, n in sizes(shapes, rows):
        programs = _programs(m, k, n, _names(implementations), weights, passes)
        timers = {name: functools.partial(seconds_of, p) for name, p in programs.items()}
        seconds = {
            name: [total / (weights * passes) for total in totals]
            for name, totals in in_turn(timers, repeats).items()
        }
        figures[f"{m}x{k}x{n}"] = {
            name: _summary(times, seconds[DENSE[0]], roofline(device, (m, k, n), name))
            for name, times in seconds.items()
        }
    print(f"{device}, {weights} weights in turn, {passes} passes, {repeats} timings of each")
    print(_table(figures))
    print(f"\n{_comparison(figures)}")
    return {"device": device, "weights": weights, "passes": passes, "products": figures}


def sizes(shapes: str, rows: str) -> list[tuple[int, int, int]]:
    """M, K and N of the products that the flags of `run` ask for."""
    kn = [*LAYERS, *SQUARES] if shapes == "all" else [_numbers(s, "x") for s in shapes.split(",")]
    batches = BATCHES if rows == "all" else _numbers(rows, ",")
    return [(m, k, n) for k, n in kn for m in batches]


def roofline(device: str, shape: tuple[int, int, int], name: str) -> float | None:
    """Seconds that the product called `name` takes at least, by the peaks of the device.

    Its operations over their rate, or the bytes of x, the weight and the result over the bandwidth
    of the memory, whichever is longer; None for an unknown device, and for the loop alone.
    """
    chip = chip_of(device)
    if chip is None or name == ALONE:
        return None
    m, k, n = shape
    bits = 2 if name.startswith("ternary") else 8 if "int8" in name else 16
    flops = chip.flops * (2 if "int8" in name and chip.name not in NO_INT8 else 1)
    traffic = 2 * m * k + k * n * bits / 8 + 2 * m * n
    return chip.devices * max(2 * m * k * n / flops, traffic / chip.hbm_bandwidth)


def _names(implementations: str) -> list[str]:
    tiles = ",".join(TILES)
    return implementations.replace("tiles", tiles).split(",")


def _numbers(text: str, separator: str) -> list[int]:
    return [int(number) for number in text.split(separator)]


def _programs(
    m: int, k: int, n: int, implementations: list[str], weights: int, passes: int
) -> dict[str, Callable]:
    """The compiled loops over every product, by its name."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.bfloat16)
    q, scale = quantize_rows(x)
    codes = [jnp.asarray(rng.integers(-1, 2, (k, n), np.int8)) for _ in range(weights)]
    dense = [c.astype(jnp.bfloat16) for c in codes]
    packed = [TernaryTensor(pack(c), jnp.full((1, n), k**-0.5), k) for c in codes]
    programs = {
        DENSE[0]: _loop(jnp.matmul, x, dense, passes),
        DENSE[1]: _loop(functools.partial(_int8_product, scale), q, codes, passes),
    }
    for name in implementations:
        for activations in ("native", "int8"):
            product = functools.partial(_ternary_product, name, activations)
            programs[f"ternary {activations}, {name}"] = _loop(product, x, packed, passes)
    programs[ALONE] = _loop(lambda x, _: x[:, :1], x, packed, passes)
    return programs


def _ternary_product(name: str, activations: str, x: jax.Array, w: TernaryTensor) -> jax.Array:
    """By an implementation, the default one, or a tile of the GPU kernel."""
    if name in TILES:
        return tile_product(TILES[name], activations, x, w)
    implementation = None if name == "default" else name
    return ternary_matmul(x, w, activations=activations, implementation=implementation)


def _int8_product(scale: jax.Array, q: jax.Array, w: jax.Array) -> jax.Array:
    sums = jnp.matmul(q, w, preferred_element_type=jnp.int32)
    return (sums * scale).astype(jnp.bfloat16)


def _loop(product: Callable, x: jax.Array, weights: list, passes: int) -> Callable:
    """Compiles so many passes over the weights; the function that is returned runs them."""
    shape = jax.eval_shape(product, x, weights[0])

    def one_pass(weights, _, carry):
        x, ys = carry[0], []
        for w in weights:
            ys.append(product(x, w))
            # Nothing is added, but the compiler cannot know: a result might be infinite.
            x = x.at[0, 0].add((ys[-1][0, 0] * 0).astype(x.dtype))
        return x, ys

    @jax.jit
    def loop(x, weights):
        ys = [jnp.zeros(shape.shape, shape.dtype)] * len(weights)
        return jax.lax.fori_loop(0, passes, functools.partial(one_pass, weights), (x, ys))

    program = functools.partial(loop.lower(x, weights).compile(), x, weights)
    jax.block_until_ready(program())
    return program


def _summary(seconds: list[float], dense: list[float], bound: float | None) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "microseconds": 1e6 * median,
        "range": (1e6 * min(seconds), 1e6 * max(seconds)),
        "ratio": statistics.median(s / d for s, d in zip(seconds, dense, strict=True)),
        "roofline": None if bound is None else bound / median,
    }


def _table(figures: dict[str, dict[str, dict]]) -> str:
    header = ("product", "microseconds", "from", "to", "/ dense bfloat16", "of the roofline")
    rows = []
    for size, products in figures.items():
        for name, of in products.items():
            times = (f"{value:.1f}" for value in (of["microseconds"], *of["range"]))
            reached = "" if of["roofline"] is None else percent(of["roofline"])
            rows.append((f"{size} {name}", *times, f"{of['ratio']:.3f}", reached))
    return markdown_table(header, rows)


def _comparison(figures: dict[str, dict[str, dict]]) -> str:
    """The ratios to dense bfloat16 side by side, and the least with either kind of activations."""
    kinds = ("native", "int8")
    names = [name for name in next(iter(figures.values())) if name not in (*DENSE, ALONE)]
    rows = []
    for size, products in figures.items():
        ratios = {name: products[name]["ratio"] for name in names}
        fastest = (
            min((n for n in names if n.startswith(f"ternary {kind}")), key=ratios.__getitem__)
            for kind in kinds
        )
        rows.append((size, *(f"{ratio:.2f}" for ratio in ratios.values()), *fastest))
    return markdown_table(("/ dense bfloat16", *names, *(f"fastest {k}" for k in kinds)), rows)
