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

from tclip.config import to_dict
from tclip.models import architecture
from tclip.run.experiment import default_config

ROLES = ("student",)
SAMPLES = 512_000_000  # seen in all
BATCH_SIZE = 16_384


def get_config(arg: str = "student") -> ConfigDict:
    """Returns the recipe of the "student"."""
    if arg not in ROLES:
        raise ValueError(f"configs/vit_h14.py:{arg}: choose one of {', '.join(ROLES)}")
    config = default_config()
    config.teacher.path = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    config.init = "teacher"
    config.model = to_dict(architecture("ViT-H/14"))
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.model.remat = "full"
    config.preprocess.image_size = 224
    config.preprocess.train_scale = (0.9, 1.0)
    config.train_data.source = "wds:data/datacomp/{00000000..00012895}.tar"
    config.quant.policy = "all"
    config.loss.similarity_weight = 1.0
    config.loss.embedding_weight = 1.0
    config.optim.lr = 2e-4
    config.optim.warmup_steps = 1000
    config.optim.weight_decay = 0.1
    config.mesh.fsdp = 16
    config.train.batch_size = BATCH_SIZE
    config.train.steps = SAMPLES // BATCH_SIZE
    config.train.checkpoint_every = 1000
    config.train.eval_every = 1000
    config.train.num_workers = 16
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yields what is ternary, from the blocks to everything."""
    for policy in ("blocks", "blocks+proj", "all"):
        yield {"quant.policy": policy}
