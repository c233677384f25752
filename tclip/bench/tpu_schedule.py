"""What ternary products cost on TPUs, by the compiler's static schedule, with no TPU at hand.

Needs libtpu (`pip install "tclip[tpu]"`). See `tclip.bench.schedule` for what a bundle is: the
figures are deterministic, so that a change of a kernel shows to the last instruction. They leave
out stalls, and the time in which the first block is fetched and the last one written.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Annotated, Any, cast

import jax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh
from tqdm import tqdm

from tclip.bench.schedule import dump_flags
from tclip.hardware.tpu_compiler import environment, libtpu_version, read_answers
from tclip.kernels.ternary_matmul.blocks import share
from tclip.tables import markdown_table, percent

TABLE = Path(__file__).with_suffix(".json")
# The device kinds of the chips, and their cores.
CHIPS = {
    "v5e": AbstractDevice("TPU v5 lite", 1, "tpu"),
    "v5p": AbstractDevice("TPU v5", 2, "tpu"),
    "v6e": AbstractDevice("TPU v6 lite", 1, "tpu"),
    "tpu7x": AbstractDevice("TPU7x", 1, "tpu"),
}
# M of one token, of batches, and of texts and images alone and in batches of 8 and 128.
BATCHES = (1, 8, 77, 197, 256, 1576, 25216)
# Width, feed-forward width and output of the towers of ViT-B/16, L/14 and H/14.
_TOWERS = (
    *((512, 2048, 512), (768, 3072, 768), (1024, 4096, 1024)),  # of texts
    *((768, 3072, 512), (1024, 4096, 768), (1280, 5120, 1024)),  # of images
)
_PATCHES = ((16 * 16 * 3, 768), (14 * 14 * 3, 1024), (14 * 14 * 3, 1280))
# K and N of their layers: patches, attention, feed-forward and projection.
LAYERS = sorted(
    {(width, n) for width, *others in _TOWERS for n in (width, *others)}
    | {(mlp, width) for width, mlp, _ in _TOWERS}
    | set(_PATCHES)
)
DENSE = ("bfloat16", "int8")
TERNARY = ("native", "int8")


def run(
    chips: Annotated[str, "of v5e, v5p, v6e, tpu7x, separated by commas"] = ",".join(CHIPS),
    shapes: Annotated[str, "MxKxN, separated by commas, or 'layers': all of CLIP's"] = (
        "256x768x3072,25216x768x3072"
    ),
    dense: Annotated[str, "'yes' to compare with dense products, 'no' to compile without"] = "yes",
) -> dict[str, Any]:
    """Compiles the products for every chip and prints bundles, ratios and bounds.

    A dense baseline is the best of XLA's own dot and of a Pallas kernel with several block sizes,
    int8 with the activations already quantised; the int8 ternary product quantises them itself.

    Returns:
      The versions of the compiler, and by chip, shape and kernel the figures of `compile_job`.
    """
    sizes = [f"{m}x{k}x{n}" for k, n in LAYERS for m in BATCHES] if shapes == "layers" else None
    sizes = sizes or shapes.split(",")
    schedules = {}
    for chip in chips.split(","):
        if chip not in CHIPS:
            raise ValueError(f"no chip {chip!r}; there are {', '.join(CHIPS)}")
        jobs = [job for size in sizes for job in jobs_of(chip, _shape(size), dense == "yes")]
        schedules[chip] = {size: {} for size in sizes}
        for job, answer in zip(jobs, compile_jobs(jobs), strict=True):
            results = schedules[chip]["x".join(map(str, job["shape"]))]
            best = results.get(job["kernel"])
            if "error" in answer:
                print(f"{job}: {answer['error']}")
            if best is None or "error" in best or answer.get("bundles", 1e30) < best["bundles"]:
                results[job["kernel"]] = answer | {"blocks": job.get("blocks")}
        print(f"\n{chip}")
        print(_table(chip, schedules[chip]))
    return {"libtpu": libtpu_version(), "jax": jax.__version__, "schedules": schedules}


def _shape(size: str) -> tuple[int, int, int]:
    m, k, n = map(int, size.split("x"))
    return m, k, n


def jobs_of(chip: str, shape: tuple[int, int, int], dense: bool) -> list[dict[str, Any]]:
    """What is compiled of a shape: both ternary products, and the dense ones."""
    m, _, n = shape
    job = {"chip": chip, "shape": list(shape)}
    jobs = [job | {"kernel": f"ternary_{kind}"} for kind in TERNARY]
    if not dense:
        return jobs
    rows = {share(m, most, 32) for most in (256, 480, 512, 1024, 1280, 2048, 2560)}
    blocks = [[r, c] for r in sorted(rows) for c in (768, n // 2, n) if r * c <= 2560 * 3072]
    for kind in DENSE:
        jobs.append(job | {"kernel": f"xla_{kind}"})
        jobs += [job | {"kernel": f"pallas_{kind}", "blocks": size} for size in blocks]
    return jobs


def compile_jobs(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of `tpu_programs.compile_job` for every job, or its `error`.

    Raises:
      ValueError: libtpu is not installed.
    """
    libtpu_version()
    answers = []
    with tqdm(total=len(jobs), disable=None, unit="program") as bar:
        while len(answers) < len(jobs):
            # The compiler aborts its process over what it does not know; the next one goes on.
            for answer in _compile_in_process(jobs[len(answers) :]):
                answers.append(answer)
                bar.update()
    return answers


