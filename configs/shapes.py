"""Rendered shapes: a float teacher, and a ternary student of the same architecture.

    python -m launch.train --config=configs/shapes.py:teacher --workdir=runs/quickstart/teacher
    python -m launch.train --config=configs/shapes.py:student --workdir=runs/quickstart/student \\
        --config.teacher.path=runs/quickstart/teacher
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from tclip.config import to_dict
from tclip.models import architecture
from tclip.run.experiment import default_config
from tclip.run.recipe import check_role

ROLES = ("teacher", "student")


def get_config(arg: str = "teacher") -> ConfigDict:
    """Returns the recipe of the "teacher" or of the "student"."""
    check_role("shapes", arg, ROLES)
    config = default_config()
    config.model = to_dict(architecture("small-48"))
    config.preprocess.image_size = 48
    # Flips would turn "left of" into "right of", and crops would move objects out of their cells.
    config.preprocess.train_scale = (1.0, 1.0)
    config.preprocess.train_ratio = (1.0, 1.0)
    config.train_data.source = "shapes"
    config.tokenizer.vocab_size = 1024
    config.eval.data.source = "shapes"
    config.eval.batch_size = 500
    config.train.batch_size = 128
    config.train.steps = 1150
    config.train.eval_every = 350
    config.train.checkpoint_every = 350
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 50
    if arg == "student":
        config.teacher.path = "runs/quickstart/teacher"
        config.quant.policy = "all"
        config.loss.similarity_weight = 1.0
        config.loss.embedding_weight = 1.0
        config.train.steps = 700
        config.optim.lr = 5e-4
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Yields the points of a comparison of policies and estimators, for the student."""
    for policy in ("blocks", "blocks+proj", "all"):
        for estimator in ("twn", "optimal"):
            yield {"quant.policy": policy, "quant.estimator": estimator}
