"""Matrix product with a packed ternary weight."""

from tclip.kernels.ternary_matmul.api import ternary_matmul

__all__ = ["ternary_matmul"]
