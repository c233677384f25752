"""What the encoders take with packed ternary weights against float ones, whole towers at once."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from tclip.bench.steps import cut_architecture, random_batch
from tclip.bench.timing import in_turn, seconds_of
from tclip.models import CLIP, CLIPConfig, ClipPolicy, init_params
from tclip.quant import init_quant, quantize_params, with_int8_activations
from tclip.tables import markdown_table, megabytes

# By the name of a tower: the method that encodes, and what of a batch.
TOWERS = {"image": (CLIP.encode_image, "images"), "text": (CLIP.encode_text, "tokens")}


def run(
    arch: Annotated[str, "architecture"] = "ViT-B/16",
    layers: Annotated[int, "most layers of a tower, to fit small machines"] = 32,
    batches: Annotated[str, "images or texts at once, by commas"] = "1,8",
    policy: Annotated[str, "which weights are ternary"] = "all",
    dtype: Annotated[str, "what is computed in: float32 or bfloat16"] = "float32",
    repeats: Annotated[int, "timings of each tower, in turn"] = 5,
) -> dict[str, Any]:
    """Times both towers on one device, weights random: float, packed, and packed with int8.

    Float weights are held in `dtype`; what is not ternary of the packed ones is float32, as
    `tclip.load` has it.

    Returns:
      The device; bytes of the weights by kind; and by tower, batch and kind: median and range of
      the milliseconds of a batch, samples a second, the median of its pairwise ratios to float, and
      the bytes that the compiled program has in use at its peak, its weights included. Where the
      device counts what it allocates, also the peak of that over the whole run.
    """
    model = cut_architecture(arch, layers, dtype)
    kinds = _weights(model, policy)
    sizes = {kind: weight_bytes(params) for kind, params in kinds.items()}
    figures = {}
    for tower, (method, inputs) in TOWERS.items():
        for batch in map(int, batches.split(",")):
            samples = random_batch(model, batch)[inputs]
            programs = {
                kind: _compile(model, method, params, samples) for kind, params in kinds.items()
            }
            figures[f"{tower} {batch}"] = _time(programs, batch, repeats)
    device = jax.devices()[0]
    allocated = (device.memory_stats() or {}).get("peak_bytes_in_use")
    print(f"{arch}, at most {layers} layers, {policy}, {dtype}, {device.device_kind}")
    print(markdown_table(("weights", "size"), [(k, megabytes(size)) for k, size in sizes.items()]))
    print(_table(figures))
    if allocated is not None:
        print(f"largest allocation of the run: {megabytes(allocated)}")
    return {
        "arch": arch,
        "layers": layers,
        "policy": policy,
        "dtype": dtype,
        "device": device.device_kind,
        "weight_bytes": sizes,
        "allocated_bytes": allocated,
        "towers": figures,
    }


def packed_params(model: CLIPConfig, policy: str) -> dict[str, Any]:
    """Random parameters, packed as a folder of float16 scales is loaded; pure, for jit."""
    config = ClipPolicy(policy=policy)
    params = init_params(model, jax.random.key(0))
    return quantize_params(params, init_quant(params, config), config, dtype=jnp.float16)


def weight_bytes(params: Mapping[str, Any]) -> int:
    """Bytes of a tree of arrays, or of what only has their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def _weights(model: CLIPConfig, policy: str) -> dict[str, Mapping[str, Any]]:
    """The parameters of every kind, by its name."""
    dense = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    packed = jax.jit(functools.partial(packed_params, model, policy))()
    return {
        "float": jax.tree.map(lambda leaf: leaf.astype(model.dtype), dense),
        "packed": packed,
        "packed, int8": with_int8_activations(packed),
    }


@dataclasses.dataclass(frozen=True)
class _Program:
    run: Callable[[], jax.Array]
    peak_bytes: int


def _compile(
    model: CLIPConfig, method: Callable, params: Mapping[str, Any], samples: jax.Array
) -> _Program:
    def encode(params, samples):
        return CLIP(model).apply({"params": params}, samples, method=method)

    compiled = jax.jit(encode).lower(params, samples).compile()
    memory: Any = compiled.memory_analysis()
    jax.block_until_ready(compiled(params, samples))
    return _Program(
        functools.partial(compiled, params, samples),
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes,
    )


def _time(programs: Mapping[str, _Program], batch: int, repeats: int) -> dict[str, Any]:
    timers = {kind: functools.partial(seconds_of, p.run) for kind, p in programs.items()}
    seconds = in_turn(timers, repeats)
    return {
        kind: {
            "milliseconds": 1e3 * statistics.median(times),
            "range": (1e3 * min(times), 1e3 * max(times)),
            "samples_per_second": batch / statistics.median(times),
            "ratio": statistics.median(t / f for t, f in zip(times, seconds["float"], strict=True)),
            "peak_bytes": programs[kind].peak_bytes,
        }
        for kind, times in seconds.items()
    }


def _table(figures: Mapping[str, dict]) -> str:
    header = ("tower, batch, weights", "ms", "from", "to", "samples/s", "/ float", "peak memory")
    rows = []
    for name, kinds in figures.items():
        for kind, of in kinds.items():
            times = (f"{value:.1f}" for value in (of["milliseconds"], *of["range"]))
            rate = f"{of['samples_per_second']:.1f}"
            cells = (*times, rate, f"{of['ratio']:.3f}", megabytes(of["peak_bytes"]))
            rows.append((f"{name} {kind}", *cells))
    return markdown_table(header, rows)
