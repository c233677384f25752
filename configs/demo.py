"""The demo model that ships in tclip/demo: CIFAR-10 photographs, small enough for a package.

    tclip train --config=demo:teacher --workdir=runs/demo/teacher
    tclip train --config=demo:student --workdir=runs/demo/student
    tclip export --workdir=runs/demo/student --out=runs/demo/packed

The files of runs/demo/packed are those in tclip/demo/model, beside the model card.

By default the photographs are TFDS's, with captions made from the class names. Other sources of the
same photographs are overrides, as in configs/cifar10.py.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from tclip.config import to_dict
from tclip.models import CLIPConfig, TextConfig, VisionConfig
from tclip.run.experiment import default_config
from tclip.run.recipe import check_role

ROLES = ("teacher", "student")
STEPS_PER_EPOCH = 50_000 // 256
# Patches of 8 pixels keep the image tower cheap to train; ten classes need little of a text tower.
MODEL = CLIPConfig(
    embed_dim=96,
    vision=VisionConfig(image_size=32, patch_size=8, width=192, layers=4, heads=4, mlp_dim=768),
    text=TextConfig(
        context_length=16,
        vocab_size=576,
        width=64,
        layers=1,
        heads=2,
        mlp_dim=128,
        eot_token_id=575,
    ),
)


def get_config(arg: str = "teacher") -> ConfigDict:
    """Returns the recipe of the "teacher" or of the "student"."""
    check_role("demo", arg, ROLES)
    config = default_config()
    config.model = to_dict(MODEL)
    config.preprocess.image_size = MODEL.vision.image_size
    config.preprocess.flip = True
    config.preprocess.train_scale = (0.6, 1.0)
    config.train_data.source = "tfds:cifar10"
    config.train_data.templates = ("a photo of a {}.", "a blurry photo of a {}.", "a small {}")
    config.tokenizer.vocab_size = 576
    config.eval.data.source = "tfds:cifar10"
    config.eval.data.split = "test"
    config.eval.batch_size = 500
    config.train.batch_size = 256
    config.train.steps = 720
    config.train.eval_every = 720
    config.train.checkpoint_every = 180
    config.optim.lr = 1.5e-3
    config.optim.warmup_steps = 80
    if arg == "student":
        config.teacher.path = "runs/demo/teacher"
        config.quant.policy = "all"
        config.quant.activations = "int8"
        config.loss.similarity_weight = 1.0
        config.loss.embedding_weight = 1.0
        config.train.steps = STEPS_PER_EPOCH
        config.train.eval_every = STEPS_PER_EPOCH
        config.train.checkpoint_every = STEPS_PER_EPOCH
        config.optim.lr = 1e-3
        config.optim.warmup_steps = 20
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yields the student with and without ternary embeddings."""
    for policy in ("blocks+proj", "all"):
        yield {"quant.policy": policy}
