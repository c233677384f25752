"""CLIP's towers by each runtime for CPUs, on one thread, from the same weights; imports no jax.

A runtime is opened by `open_tower` from a folder that `tclip.bench.engine` makes: a packed folder
`packed`, the same model in float as Hugging Face's `float`, and `TOWER-KIND.onnx`.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

TOWERS = ("image", "text")
ENGINE = "tclip engine"
ONNX_KINDS = ("float32", "int8", "2 bits")
RUNTIMES = (
    ENGINE,
    "tclip engine, native",
    "torch float32",
    "torch int8",
    *(f"ONNX Runtime {kind}" for kind in ONNX_KINDS),
)
# What has to be installed, by the first word of a runtime's name.
REQUIREMENTS = {
    "tclip": (),
    "torch": ("torch", "transformers"),
    "ONNX": ("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
}
Encode = Callable[[np.ndarray], np.ndarray]


def open_tower(runtime: str, folder: Path, tower: str) -> Encode:
    """A function from float32 pixels [B, S, S, 3], or int64 tokens [B, L], to embeddings [B, D]."""
    if runtime.startswith(ENGINE):
        return _engine(folder / "packed", tower, "native" if "native" in runtime else "int8")
    if runtime.startswith("torch"):
        return _torch(folder / "float", tower, is_int8=runtime.endswith("int8"))
    return _onnxruntime(onnx_file(folder, tower, runtime.removeprefix("ONNX Runtime ")))


def onnx_file(folder: Path, tower: str, kind: str) -> Path:
    return folder / f"{tower}-{kind.replace(' ', '_')}.onnx"


def peak_megabytes(runtime: str, folder: Path, tower: str, inputs: Path) -> float:
    """Most memory that a process of its own had in use which encodes a batch (a .npy file) once."""
    arguments = json.dumps([runtime, str(folder), tower, str(inputs)])
    command = sys.executable, "-m", __name__, arguments
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _engine(folder: Path, tower: str, activations: str) -> Encode:
    from tclip import engine

    model = engine.load(folder, activations)
    return model.encode_tokens if tower == "text" else model.encode_image


def _torch(folder: Path, tower: str, is_int8: bool) -> Encode:
    import torch

    torch.set_num_threads(1)
    model = torch_tower(folder, tower)
    if is_int8:
        torch.backends.quantized.engine = "onednn" if sys.platform == "linux" else "qnnpack"
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    return functools.partial(_run_torch, model)


def torch_tower(folder: Path, tower: str):
    """transformers' tower with its projection; takes what the ONNX graphs take."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    classes = {
        "image": transformers.CLIPVisionModelWithProjection,
        "text": transformers.CLIPTextModelWithProjection,
    }
    model = classes[tower].from_pretrained(folder, attn_implementation="sdpa").eval()

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, inputs):
            if tower == "text":
                return self.model(input_ids=inputs).text_embeds
            return self.model(pixel_values=inputs.permute(0, 3, 1, 2)).image_embeds

    return Tower().eval()


def _run_torch(model, inputs: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(inputs)).numpy()


def _onnxruntime(file: Path) -> Encode:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda inputs: np.asarray(session.run(None, {name: inputs})[0])


def _main(arguments: str) -> None:
    runtime, folder, tower, inputs = json.loads(arguments)
    open_tower(runtime, Path(folder), tower)(np.load(inputs))
    # getrusage's figure begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 / 1e6)


if __name__ == "__main__":
    _main(sys.argv[1])
