"""The text of a compiled program (HLO), read into computations and instructions.

Only what `tclip.plan.costs` and `tclip.plan.collectives` count: shapes, operands, who calls whom,
and how often a loop runs. The syntax is that of XLA's own printer.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = re.compile(r"\d+")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"  +(ROOT )?%?([\w.\-]+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_PARENTHESIS = re.compile(r"[()]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """Attributes: dtype, dims; space: memory space, 0 is HBM."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without the padding of its layout."""
        bits = _BITS.search(self.dtype)
        return self.size * (int(bits[0]) / 8 if bits else 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
      arrays: its result, flat if it is a tuple.
      operands: names of instructions of the same computation.
      attributes: what follows the operands, as it stands.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of the pattern's first match among the attributes."""
        match = re.search(pattern, self.attributes)
        return None if match is None else match[1]

    def given(self, pattern: str) -> str:
        """As `attribute`; raises ValueError where nothing matches."""
        found = self.attribute(pattern)
        if found is None:
            raise ValueError(f"{self.name}: {self.opcode} without {pattern}")
        return found


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in their order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Of every instruction."""
        users = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.given(r"^(\d+)")))

    @property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name."""

    entry: str
    computations: dict[str, Computation]

    def called(self, instruction: Instruction, key: str) -> Computation:
        """The computation that is the instruction's `key` ("calls", "body", ...)."""
        return self.computations[instruction.given(rf"\b{key}=%?([\w.\-]+)")]

    def trips(self, loop: Instruction) -> int:
        """How often the body of a while loop runs, counting from 0 in steps of 1 as a scan does.

        Raises:
          ValueError: its condition compares with no constant.
        """
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = self.called(loop, "condition")
        root = condition.root
        if root.opcode == "fusion":
            inner = self.called(root, "calls")
            outer = dict(zip((p.name for p in inner.parameters), root.operands, strict=True))
            names = [outer.get(name, name) for name in inner.root.operands]
            root = inner.root
        else:
            names = root.operands
        limits = [
            int(condition.instructions[name].given(r"^(\d+)\)"))
            for name in names
            if name in condition.instructions and condition.instructions[name].opcode == "constant"
        ]
        if len(limits) != 1 or "direction=LT" not in root.attributes:
            raise ValueError(f"{loop.name}: a loop whose length the program does not say")
        return limits[0]

    def executed(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields what the program runs through: (where, what, how often).

        What is within a fusion is not among it: it is the fusion that is run. Of a conditional
        every branch counts.
        """
        yield from self._executed(self.computations[self.entry], 1)

    def _executed(self, computation: Computation, count: int) -> Iterator:
        for instruction in computation.instructions.values():
            yield computation, instruction, count
            if instruction.opcode == "while":
                times = count * self.trips(instruction)
                yield from self._executed(self.called(instruction, "body"), times)
            elif instruction.opcode in ("call", "async-start"):
                key = "to_apply" if instruction.opcode == "call" else "calls"
                yield from self._executed(self.called(instruction, key), count)
            elif instruction.opcode == "conditional":
                for branch in self._branches(instruction):
                    yield from self._executed(branch, count)

    def _branches(self, conditional: Instruction) -> list[Computation]:
        listed = conditional.attribute(r"branch_computations=\{([^}]*)\}")
        names = listed or " ".join(
            conditional.given(rf"{side}_computation=(%?[\w.\-]+)") for side in ("true", "false")
        )
        return [self.computations[name.lstrip("%")] for name in re.split(r",? ", names)]

    def within(self, instruction: Instruction) -> Iterator[Instruction]:
        """Yields the instruction and, if it is a fusion, all that it does, nested ones too."""
        yield instruction
        if instruction.opcode == "fusion":
            for inner in self.called(instruction, "calls").instructions.values():
                yield from self.within(inner)


def parse_module(text: str) -> Module:
    """Reads a module.

    Raises:
      ValueError: a line that is no instruction, or there is no entry.
    """
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if line.startswith(" ") and current is not None:
            instruction = _parse_instruction(line)
            current[instruction.name] = instruction
        elif header := _HEADER.match(line):
            current = {}
            computations[header[2]] = Computation(header[2], current)
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
    if not entry:
        raise ValueError("the text is no HLO module: it has no ENTRY")
    return Module(entry, computations)


def _parse_instruction(line: str) -> Instruction:
    start = _NAME.match(line)
    if start is None:
        raise ValueError(f"no instruction of HLO: {line[:120]}")
    begin = start.end()
    end = _closing(line, begin) + 1 if line[begin] == "(" else line.index(" ", begin)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    opcode, inside = line[end:opening].strip(), line[opening + 1 : closing]
    is_literal = opcode in ("constant", "parameter")
    return Instruction(
        name=start[2],
        opcode=opcode,
        arrays=tuple(
            Array(
                dtype,
                tuple(int(n) for n in dims.split(",") if n),
                int(space[1]) if (space := _SPACE.search(layout)) else 0,
            )
            for dtype, dims, layout in _ARRAY.findall(line[begin:end])
        ),
        operands=() if is_literal else tuple(_OPERAND.findall(inside)),
        attributes=line[opening + 1 if is_literal else closing + 1 :],
        is_root=bool(start[1]),
    )


def _closing(line: str, opening: int) -> int:
    """Where the parenthesis that is open at `opening` closes."""
    depth = 0
    for match in _PARENTHESIS.finditer(line, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no instruction of HLO: {line[:120]}")
