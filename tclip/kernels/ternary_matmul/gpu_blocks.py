"""How the GPU kernel divides a product among programs.

The costs are those of an H100. They are derived from the kernel's machine code (`python -m
launch.bench gpu_schedule`) and the peaks of the card, and not measured: they have to tell which
tile is faster, not by how much.
"""

import dataclasses
import math
from collections.abc import Iterator

from tclip.quant.packing import CODES_PER_WORD

MULTIPROCESSORS = 132
# Bytes that the L2 cache gives in a cycle, and the cycles in which a program is started.
L2, START = 3100, 1800
# A K-block of scales has a multiple of so many rows, the fewest in a step: it has whole steps.
BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a program multiplies, rows of x by columns of the weight, and how.

    Attributes:
      warps: of the program; tensor cores of that generation take 64 columns for each four.
      words: rows of words in a step, of 16-bit activations. Smaller tiles have more, so that as
        much is under way; the three steps that are loaded ahead fit the 99 kB of shared memory of
        the smaller cards.
      alone: cycles from one step to the next, for 64 inputs of 16 bits or 128 of 8: a program waits
        for what it loads, unpacks it, and waits for the tensor cores.
      busy: cycles of them in which a multiprocessor can run no other program, because its tensor
        cores multiply or its warps issue instructions, whichever is longer.
    """

    rows: int
    columns: int
    warps: int
    words: int
    alone: int
    busy: int

    @property
    def name(self) -> str:
        return f"{self.rows}x{self.columns}x{self.words}"


TILES = (
    Tile(rows=128, columns=128, warps=8, words=4, alone=780, busy=512),
    Tile(rows=64, columns=128, warps=8, words=8, alone=440, busy=256),
    Tile(rows=64, columns=64, warps=4, words=8, alone=340, busy=128),
    Tile(rows=32, columns=64, warps=4, words=16, alone=235, busy=109),
    Tile(rows=16, columns=64, warps=4, words=16, alone=200, busy=104),
    Tile(rows=16, columns=64, warps=4, words=32, alone=180, busy=103),
)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A tile, and who adds up what along K.

    Attributes:
      words: rows of words in a step.
      steps: of a program in a K-block of scales.
      scale_blocks: K-blocks that a program adds up, each whole if there are several.
      splits: programs that share a K-block.
      parts: programs along K, each of which writes what it has added up.
    """

    tile: Tile
    words: int
    steps: int
    scale_blocks: int
    splits: int
    parts: int


def choose_blocks(
    shape: tuple[int, int, int], scale_blocks: int, bits: int, tiles: tuple[Tile, ...]
) -> Blocks:
    """The blocks that cost least.

    Args:
      shape: M, K and N of [M, K] @ [K, N].
      scale_blocks: scales along K.
      bits: of an element of x.
      tiles: to choose from.
    """
    candidates = _candidates(shape[1], scale_blocks, bits, tiles)
    return min(candidates, key=lambda blocks: _cost(shape, bits, blocks))


def _candidates(k: int, scale_blocks: int, bits: int, tiles: tuple[Tile, ...]) -> Iterator[Blocks]:
    """Every tile, with K in parts of at least two steps."""
    words_in_block = math.ceil(k / CODES_PER_WORD / scale_blocks)
    for tile in tiles:
        words = min(tile.words * 16 // bits, 32)
        if scale_blocks > 1:
            words = min(words, words_in_block & -words_in_block)
        steps = math.ceil(words_in_block / words)
        for splits in range(1, max(steps // 2, 1) + 1):
            share = math.ceil(steps / splits)
            splits = math.ceil(steps / share)
            yield Blocks(tile, words, share, 1, splits, scale_blocks * splits)
        # Two sums, of a K-block and of all, take the registers of another program in larger tiles.
        most = scale_blocks if tile.rows * tile.columns <= 64 * 128 else 1
        for together in range(2, most + 1):
            if scale_blocks % together == 0:
                yield Blocks(tile, words, steps, together, 1, scale_blocks // together)


def _cost(shape: tuple[int, int, int], bits: int, blocks: Blocks) -> float:
    """Cycles that a product takes, but for those that all blocks have in common."""
    m, _, n = shape
    tile = blocks.tile
    programs = math.ceil(m / tile.rows) * math.ceil(n / tile.columns) * blocks.parts
    steps = blocks.scale_blocks * blocks.steps * blocks.words * CODES_PER_WORD * bits / (64 * 16)
    loaded = 64 * 2 * tile.rows + 64 * 16 / bits * tile.columns / 4
    cycles = steps * max(
        tile.alone,
        math.ceil(programs / MULTIPROCESSORS) * tile.busy,
        programs * loaded / L2,
    )
    # Sums are written and read in 4 bytes.
    return cycles if blocks.parts == 1 else cycles + START + 8 * blocks.parts * m * n / L2
