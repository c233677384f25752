"""The setting of TernaryCLIP (arXiv 2510.21879): ViT-B/16, taught by LAION's ViT-L/14 on CC12M.

    python -m launch.train --config=configs/vit_b16_cc12m.py --workdir=runs/vit_b16 \\
        --config.train_data.source='wds:DIR/cc12m-train-{0000..2175}.tar'

Models are read from the Hugging Face hub's cache; a folder will do as well. Student, teacher and
data are those of the published models; learning rate, batch and length are for one slice of a TPU
pod, and for you to tune. `launch.cache_teacher` with the same flags saves running the teacher in
every epoch.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from tclip.run.recipe import check_role
from tclip.run.web_scale import web_scale_config

ROLES = ("student",)
SAMPLES = 10_968_539  # of pixparse/cc12m-wds
BATCH_SIZE = 4096
EPOCHS = 5


def get_config(arg: str = "student") -> ConfigDict:
    """Returns the recipe of the "student"."""
    check_role("vit_b16_cc12m", arg, ROLES)
    config = web_scale_config("ViT-B/16")
    config.teacher.path = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    config.init = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    config.model.activation = "gelu"
    config.train_data.source = "wds:data/cc12m/cc12m-train-{0000..2175}.tar"
    config.optim.lr = 5e-4
    config.train.batch_size = BATCH_SIZE
    config.train.steps = EPOCHS * SAMPLES // BATCH_SIZE
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yields what is ternary, and whether scales serve a channel or 64 of its inputs."""
    for policy in ("blocks", "blocks+proj", "all"):
        for group in ("channel", "block:64"):
            yield {"quant.policy": policy, "quant.group": group}
