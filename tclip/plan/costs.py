"""What a compiled program does on one device: multiplications, and bytes to and from HBM."""

import math
import re

import numpy as np

from tclip.plan.hlo import Array, Computation, Instruction, Module

# These name or pass on what is there; a loop's cost is that of its body.
_FREE = {
    "async-start",
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_SLICES = ("dynamic-slice", "gather", "slice", "slice-start")


def matrix_flops(module: Module) -> float:
    """Operations of the matrix unit, two for each multiply-add, with what is recomputed."""
    return float(
        sum(
            count * _product_flops(module, computation, inner)
            for computation, instruction, count in module.executed()
            for computation, inner in _with_computation(module, computation, instruction)
            if inner.opcode in ("convolution", "dot")
        )
    )


def hbm_bytes(module: Module) -> float:
    """Bytes read from and written to HBM, by every instruction what it takes and gives.

    As XLA's own count, with every loop as often as it runs. What the compiler keeps in the memory
    of the core is left out, and so are the padding of layouts and what a fusion reads twice.
    """
    total = 0.0
    for computation, instruction, count in module.executed():
        if instruction.opcode in _FREE or instruction.opcode.endswith(("-done", "-update")):
            continue
        if "AllocateBuffer" in instruction.attributes:
            continue
        total += count * (
            _written(module, instruction) + sum(_read(module, computation, instruction))
        )
    return total


def _with_computation(module: Module, computation: Computation, instruction: Instruction):
    """Yields (where, what) of an instruction and of all that it does if it is a fusion."""
    yield computation, instruction
    if instruction.opcode == "fusion":
        fused = module.called(instruction, "calls")
        for inner in fused.instructions.values():
            yield from _with_computation(module, fused, inner)


def _product_flops(module: Module, computation: Computation, product: Instruction) -> float:
    left, right = (computation.instructions[name].arrays[0].dims for name in product.operands[:2])
    out = product.arrays[0].dims
    if product.opcode == "dot":
        contracted = product.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        return 2.0 * math.prod(out) * math.prod(left[int(d)] for d in contracted.split(",") if d)
    # TPUs have convolutions only: a product with batches has them as places of a window.
    labels = product.given(r"dim_labels=(\S+?)(?:,|$)")
    left_labels, right_labels, out_labels = re.split("_|->", labels)
    groups = int(product.attribute(r"batch_group_count=(\d+)") or 1)
    flops = 2.0 * left[left_labels.index("b")] / groups
    flops *= right[right_labels.index("i")] * right[right_labels.index("o")]
    window = _window(product.attribute(r"window=\{([^}]*)\}"))
    for place in (label for label in out_labels if label.isdigit()):
        flops *= _positions(
            left[left_labels.index(place)], out[out_labels.index(place)], int(place), window
        )
    return flops


def _window(text: str | None) -> dict[str, list[str]]:
    entries = (entry.split("=") for entry in (text or "").split())
    return {name: values.split("x") for name, values in entries}


def _positions(size: int, out: int, place: int, window: dict[str, list[str]]) -> int:
    """Pairs of an output and an entry of the window that meet an input, not padding or holes."""

    def option(name: str, default: str) -> str:
        return window[name][place] if name in window else default

    stride, dilation = int(option("stride", "1")), int(option("rhs_dilate", "1"))
    holes, low = int(option("lhs_dilate", "1")), int(option("pad", "0_0").split("_")[0])
    entries = dilation * np.arange(int(option("size", "1")))
    places = stride * np.arange(out) + entries[:, None] - low
    # Inputs stand at 0, holes, 2 holes, ...
    return np.sum((places >= 0) & (places <= (size - 1) * holes) & (places % holes == 0))


def _written(module: Module, instruction: Instruction) -> float:
    arrays = _results(instruction)
    if instruction.opcode == "dynamic-update-slice" and arrays[0].space == 0:
        return 0.0  # in place; what is written is read, and counted there
    if instruction.opcode == "fusion":
        fused = module.called(instruction, "calls")
        root = fused.root
        parts = root.operands if root.opcode == "tuple" else (root.name,)
        if len(parts) == len(arrays):
            return sum(
                _result(fused, name, array.bytes)
                for name, array in zip(parts, arrays, strict=True)
                if array.space == 0
            )
    return sum(array.bytes for array in arrays if array.space == 0)


def _results(instruction: Instruction) -> tuple[Array, ...]:
    """Its results alone: what goes on in the background also passes on its source, and flags."""
    opcode, arrays = instruction.opcode, instruction.arrays
    if opcode in ("send", "recv"):
        return arrays[:1] if opcode == "recv" else ()
    if not opcode.endswith("-start") or opcode == "all-reduce-start":
        return arrays
    return arrays[:1] if opcode == "copy-start" else arrays[1:2]


def _result(fused: Computation, name: str, size: float) -> float:
    """Bytes written of a fusion's result: of an update in place only what is new."""
    instruction = fused.instructions[name]
    while instruction.opcode == "bitcast":
        instruction = fused.instructions[instruction.operands[0]]
    if instruction.opcode == "dynamic-update-slice":
        return fused.instructions[instruction.operands[1]].arrays[0].bytes
    return size


def _read(module: Module, computation: Computation, instruction: Instruction):
    """Yields the bytes read of every operand that lies in HBM."""
    fused = module.called(instruction, "calls") if instruction.opcode == "fusion" else None
    for number, name in enumerate(instruction.operands):
        arrays = [a for a in computation.instructions[name].arrays if a.space == 0]
        whole = sum(array.bytes for array in arrays)
        if fused is not None:
            yield min(whole, _used(module, fused, fused.parameters[number].name))
        elif instruction.opcode in _SLICES and number == 0:
            yield min(whole, _results(instruction)[0].bytes)
        elif instruction.opcode == "dynamic-update-slice" and number == 0:
            yield computation.instructions[instruction.operands[1]].arrays[0].bytes if whole else 0
        else:
            yield whole


def _used(module: Module, fused: Computation, name: str) -> float:
    """Bytes that a fusion needs of one of its parameters."""
    total = 0.0
    for user in fused.users[name]:
        if user.opcode in _SLICES and user.operands[0] == name:
            total += user.arrays[0].bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # overwritten in place
        elif user.opcode == "bitcast":
            total += _used(module, fused, user.name)
        elif user.opcode == "fusion":
            inner = module.called(user, "calls")
            total += sum(
                _used(module, inner, parameter.name)
                for parameter, operand in zip(inner.parameters, user.operands, strict=True)
                if operand == name
            )
        else:
            return math.inf
    return total
