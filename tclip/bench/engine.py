"""The engine's towers against other runtimes for CPUs, from the same weights, on one thread."""

import dataclasses
import functools
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import jax
import numpy as np

from tclip.bench.cpu_runtimes import (
    ENGINE,
    ONNX_KINDS,
    REQUIREMENTS,
    RUNTIMES,
    TOWERS,
    onnx_file,
    open_tower,
    peak_megabytes,
    torch_tower,
)
from tclip.bench.encoder import packed_params
from tclip.bench.steps import cut_architecture, random_batch
from tclip.bench.timing import in_turn
from tclip.engine.library import library
from tclip.interop import save_huggingface
from tclip.models import CLIPConfig, init_params
from tclip.packed import save_packed
from tclip.processing import PreprocessConfig, train_tokenizer
from tclip.tables import markdown_table


def run(
    arch: Annotated[str, "architecture"] = "ViT-B/16",
    layers: Annotated[int, "most layers of a tower, to fit small machines"] = 32,
    batches: Annotated[str, "images or texts at once, by commas"] = "1,8",
    repeats: Annotated[int, "timings of each runtime, in turn"] = 7,
) -> dict[str, Any]:
    """Times both towers of random weights, every kernel ternary, by each runtime of `RUNTIMES`.

    Runtimes that are not installed are left out (extra `bench` brings them all).

    Returns:
      The engine's kernel; by tower and batch, and runtime: median and least processor time in
      milliseconds, and the median of its ratios to the engine's; and by tower and runtime the most
      memory that a process which encodes one batch of one had in use, in MB.
    """
    os.environ["TCLIP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _prepare(folder, cut_architecture(arch, layers, "float32"))
        runtimes = [runtime for runtime in RUNTIMES if _is_installed(runtime)]
        times, memory = {}, {}
        for tower in TOWERS:
            encoders = {runtime: open_tower(runtime, folder, tower) for runtime in runtimes}
            for batch in map(int, batches.split(",")):
                times[f"{tower} {batch}"] = _time(encoders, _inputs(model, tower, batch), repeats)
            np.save(folder / "one.npy", _inputs(model, tower, 1))
            memory[tower] = {
                runtime: peak_megabytes(runtime, folder, tower, folder / "one.npy")
                for runtime in runtimes
            }
    kernel = library().tclip_kernel_name().decode()
    print(f"{arch}, at most {layers} layers, random weights, engine's kernel {kernel}")
    print(_table(times, memory))
    return {"arch": arch, "layers": layers, "kernel": kernel, "times": times, "memory": memory}


def _prepare(folder: Path, model: CLIPConfig) -> CLIPConfig:
    """Writes the model for every runtime; returns it with its tokenizer's end-of-text token."""
    tokenizer = train_tokenizer(["a photo of a dog"], model.text.context_length, 600)
    text = dataclasses.replace(
        model.text,
        eot_token_id=tokenizer.eot_token_id,
        vocab_size=max(model.text.vocab_size, tokenizer.vocab_size),
    )
    model = dataclasses.replace(model, text=text)
    preprocess = PreprocessConfig(image_size=model.vision.image_size)
    # From one key: what is packed are the float weights of the others.
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    packed = jax.jit(functools.partial(packed_params, model, "all"))()
    save_packed(folder / "packed", model, packed, tokenizer, preprocess)
    save_huggingface(folder / "float", model, params, tokenizer, preprocess)
    if _is_installed("ONNX Runtime"):
        for tower in TOWERS:
            _export_onnx(folder, tower, _inputs(model, tower, 2))
    return model


def _export_onnx(folder: Path, tower: str, example: np.ndarray) -> None:
    """Writes the graphs of `ONNX_KINDS`, by torch's exporter and ONNX Runtime's quantisers."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    files = {kind: onnx_file(folder, tower, kind) for kind in ONNX_KINDS}
    torch.onnx.export(
        torch_tower(folder / "float", tower),
        (torch.from_numpy(example),),
        files["float32"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )
    quantize_dynamic(files["float32"], files["int8"], weight_type=QuantType.QInt8)
    quantizer = MatMulNBitsQuantizer(
        onnx.load(files["float32"]), bits=2, block_size=64, accuracy_level=4
    )
    quantizer.process()
    onnx.save(cast(Any, quantizer.model).model, files["2 bits"])


def _is_installed(runtime: str) -> bool:
    """Whether what it takes can be imported."""
    return all(map(importlib.util.find_spec, REQUIREMENTS[runtime.split()[0]]))


def _inputs(model: CLIPConfig, tower: str, batch: int) -> np.ndarray:
    name, dtype = {"image": ("images", np.float32), "text": ("tokens", np.int64)}[tower]
    return np.asarray(random_batch(model, batch)[name]).astype(dtype)


def _time(
    encoders: Mapping[str, Callable], inputs: np.ndarray, repeats: int
) -> dict[str, dict[str, float]]:
    def timer(encode: Callable) -> Callable[[], float]:
        encode(inputs)
        return lambda: _processor_seconds(lambda: encode(inputs))

    seconds = in_turn({name: timer(encode) for name, encode in encoders.items()}, repeats)
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(times),
            "least": 1e3 * min(times),
            "ratio": statistics.median(
                t / ours for t, ours in zip(times, seconds[ENGINE], strict=True)
            ),
        }
        for name, times in seconds.items()
    }


def _processor_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _table(times: Mapping[str, dict], memory: Mapping[str, dict]) -> str:
    columns = list(times)
    header = ("runtime", *(f"{name}: ms, least, / engine" for name in columns))
    memories = (f"{tower}: MB" for tower in memory)
    rows: list[Sequence[str]] = []
    for runtime in next(iter(times.values())):
        cells = (
            f"{of['milliseconds']:.0f}, {of['least']:.0f}, {of['ratio']:.2f}"
            for of in (times[name][runtime] for name in columns)
        )
        rows.append((runtime, *cells, *(f"{memory[tower][runtime]:.0f}" for tower in memory)))
    return markdown_table((*header, *memories), rows)