def _compile_in_process(jobs: list[dict[str, Any]]):
    """Yields the answers of one process, until it has none or dies; then an error for the next."""
    with tempfile.TemporaryDirectory() as dump:
        dumping = environment() | {"LIBTPU_INIT_ARGS": dump_flags(Path(dump))}
        with subprocess.Popen(
            [sys.executable, "-m", "tclip.bench.tpu_programs", dump],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dumping,
        ) as process:
            for job in jobs:
                answer = _ask(process, job)
                yield answer or {"error": "the compiler died"}
                if answer is None:
                    return
            cast(IO[str], process.stdin).close()


def _ask(process: subprocess.Popen, job: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to a job, None if the process dies over it."""
    stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    try:
        stdin.write(json.dumps(job) + "\n")
        stdin.flush()
    except BrokenPipeError:
        return None
    return next(read_answers(stdout), None)


def bounds(chip: str, shape: tuple[int, int, int], int8: bool, weight_bits: int) -> tuple:
    """Microseconds that the matrix unit needs at its peak, and the memory for x, w and y."""
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=CHIPS[chip])):
        info = pltpu.get_tpu_info()
    m, k, n = shape
    peak = (int8 and info.int8_ops_per_second) or info.bf16_ops_per_second
    size = 2 * m * k + k * n * weight_bits / 8 + 2 * m * n
    cores = CHIPS[chip].num_cores or 1
    return tuple(
        1e6 * work / (cores * rate)
        for work, rate in ((2 * m * k * n, peak), (size, info.mem_bw_bytes_per_second))
    )


def _table(chip: str, sizes: dict[str, dict[str, dict]]) -> str:
    header = ("product", "bundles", "inner", "trips", "matrix unit", "/ bfloat16", "/ int8")
    rows = []
    for size, kernels in sizes.items():
        best = {kind: _best(kernels, kind) for kind in DENSE}
        for name, figures in kernels.items():
            if "error" in figures:
                continue
            ratios = [f"{figures['bundles'] / b:.3f}" if b else "" for b in best.values()]
            counts = [str(figures[count]) for count in ("bundles", "inner", "trips")]
            rows.append((f"{size} {name}", *counts, percent(figures["matrix_share"]), *ratios))
    return markdown_table(header, rows) + "\n\n" + _bounds_table(chip, sizes)


def _best(kernels: dict[str, dict], kind: str) -> int | None:
    """Bundles of the better dense product of a kind."""
    found = [kernels.get(f"{by}_{kind}", {}).get("bundles") for by in ("xla", "pallas")]
    return min((bundles for bundles in found if bundles), default=None)


def _bounds_table(chip: str, sizes: dict[str, dict]) -> str:
    header = ("bounds (microseconds)", "matrix unit", "memory", "bytes of weights")
    rows = []
    for size in sizes:
        shape = _, k, n = _shape(size)
        for name, int8, bits in (
            ("bfloat16", False, 16),
            ("int8", True, 8),
            ("ternary_native", False, 2),
            ("ternary_int8", True, 2),
        ):
            matrix, memory = bounds(chip, shape, int8, bits)
            cells = (f"{matrix:.2f}", f"{memory:.2f}", str(k * n * bits // 8))
            rows.append((f"{size} {name}", *cells))
    return markdown_table(header, rows)
