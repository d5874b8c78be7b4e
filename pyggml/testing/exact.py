"""Kernels without shortcuts, so that a comparison shows what a split does and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .._ffi import lib

__all__ = ["exact_gelu"]


@contextlib.contextmanager
def exact_gelu() -> Iterator[None]:
    """CPU and virtual CPU devices compute GELU by its formula while this lasts, in the whole process; may be nested.

    ggml's CPU rounds the argument of GELU, GELU_QUICK and their GEGLUs to F16 and looks the result up. Two ways to compute
    a sum that differ in its last bit are then now and then a whole F16 step apart (5e-4 of the value), so that an F32 model
    agrees with itself over two devices to an NMSE of 1e-9 only, and not to 1e-13. Elsewhere (Vulkan, CUDA) there is no table.
    The formulas are ggml's own: ``0.5 x (1 + tanh(sqrt(2/pi) x (1 + 0.044715 x^2)))`` and ``x / (1 + exp(-1.702 x))``.
    """
    lib.pgg_cpu_exact_gelu(True)
    try:
        yield
    finally:
        lib.pgg_cpu_exact_gelu(False)
