"""CIFAR-10 photographs with captions: a float teacher, and a ternary student distilled from it.

By default the photographs are TFDS's, with captions made from the class names. Shards in the
WebDataset layout, and a test set in that of CLIP_benchmark, are overrides:

    python -m launch.train --config=configs/cifar10.py:teacher --workdir=runs/cifar10/teacher \\
        --config.train_data.source='wds:DIR/cifar10_train/{00000..00009}.tar' \\
        --config.eval.data.source=wds:DIR/wds_cifar10
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from tclip.config import to_dict
from tclip.models import architecture
from tclip.run.experiment import default_config
from tclip.run.recipe import check_role

ROLES = ("teacher", "student")
STEPS_PER_EPOCH = 50_000 // 256


def get_config(arg: str = "teacher") -> ConfigDict:
    """Returns the recipe of the "teacher" or of the "student"."""
    check_role("cifar10", arg, ROLES)
    config = default_config()
    config.model = to_dict(architecture("small-32"))
    config.preprocess.image_size = 32
    config.preprocess.flip = True
    config.preprocess.train_scale = (0.6, 1.0)
    config.train_data.source = "tfds:cifar10"
    config.train_data.templates = ("a photo of a {}.", "a blurry photo of a {}.", "a small {}")
    config.tokenizer.vocab_size = 1024
    config.eval.data.source = "tfds:cifar10"
    config.eval.data.split = "test"
    config.eval.batch_size = 500
    config.train.batch_size = 256
    config.train.steps = 8 * STEPS_PER_EPOCH
    config.train.eval_every = 2 * STEPS_PER_EPOCH
    config.train.checkpoint_every = STEPS_PER_EPOCH
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 200
    if arg == "student":
        config.teacher.path = "runs/cifar10/teacher"
        config.quant.policy = "all"
        config.loss.similarity_weight = 1.0
        config.loss.embedding_weight = 1.0
        config.train.steps = 2 * STEPS_PER_EPOCH
        config.train.eval_every = STEPS_PER_EPOCH
        config.optim.lr = 5e-4
        config.optim.warmup_steps = 100
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yields the students of the README's table: without and with ternary embeddings."""
    for policy in ("blocks+proj", "all"):
        yield {"quant.policy": policy}
