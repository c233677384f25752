"""How much of a ternary product the TPU kernel works on at a time.

A step of the grid is one straight-line program, whose length grows with its multiplications. Longer
is better, since filling and draining the matrix unit costs once a step, up to what the instruction
memory streams well; `python -m launch.bench tpu_schedule` shows the lengths.
"""

import dataclasses

LANES = 128
# Columns come in the widths of the matrix unit, which is 256 from v6e on.
COLUMNS = 256
# Of K in a step.
INPUTS = 8192
# Codes in a step, K times columns: the first feed-forward layer of ViT-B whole.
CODES = 5 * 2**19
# Elements of x in a step.
ELEMENTS = 5 * 2**19
# Rows of x in a step, by chip. The matrix unit that is wider from v6e on wants more, most so on
# v6e, whose vector unit has no time to unpack codes often; between 448 and 544 the schedule of v5e
# is shortest for 480, of which v5p's cores would get unequal shares.
ROWS = {"v5e": 480, "v5p": 512, "v6e": 2048, "7x": 1024}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A block of the output is [rows, columns]; `inputs` of K are added up in one step."""

    rows: int
    columns: int
    inputs: int


def choose_blocks(
    shape: tuple[int, int, int], scale_blocks: int, *, tile: int, chip: str, cores: int
) -> Blocks:
    """The blocks for a product.

    Args:
      shape: M, K and N of [M, K] @ [K, N].
      scale_blocks: scales along K; a step takes whole blocks of them.
      tile: of what rows have to be a multiple.
      chip: a key of `ROWS`.
      cores: that share the rows, or the columns where the rows are one block.
    """
    m, k, n = shape
    if scale_blocks > 1:
        block = k // scale_blocks
        counts = [d for d in range(1, scale_blocks + 1) if scale_blocks % d == 0]
        inputs = block * max(d for d in counts if d == 1 or d * block <= INPUTS)
    else:
        inputs = share(k, INPUTS, LANES)
    most_rows = min(ROWS[chip], ELEMENTS // inputs)
    rows = share(m, max(most_rows // tile, 1) * tile, tile)
    most_columns = max(CODES // inputs // COLUMNS, 1) * COLUMNS
    columns = share(n, most_columns, COLUMNS, at_least=1 if rows < m else cores)
    return Blocks(rows, columns, inputs)


def share(size: int, most: int, multiple: int, at_least: int = 1) -> int:
    """The size of equal shares of `size`, multiples of `multiple` up to `most`."""
    shares = max(-(-size // most), at_least)
    return -(-size // (shares * multiple)) * multiple
