"""What a compiled program sends between devices, by kind, within slices and between them."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from tclip.plan.hlo import Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What each device sends in a step, by collectives of one kind over one sort of group.

    Attributes:
      kind: one of KINDS.
      dimensions: of the torus along which the devices of a group lie; 0 within a chip.
      count: collectives a step.
      ici_bytes: sent by a device to others of its slice.
      dcn_bytes: sent by a device to other slices.
    """

    kind: str
    dimensions: int
    count: int
    ici_bytes: float
    dcn_bytes: float


def traffic(module: Module, coords: Sequence[tuple[int, ...]], slices: int) -> list[Traffic]:
    """Counts the collectives of a program, those in loops as often as they run.

    Algorithms are the best there are: a group of n devices that gathers or scatters S bytes has
    each send S (n - 1) / n, an all-reduce is both. Between slices the compiler has every device
    exchange with its counterparts what is left to it after the part within its slice.

    Args:
      coords: of the chips in the torus, in the order of the program's partitions; of a slice, or of
        several that are alike.
      slices: how many the program runs on.

    Raises:
      ValueError: groups of devices in a notation that is not read.
    """
    totals: dict[tuple[str, int], tuple[float, ...]] = {}
    seen = set()
    for _, executed, count in module.executed():
        is_scattered = executed.attribute(r"calls=%?(all-reduce-scatter)")
        for instruction in module.within(executed):
            kind = _kind(instruction)
            # One that is overlapped with several fusions stands in each of them.
            chain = instruction.attribute(r'chain_id="(\d+)"')
            key = chain, instruction.attribute(r"channel_id=(\d+)")
            if kind is None or (chain is not None and key in seen):
                continue
            seen.add(key)
            if instruction.opcode == "send":
                dimensions, sent = 0, (0.0, _sent_between(kind, instruction, slices))
            else:
                group = first_group(instruction, len(coords) // slices)
                dimensions = _dimensions([coords[device] for device in group])
                kind = "reduce-scatter" if is_scattered else kind
                sent = _sent_within(kind, instruction, len(group)), 0.0
            before = totals.get((kind, dimensions), (0, 0.0, 0.0))
            totals[kind, dimensions] = tuple(
                total + count * x for total, x in zip(before, (1, *sent), strict=True)
            )
    return [
        Traffic(kind, dimensions, int(count), ici_bytes, dcn_bytes)
        for (kind, dimensions), (count, ici_bytes, dcn_bytes) in sorted(totals.items())
    ]


def _kind(instruction: Instruction) -> str | None:
    """Of a collective, or of its part between slices; None for anything else."""
    if instruction.opcode == "send":
        return instruction.attribute(rf'rendezvous="({"|".join(KINDS)})')
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def first_group(collective: Instruction, devices: int) -> list[int]:
    """Returns the partitions of the first group that takes part, of which all others are copies.

    Raises:
      ValueError: a notation that is not read.
    """
    text = collective.attributes
    if pair := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return [int(pair[1]), int(pair[2])]
    if listed := re.search(r"replica_groups=\{(?:\{([\d,]*)\})?", text):
        return [int(n) for n in listed[1].split(",")] if listed[1] else list(range(devices))
    order = r"(\[[\d,]+\](?:T\([\d,]+\))?)"
    if tiled := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={order}", text):
        return [int(n) for n in _order(tiled[3]).reshape(int(tiled[1]), int(tiled[2]))[0]]
    named = rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({order}\))? \{{([^}}:]*)\}}"
    if mesh := re.search(named, text):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _order(mesh[2]) if mesh[2] else np.arange(math.prod(axes.values()))
        chosen = re.findall(r"'(\w+)'", mesh[3])
        index = tuple(slice(None) if name in chosen else 0 for name in axes)
        return [int(n) for n in ids.reshape(*axes.values())[index].ravel()]
    found = re.search(r"replica_groups=\S{0,80}", text)
    shown = "none" if found is None else found[0]
    raise ValueError(f"{collective.name}: groups that are not read: {shown}")


def _order(text: str) -> np.ndarray:
    """Reads [2,4]T(1,0): the numbers from 0 in that shape, transposed, in a row."""
    dims, _, axes = text.partition("T")
    sizes = [int(n) for n in re.findall(r"\d+", dims)]
    permutation = [int(n) for n in re.findall(r"\d+", axes)] or range(len(sizes))
    return np.arange(np.prod(sizes)).reshape(sizes).transpose(permutation).ravel()


def _dimensions(group: list[tuple[int, ...]]) -> int:
    return sum(len(set(values)) > 1 for values in zip(*group, strict=True))


def _sent_within(kind: str, instruction: Instruction, n: int) -> float:
    """Bytes that a device of a group of n sends."""
    arrays = instruction.arrays
    if instruction.opcode in ("all-gather-start", "all-to-all-start", "collective-permute-start"):
        operands = len(instruction.operands)
        arrays = arrays[operands : 2 * operands]
    size = sum(array.bytes for array in arrays)
    if kind == "collective-permute":
        return size
    # The whole, before it is scattered or after it is gathered.
    whole = size * n if instruction.opcode.startswith("reduce-scatter") else size
    return (2 if kind == "all-reduce" else 1) * whole * (n - 1) / n


def _sent_between(kind: str, send: Instruction, slices: int) -> float:
    """Bytes that a device sends to its counterparts in the other slices."""
    size = send.arrays[0].bytes
    if kind == "collective-permute":
        return size
    if kind == "all-gather":
        return size * (slices - 1)
    return (2 if kind == "all-reduce" else 1) * size * (slices - 1) / slices
