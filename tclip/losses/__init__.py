"""Losses of contrastive training and of distillation from a frozen teacher."""

from tclip.losses.config import NEGATIVES, LossConfig
from tclip.losses.features import Widths, init_adapters
from tclip.losses.outputs import Outputs
from tclip.losses.pairwise import check_negatives
from tclip.losses.total import embedding_loss, hidden_loss, total_loss

__all__ = [
    "NEGATIVES",
    "LossConfig",
    "Outputs",
    "Widths",
    "check_negatives",
    "embedding_loss",
    "hidden_loss",
    "init_adapters",
    "total_loss",
]
