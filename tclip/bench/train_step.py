"""What training ternary costs: a quantisation-aware step against the float step."""

import statistics
from typing import Annotated, Any

import jax

from tclip.bench.steps import TimedStep, cut_architecture, experiment_of, random_batch
from tclip.bench.timing import in_turn
from tclip.models import ClipPolicy
from tclip.tables import markdown_table


def run(
    arch: Annotated[str, "architecture whose widths are used"] = "ViT-B/16",
    layers: Annotated[int, "layers of each tower, to fit small machines"] = 12,
    batch_size: Annotated[int, "image-caption pairs a step"] = 16,
    repeats: Annotated[int, "timed steps of each kind, after one with its compilation"] = 5,
    dtype: Annotated[str, "what is computed in: float32 or bfloat16"] = "float32",
) -> dict[str, Any]:
    """Times both steps in turn (float, ternary, float, ...) on one device, the same random batch.

    Both are contrastive training of the same architecture without a teacher; the ternary step has
    the policy "all" with a learned scale and threshold for every output channel.

    Returns:
      The median seconds of each step, the median of the pairwise ratios, and their range.
    """
    model = cut_architecture(arch, layers, dtype)
    batch = random_batch(model, batch_size)
    steps = {
        name: TimedStep(experiment_of(model, quant=ClipPolicy(policy=policy)), batch)
        for name, policy in (("float", "none"), ("ternary", "all"))
    }
    seconds = in_turn({name: step.seconds for name, step in steps.items()}, repeats)
    ratios = [t / f for f, t in zip(seconds["float"], seconds["ternary"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [(name, f"{1e3 * median:.0f} ms") for name, median in medians.items()]
    rows.append(("ternary / float", f"{statistics.median(ratios):.3f}"))
    print(f"{arch} widths, {layers} layers, batch {batch_size}, {dtype}, {repeats} pairs of steps")
    print(markdown_table(("training step", "median"), rows))
    return {
        "arch": arch,
        "layers": layers,
        "batch_size": batch_size,
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "seconds": medians,
        "ratio": statistics.median(ratios),
        "ratio_range": (min(ratios), max(ratios)),
    }
