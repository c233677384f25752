"""A float CLIP into a ternary one of the same architecture, taught by itself: start from your CLIP.

    python -m launch.train --config=configs/vit_b32.py --workdir=runs/vit_b32 \\
        --config.teacher.path=YOUR_CLIP --config.train_data.source='wds:DIR/{00000..00331}.tar'

The student takes architecture, weights, tokenizer and pixels of whatever CLIP the teacher is; by
default that is LAION's ViT-B/32, read from the Hugging Face hub's cache, and the data are the
shards of CC3M as img2dataset writes them.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from tclip.run.recipe import check_role
from tclip.run.web_scale import web_scale_config

ROLES = ("student",)
SAMPLES = 2_900_000
BATCH_SIZE = 1024
EPOCHS = 5


def get_config(arg: str = "student") -> ConfigDict:
    """Returns the recipe of the "student"."""
    check_role("vit_b32", arg, ROLES)
    config = web_scale_config("ViT-B/32")
    config.teacher.path = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    config.init = "teacher"
    config.train_data.source = "wds:data/cc3m/{00000..00331}.tar"
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 500
    config.train.batch_size = BATCH_SIZE
    config.train.steps = EPOCHS * SAMPLES // BATCH_SIZE
    config.train.num_workers = 8
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yields the policies, from the mildest to that of the smallest model."""
    for policy in ("ffn", "blocks", "blocks+proj", "all"):
        yield {"quant.policy": policy}
