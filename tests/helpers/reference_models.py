"""Models of the reference libraries with random weights, and what is asked of both sides."""

import dataclasses
import functools

import jax
import numpy as np
import torch

from tclip.models import CLIP, with_layout
from tclip.processing import save_preprocess
from tests.helpers import tiny

EOT, VOCAB = tiny.tokenizer().eot_token_id, tiny.tokenizer().vocab_size
CONTEXT = 10
# The second text has two ends, the third fills the context.
TOKENS = np.random.default_rng(1).integers(1, EOT - 1, (4, CONTEXT)).astype(np.int32)
for row, end in enumerate((3, 1, CONTEXT - 1, 6)):
    TOKENS[row, end] = EOT
TOKENS[1, 5] = EOT


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Makes every parameter random, so that no norm, bias, position or scale is trivially right."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                inputs = parameter[0].numel()
                parameter.copy_(noise * (0.3 if "embedding" in name else inputs**-0.5))
            else:
                is_norm = name.endswith("weight")
                parameter.copy_(0.3 * noise + (1.0 if is_norm else 0.0))
    return model.eval()


def write_parts(folder, image_size: int) -> None:
    """The files of a model folder that are not the model."""
    tiny.tokenizer().save(folder / "tokenizer.json")
    preprocess = dataclasses.replace(tiny.PREPROCESS, image_size=image_size)
    save_preprocess(preprocess, folder / "preprocessor_config.json")


def random_images(size: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(4, size, size, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _embed(config, params, images, tokens):
    return CLIP(config).apply({"params": params}, images, tokens)


def assert_same_embeddings(config, params, images, image_embeddings, text_embeddings, bound=1e-5):
    """Compares with embeddings of the reference, raw and of unit norm."""
    # Scanned layers compile once, however many there are.
    config = dataclasses.replace(config, scan_layers=True)
    ours = _embed(config, with_layout(params, config), images, TOKENS)
    for actual, expected in zip(ours, (image_embeddings, text_embeddings), strict=True):
        actual, expected = np.asarray(actual), expected.detach().numpy()
        assert expected.std() > 0.1
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= bound
        units = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (actual, expected))
        assert np.abs(np.subtract(*units)).max() <= bound
