"""LAION's ViT-H/14 into a ternary one, taught by itself on DataComp: a run for a TPU pod.

    python -m launch.train --config=configs/vit_h14.py --workdir=runs/vit_h14 \\
        --config.train_data.source='wds:DIR/{00000000..00012895}.tar'

Student and teacher are read from the Hugging Face hub's cache, a folder will do as well; the data
are the shards of DataComp-1B as its own tools write them. Weights, optimiser and teacher are spread
over 16 chips, the batch over all. Whether it fits, and what it costs, before it is paid for:

    python -m launch.compile --config=configs/vit_h14.py --teacher_arch=ViT-H/14 \\
        --topology=v5e:16x16
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from tclip.run.recipe import check_role
from tclip.run.web_scale import web_scale_config

ROLES = ("student",)
SAMPLES = 512_000_000  # seen in all
BATCH_SIZE = 16_384


def get_config(arg: str = "student") -> ConfigDict:
    """Returns the recipe of the "student"."""
    check_role("vit_h14", arg, ROLES)
    config = web_scale_config("ViT-H/14")
    config.teacher.path = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    config.init = "teacher"
    config.model.remat = "full"
    config.train_data.source = "wds:data/datacomp/{00000000..00012895}.tar"
    config.optim.lr = 2e-4
    config.mesh.fsdp = 16
    config.train.batch_size = BATCH_SIZE
    config.train.steps = SAMPLES // BATCH_SIZE
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yields what is ternary, from the blocks to everything."""
    for policy in ("blocks", "blocks+proj", "all"):
        yield {"quant.policy": policy}
