"""What recipes for data of the web have in common."""

from typing import Any

from ml_collections import ConfigDict

from tclip.config import to_dict
from tclip.models import architecture
from tclip.run.experiment import default_config


def web_scale_config(arch: str) -> ConfigDict:
    """Returns what recipes for millions of image-caption pairs of the web have in common.

    A float CLIP becomes a wholly ternary student in bfloat16, distilled by similarities and
    embeddings, on crops that leave captions true.

    Args:
      arch: name of the student's architecture.
    """
    config: Any = default_config()
    model = architecture(arch)
    config.model = to_dict(model)
    config.preprocess.image_size = model.vision.image_size
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.preprocess.train_scale = (0.9, 1.0)
    config.quant.policy = "all"
    config.loss.similarity_weight = 1.0
    config.loss.embedding_weight = 1.0
    config.optim.warmup_steps = 1000
    config.train.checkpoint_every = 1000
    config.train.eval_every = 1000
    config.train.num_workers = 16
    return config
