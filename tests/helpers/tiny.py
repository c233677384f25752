"""A tiny CLIP with random weights, its workdir, and data in memory, for the tests that need one."""

import contextlib
import dataclasses
import functools
import io
import resource
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from tclip.data import Sample
from tclip.inference import Model
from tclip.models import CLIPConfig, ClipPolicy, architecture, init_params
from tclip.processing import (
    BadSample,
    PreprocessConfig,
    Tokenizer,
    save_preprocess,
    train_tokenizer,
)
from tclip.quant import init_quant, quantize_params, ternarize_params
from tclip.run.checkpoint import Checkpoints
from tclip.run.experiment import Experiment, write_experiment

POLICY = ClipPolicy(policy="all", estimator="optimal")
PREPROCESS = PreprocessConfig(image_size=32)
COLOURS = {"red": (220, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 210)}


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"a photo of a {colour} square" for colour in COLOURS], 16, 560)


@functools.cache
def config() -> CLIPConfig:
    base = architecture("tiny")
    vocabulary = {"vocab_size": tokenizer().vocab_size, "eot_token_id": tokenizer().eot_token_id}
    return dataclasses.replace(base, text=dataclasses.replace(base.text, **vocabulary))


@functools.cache
def _init_params():
    return jax.jit(functools.partial(init_params, config()))


@functools.cache
def params(seed: int = 0) -> dict:
    return _init_params()(jax.random.key(seed))


@functools.cache
def quant() -> dict:
    return jax.jit(functools.partial(init_quant, policy=POLICY))(params())


@functools.cache
def packed_params() -> dict:
    pack = functools.partial(quantize_params, policy=POLICY, dtype=np.float32)
    return jax.jit(pack)(params(), quant())


@functools.cache
def float_model() -> Model:
    return Model(config(), params(), tokenizer(), PREPROCESS)


@functools.cache
def fake_quant_model() -> Model:
    weights = jax.jit(functools.partial(ternarize_params, policy=POLICY))(params(), quant())
    return Model(config(), weights, tokenizer(), PREPROCESS)


def square(colour: str, seed: int = 0, size: int = 40) -> Image.Image:
    """A coloured square on noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    noise[size // 4 : -size // 4, size // 4 : -size // 4] = COLOURS[colour]
    return Image.fromarray(noise)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class ListSource:
    """Samples in memory; a sample that is None cannot be read."""

    samples: tuple[Sample | None, ...]
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    name: str = "list"
    left_out: int = 0
    fingerprint: str = "list"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if sample is None:
            raise BadSample(f"sample {index} cannot be read")
        return sample


def squares(count: int = 12) -> ListSource:
    """Labelled, captioned squares."""
    names = list(COLOURS)
    samples = tuple(
        Sample(
            key=str(i),
            image=png(square(names[i % 3], seed=i)),
            captions=(f"a {names[i % 3]} square", f"number {i}"),
            label=i % 3,
        )
        for i in range(count)
    )
    return ListSource(samples, tuple(names), ("a {} square", "a photo of a {} square"))


def write_workdir(workdir: Path, seed: int = 0, **groups) -> Path:
    """Writes what a training run of the tiny model leaves behind, without the training.

    Args:
      seed: of the weights.
      groups: groups of the Experiment that differ from their defaults.
    """
    workdir.mkdir()
    experiment = Experiment(model=config(), preprocess=PREPROCESS, **groups)
    write_experiment(experiment, workdir)
    tokenizer().save(workdir / "tokenizer.json")
    save_preprocess(PREPROCESS, workdir / "preprocessor_config.json")
    weights = {"params": params(seed), "quant": init_quant(params(seed), experiment.quant)}
    with Checkpoints(workdir, keep_last=1, best_metric="") as checkpoints:
        checkpoints.save(1, {"trainable": weights}, None)
    return workdir


@contextlib.contextmanager
def little_disk(size: int) -> Iterator[None]:
    """Within, no file grows beyond `size` bytes: a write that would is the error of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
