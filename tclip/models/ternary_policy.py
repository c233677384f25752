"""Policies for CLIP: which of its weights are ternary, by name."""

import re

from tclip.quant import TernaryPolicy

_FFN = (r"(?:.*/)?mlp/(?:fc1|fc2)/kernel",)
_BLOCKS = (*_FFN, r"(?:.*/)?attn/(?:q|k|v|out)_proj/kernel")
# One pattern, as the image tower of SigLIP has no projection.
_PROJECTIONS = (r"(?:.*/)?(?:vision|text)/projection/kernel",)
_EMBEDDINGS = (
    r"(?:.*/)?vision/patch_embed/kernel",
    r"(?:.*/)?text/token_embedding/embedding",
)

# What layers add or scale by, and would not find packed.
_UNUSABLE = r"(?:.*/)?(?:bias|scale|position_embedding|class_embedding|probe)"

PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "ffn": _FFN,
    "blocks": _BLOCKS,
    "blocks+proj": _BLOCKS + _PROJECTIONS,
    "all": _BLOCKS + _PROJECTIONS + _EMBEDDINGS,
}


class ClipPolicy(TernaryPolicy):
    """A `TernaryPolicy` whose `policy` may also be a name in `PRESETS`."""

    @property
    def names(self) -> tuple[str, ...]:
        """What `policy` may be besides regular expressions."""
        return tuple(PRESETS)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The regular expressions that the policy stands for."""
        return PRESETS[self.policy] if self.policy in PRESETS else super().patterns

    def check(self, path: str) -> None:
        """Refuses what no layer can use packed, such as biases, norms and position embeddings."""
        if re.fullmatch(_UNUSABLE, path):
            raise ValueError(
                f"{path}: only kernels and the token embedding can be ternary; narrow the "
                f"patterns of policy {self.policy!r}"
            )
