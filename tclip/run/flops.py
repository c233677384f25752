"""Operations that the model needs, by formula: two for each multiply-add of a matrix product.

What the program does besides is not counted: norms, activation functions, the optimiser, and what
rematerialisation does again. Utilisation (MFU) is these operations over what the chips could do.
"""

import jax

from tclip.losses import init_adapters
from tclip.models import CLIPConfig, TextConfig, VisionConfig
from tclip.run.experiment import Experiment
from tclip.run.state import widths


def step_flops(
    experiment: Experiment, teacher_model: CLIPConfig | None, cached: bool = False
) -> float:
    """Operations of a training step for each pair of its batch.

    The backward pass counts as twice the forward pass, also of the first layer, as is usual (Kaplan
    et al. 2020, arXiv 2001.08361, section 2.1). The teacher runs forward only.

    Args:
      teacher_model: architecture of the teacher; None for a run without.
      cached: whether the teacher's embeddings are read rather than computed.
    """
    config, batch = experiment.loss, experiment.train.batch_size
    model = experiment.model
    trained, frozen = forward_flops(model), 0.0
    if config.contrastive_weight or config.similarity_weight or config.logits_weight:
        trained += logits_flops(model, batch)
    if teacher_model is not None:
        trained += _adapter_flops(experiment, teacher_model)
        frozen += 0.0 if cached else forward_flops(teacher_model)
        if config.similarity_weight or config.logits_weight:
            frozen += logits_flops(teacher_model, batch)
    return 3 * trained + frozen


def forward_flops(model: CLIPConfig) -> float:
    """Operations of both towers for one image and one text."""
    return vision_flops(model) + text_flops(model)


def vision_flops(model: CLIPConfig) -> float:
    """Operations of the image tower for one image."""
    tower = model.vision
    patches = (tower.image_size // tower.patch_size) ** 2
    flops = 2.0 * patches * 3 * tower.patch_size**2 * tower.width
    flops += blocks_flops(tower, tower.num_tokens)
    if tower.pooling == "cls":
        return flops + 2 * tower.width * model.embed_dim
    # One probe attends to all tokens: their keys and values, and its own query, output and MLP.
    width, tokens = tower.width, tower.num_tokens
    return flops + 4 * tokens * (width**2 + width) + 4 * width * (width + tower.mlp_dim)


def text_flops(model: CLIPConfig) -> float:
    """Operations of the text tower for one text, padded to the context length."""
    tower = model.text
    return blocks_flops(tower, tower.context_length) + 2 * tower.width * model.embed_dim


def blocks_flops(tower: VisionConfig | TextConfig, tokens: int) -> float:
    """Operations of a tower's blocks; the causal mask spares none, as scores are computed whole."""
    width = tower.width
    weights = 2 * (4 * width**2 + 2 * width * tower.mlp_dim)
    attention = 2 * 2 * tokens * width
    return float(tower.layers * tokens * (weights + attention))


def logits_flops(model: CLIPConfig, batch_size: int) -> float:
    """Operations of one image's row of the logits, against every text of the batch."""
    return 2.0 * batch_size * model.embed_dim


def _adapter_flops(experiment: Experiment, teacher_model: CLIPConfig) -> float:
    """Operations of the projections that bridge the widths of student and teacher."""
    model = experiment.model
    # The key is made within, so that no device is asked for.
    adapters = jax.eval_shape(
        lambda: init_adapters(
            jax.random.key(0), widths(model), widths(teacher_model), experiment.loss
        )
    )
    tokens = {"image": model.vision.num_tokens, "text": model.text.context_length}
    return sum(
        2.0 * x.size * (tokens[name.partition("_")[0]] if "_hidden_" in name else 1)
        for name, x in adapters.items()
    )
