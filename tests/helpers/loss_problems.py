"""Outputs to compute losses of, and the pairwise losses written out in NumPy (float64)."""

import jax.numpy as jnp
import numpy as np

from tclip.losses import Outputs

B, D, T, W = 16, 6, 5, 12


def make_outputs(seed, embedding=D, width=W, scale=20.0, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def hidden():
        return tuple(rng.normal(size=(B, T, width)).astype(dtype) for _ in range(2))

    return Outputs(
        image=rng.normal(size=(B, embedding)).astype(dtype),
        text=rng.normal(size=(B, embedding)).astype(dtype),
        logit_scale=np.float32(scale),
        logit_bias=np.float32(-2.0),
        image_hidden=hidden(),
        text_hidden=hidden(),
    )


def make_captions(repeated):
    """Tokens [B, 3], all different, but for the groups of samples that share theirs."""
    captions = np.stack([np.arange(B), np.full(B, 7), np.arange(B) % 3], axis=1).astype(np.int32)
    for group in repeated:
        captions[list(group)] = captions[group[0]]
    return captions


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def logits(outputs):
    cosines = unit(outputs.image) @ unit(outputs.text).T
    return float(outputs.logit_scale) * cosines + float(outputs.logit_bias)


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def softmax_contrastive(student, captions):
    z = logits(student)
    log_rows, log_columns = np.log(softmax(z, 1)), np.log(softmax(z, 0))
    loss = 0.0
    for i in range(len(z)):
        mine = [j for j in range(len(z)) if (captions[i] == captions[j]).all()]
        loss -= sum(log_rows[i, j] + log_columns[j, i] for j in mine) / len(mine) / (2 * len(z))
    return loss


def sigmoid_contrastive(student, captions):
    z = logits(student)
    signs = np.where((captions[:, None] == captions[None]).all(-1), 1, -1)
    return np.log1p(np.exp(-signs * z)).sum() / len(z)


def similarity_kl(student, teacher, temperature):
    loss = 0.0
    for axis in (1, 0):
        p = softmax(logits(teacher) / temperature, axis)
        q = softmax(logits(student) / temperature, axis)
        loss += temperature**2 * (p * np.log(p / q)).sum() / len(p) / 2
    return loss


def logits_mse(student, teacher):
    return ((logits(student) - logits(teacher)) ** 2).mean()


def pairwise(config, student, teacher, captions):
    """The pairwise terms of a config, by name."""
    contrastive = softmax_contrastive if config.contrastive == "softmax" else sigmoid_contrastive
    return {
        "contrastive": contrastive(student, captions),
        "similarity_kl": similarity_kl(student, teacher, config.temperature),
        "logits_mse": logits_mse(student, teacher),
    }


def assert_close(actual, expected):
    assert actual.dtype == jnp.float32
    assert actual.shape == ()
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
