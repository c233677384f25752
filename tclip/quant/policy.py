"""Which leaves of a parameter tree become ternary, and how."""

import re
from dataclasses import dataclass
from typing import Annotated

from tclip.config import POSITIVE
from tclip.quant.estimators import ESTIMATORS
from tclip.quant.groups import block_size


@dataclass(frozen=True)
class TernaryPolicy:
    """The choice of ternary leaves, of their groups, and of where scales and thresholds come from.

    Attributes:
      policy: "none", or regular expressions separated by commas (which they cannot contain
        themselves); a leaf is ternary if one of them matches its whole "/"-joined path.
      group: "tensor", "channel" (a scale for every output), or "block:B" (one for every B inputs of
        every output; B divides the input dimension).
      estimator: a name in `ESTIMATORS`; gives the initial value of what is learned, and the value
        at every step of what is not.
      learn_scale: train the scales.
      learn_threshold: train the thresholds.
      clip: weights of this magnitude or more get no gradient.
      activations: "native", or "int8": what ternary kernels multiply is rounded to 8 bits, token by
        token, in training as on the integer matrix units of inference.
    """

    policy: str = "none"
    group: str = "channel"
    estimator: str = "twn"
    learn_scale: bool = True
    learn_threshold: bool = True
    clip: Annotated[float, POSITIVE] = 1.0
    activations: str = "native"

    def __post_init__(self):
        block_size(self.group)
        if self.activations not in ("native", "int8"):
            raise ValueError(f"unknown activations {self.activations!r}; use 'native' or 'int8'")
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {self.estimator!r}; use one of {list(ESTIMATORS)}")
        if not self.clip > 0:
            raise ValueError(f"clip has to be positive, got {self.clip}")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"policy pattern {pattern!r} is not a regular expression: {error}"
                ) from None

    @property
    def names(self) -> tuple[str, ...]:
        """What `policy` may be besides regular expressions."""
        return ("none",)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The regular expressions that the policy stands for."""
        if self.policy == "none":
            return ()
        return tuple(pattern.strip() for pattern in self.policy.split(","))

    def check(self, path: str) -> None:
        """Raises ValueError for a leaf that matches and that its model cannot use ternary."""

    def matches(self, path: str) -> bool:
        """Whether the leaf at this "/"-joined path is ternary."""
        return any(re.fullmatch(pattern, path) for pattern in self.patterns)
