"""Operations with several implementations behind one call."""

from tclip.kernels.ternary_matmul import ternary_matmul

__all__ = ["ternary_matmul"]
