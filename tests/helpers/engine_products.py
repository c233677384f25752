"""The engine's products, called with numpy arrays, and what they have to give."""

import numpy as np

from tclip.engine.library import ACTIVATIONS, call

KERNELS = ("plain", "avx2", "avx512bw", "avxvnni", "avx512vnni", "dotprod", "i8mm")


def pack(codes: np.ndarray) -> np.ndarray:
    """Words of int8 codes [K, N], by the layout's definition."""
    rows, columns = codes.shape
    words = np.zeros((-(-rows // 16), columns), np.uint32)
    for k in range(rows):
        words[k // 16] |= (codes[k].astype(np.uint32) & 3) << np.uint32(2 * (k % 16))
    return words


def integer_matmul(kernel: str, q: np.ndarray, codes: np.ndarray) -> np.ndarray:
    (m, k), n, words = q.shape, codes.shape[1], pack(codes)
    q, sums = np.ascontiguousarray(q), np.zeros((m, n), np.int32)
    call(
        "tclip_integer_matmul",
        kernel.encode(),
        *(q.ctypes.data, m, k, words.ctypes.data, n, sums.ctypes.data),
    )
    return sums


def matmul(
    x: np.ndarray,
    codes: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray | None,
    activations: str,
) -> np.ndarray:
    (m, k), n, words = x.shape, codes.shape[1], pack(codes)
    y = np.zeros((m, n), np.float32)
    call(
        "tclip_matmul",
        *(x.ctypes.data, m, k, words.ctypes.data, n, scale.ctypes.data, *scale.shape),
        None if bias is None else bias.ctypes.data,
        *(ACTIVATIONS[activations], y.ctypes.data),
    )
    return y


def can_run(kernel: str) -> bool:
    one = np.ones((1, 1), np.int8)
    try:
        integer_matmul(kernel, one, one)
    except ValueError:
        return False
    return True
