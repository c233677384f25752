"""What the tiles of the GPU kernel take of an H100, read off their machine code, with no GPU.

Needs jax's compiler for NVIDIA GPUs (`pip install "tclip[cuda]"`), ptxas, which comes with it, and
nvdisasm (`pip install nvidia-cuda-nvdisasm`).

A multiprocessor has four schedulers, which start an instruction a cycle each, and integer units
that take two cycles for one. Counted is the loop over K. What stalls is left out: a loop can take
longer than the longest of its columns, but not less.
"""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp

from tclip.hardware.gpu_compiler import compile_for_gpu, is_installed
from tclip.kernels.ternary_matmul import gpu
from tclip.kernels.ternary_matmul.gpu_blocks import TILES, Tile
from tclip.quant import TernaryTensor
from tclip.tables import markdown_table

# Of a product that every tile multiplies in a loop of many steps.
M, K, N = 1576, 8192, 4096
# Instructions for the integer units, of those that loops have.
INTEGER = {"IADD3", "ISETP", "LEA", "LOP3", "PLOP3", "PRMT", "SEL", "SHF", "VIADD", "VIMNMX"}
# Multiplications that tensor cores of a multiprocessor add up in a cycle, by bits.
RATE = {16: 2048, 8: 4096}


def run(
    activations: Annotated[str, "of 'native' (bfloat16) and 'int8', by commas"] = "native,int8",
) -> dict[str, Any]:
    """Compiles every tile and prints its registers, and cycles a multiprocessor for 64 inputs.

    Returns:
      By activations and tile the figures of `tile_figures`.
    """
    figures = {
        kind: {tile.name: tile_figures(tile, kind) for tile in TILES}
        for kind in activations.split(",")
    }
    print(f"[{M}, {K}] @ [{K}, {N}], for each program and 64 inputs")
    print(_table(figures))
    return {"jax": jax.__version__, "tiles": figures}


def tile_figures(tile: Tile, activations: str) -> dict[str, float]:
    """What a program has, and what 64 of its inputs take.

    Returns:
      Registers of a thread and bytes of them that do not fit; cycles of the tensor cores, of a
      scheduler and of its integer units; bytes that are loaded.

    Raises:
      ValueError: a tool is missing.
    """
    if not is_installed():
        raise ValueError('compiling for NVIDIA GPUs needs pip install "tclip[cuda]"')
    with tempfile.TemporaryDirectory() as folder:
        compile_for_gpu(
            functools.partial(tile_product, tile, activations),
            (
                jax.ShapeDtypeStruct((M, K), jnp.bfloat16),
                TernaryTensor(
                    cast(jax.Array, jax.ShapeDtypeStruct((K // 16, N), jnp.int32)),
                    cast(jax.Array, jax.ShapeDtypeStruct((1, N), jnp.float32)),
                    K,
                ),
            ),
            compiler_options={"xla_dump_to": folder},
        )
        texts = {path: path.read_text() for path in Path(folder).glob("*.ptx")}
        (ptx,) = (path for path, text in texts.items() if ".entry ternary_matmul_kernel" in text)
        code = Path(folder) / "code"
        report = _tool("ptxas", "-arch=sm_90a", "-v", str(ptx), "-o", str(code)).stderr
        machine_code = _tool("nvdisasm", "-c", str(code)).stdout
    count = Counter(instruction.split(".")[0] for instruction in loop(machine_code))
    bits = 8 if activations == "int8" else 16
    products = count["HGMMA"] + count["IGMMA"]
    # One takes 256 bits of K for 64 columns.
    inputs = products * 256 // bits * tile.warps * 16 // tile.columns
    a_scheduler = tile.warps / 4 * 64 / inputs
    return {
        "registers": _number(r"Used (\d+) registers", report),
        "spilled": _number(r"(\d+) bytes spill stores", report),
        "tensor cores": 64 * tile.rows * tile.columns / RATE[bits],
        "scheduler": a_scheduler * count.total(),
        "integer units": a_scheduler * 2 * sum(count[name] for name in INTEGER),
        "bytes": 64 * (tile.rows * bits / 8 + tile.columns / 4),
    }


def _number(pattern: str, report: str) -> int:
    found = re.search(pattern, report)
    if found is None:
        raise ValueError(f"ptxas reports nothing like {pattern!r}: {report[:300]}")
    return int(found[1])


def tile_product(tile: Tile, activations: str, x: jax.Array, w: TernaryTensor) -> jax.Array:
    """x @ w by the GPU kernel in a tile, however many rows x has."""
    options = {"rows": w.rows, "activations": activations, "activation": None}
    return gpu.matmul(x, w.words, w.scale, None, **options, tiles=(tile,))


def loop(machine_code: str) -> list[str]:
    """The names of the instructions, as nvdisasm writes them, of the loop that multiplies.

    Raises:
      ValueError: there is none.
    """
    names, labels = [], {}
    for line in machine_code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = len(names)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@\S+ )?\s*([A-Z][\w.]*)(.*);", line):
            names.append(found[1])
            target = re.search(r"\.L_x_\d+", found[2]) if found[1] == "BRA" else None
            if target and target[0] in labels:
                body = names[labels[target[0]] :]
                if any("GMMA" in name for name in body):
                    return body
    raise ValueError("the machine code has no loop with products of matrices")


def path_of(program: str) -> Path | str | None:
    """Where a program of CUDA's is, on the path or in a package of NVIDIA's."""
    packaged = (p for place in sys.path for p in Path(place).glob(f"nvidia/*/bin/{program}"))
    return shutil.which(program) or next(packaged, None)


def _tool(program: str, *arguments: str) -> subprocess.CompletedProcess:
    path = path_of(program)
    if path is None:
        raise ValueError(
            f"there is no {program}: pip install nvidia-cuda-nvcc nvidia-cuda-nvdisasm"
        )
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True)


def _table(figures: dict[str, dict[str, dict]]) -> str:
    names = list(next(iter(next(iter(figures.values())).values())))
    rows = [
        (f"{kind} {tile}", *(f"{of[name]:.0f}" for name in names))
        for kind, tiles in figures.items()
        for tile, of in tiles.items()
    ]
    return markdown_table(("tile", *names), rows)
