"""How much of a ternary product the TPU kernel works on at a time.

A step of the grid is one straight-line program, whose length grows with its multiplications. Longer
is better, since filling and draining the matrix unit costs once a step, up to what the instruction
memory streams well; `python -m launch.bench tpu_schedule` shows the lengths.
"""

import dataclasses

LANES = 128
# Rows of a tile of int8, and of bfloat16.
INT8_ROWS, BFLOAT16_ROWS = 32, 16
# Columns come in the widths of the matrix unit, which is 256 from v6e on.
COLUMNS = 256
# Of K in a step.
INPUTS = 8192
# Elements of x in a step.
ELEMENTS = 5 * 2**19
# Codes in a step, K times columns: a feed-forward layer of ViT-H whole. A row of int8 activations
# is best rounded in the step that multiplies all of it.
CODES = 25 * 2**18
# A step has at least so many columns, if there are so many, however large K is.
FEWEST_COLUMNS = 768


@dataclasses.dataclass(frozen=True)
class Most:
    """What a step is limited to.

    Attributes:
      rows: of x.
      products: of rows and codes, which make the program long.
      tall: whether so many rows come first, and columns are what is left; else all columns come
        first.
    """

    rows: int
    products: int
    tall: bool = False


# Codes of a feed-forward layer of ViT-B, with which rows were tried.
_LAYER = 768 * 3072
# By chip, and whether the matrix unit multiplies int8, which takes half as long. The units of v5e
# and v5p are small, and codes are pushed to them again for every block of rows: in bfloat16 that
# takes longer than to read x again. v6e wants many rows of int8, since its vector unit has no time
# to unpack codes often. Between 448 and 544 the schedule of v5e in int8 is shortest for 480, of
# which v5p's cores would get unequal shares.
MOST = {
    ("v5e", False): Most(1280, 640 * _LAYER, tall=True),
    ("v5e", True): Most(480, 480 * _LAYER),
    ("v5p", False): Most(1280, 640 * _LAYER, tall=True),
    ("v5p", True): Most(512, 512 * _LAYER),
    ("v6e", False): Most(2048, 2048 * _LAYER),
    ("v6e", True): Most(2816, 2816 * _LAYER),
    ("7x", False): Most(1024, 1024 * _LAYER),
}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A block of the output is [rows, columns]; `inputs` of K are added up in one step."""

    rows: int
    columns: int
    inputs: int


def choose_blocks(
    shape: tuple[int, int, int], scale_blocks: int, *, int8: bool, chip: str, cores: int
) -> Blocks:
    """The blocks for a product.

    Args:
      shape: M, K and N of [M, K] @ [K, N].
      scale_blocks: scales along K; a step takes whole blocks of them.
      int8: whether the matrix unit multiplies int8, or bfloat16.
      chip: with `int8` a key of `MOST`.
      cores: that share the rows, or the columns where the rows are one block.
    """
    m, k, n = shape
    if scale_blocks > 1:
        block = k // scale_blocks
        counts = [d for d in range(1, scale_blocks + 1) if scale_blocks % d == 0]
        inputs = block * max(d for d in counts if d == 1 or d * block <= INPUTS)
    else:
        inputs = share(k, INPUTS, LANES)
    tile, most = INT8_ROWS if int8 else BFLOAT16_ROWS, MOST[chip, int8]
    most_rows = min(most.rows, ELEMENTS // inputs)
    codes = min(most.products // min(m, most_rows), CODES) if most.tall else CODES
    most_columns = max(codes // inputs // COLUMNS * COLUMNS, FEWEST_COLUMNS)
    columns = _columns(n, most_columns, at_least=cores if m <= most_rows else 1)
    most_rows = min(most_rows, most.products // (inputs * columns))
    rows = share(m, max(most_rows // tile, 1) * tile, tile)
    return Blocks(rows, columns, inputs)


def share(size: int, most: int, multiple: int) -> int:
    """The size of equal shares of `size`, multiples of `multiple` up to `most`."""
    return _part(size, -(-size // most), multiple)


def _columns(n: int, most: int, at_least: int) -> int:
    """The width of equal shares up to `most`, of the fewest that cover the least beyond n."""
    fewest = max(-(-n // most), at_least)
    widths = [_part(n, count, COLUMNS) for count in range(fewest, 3 * fewest)]
    return min(widths, key=lambda width: -(-n // width) * width)


def _part(size: int, shares: int, multiple: int) -> int:
    return -(-size // (shares * multiple)) * multiple
