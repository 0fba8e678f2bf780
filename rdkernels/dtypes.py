"""The dtypes that rdkernels computes in, and their names."""

from __future__ import annotations

import torch

# What kernels compute in; eager adds fp64, for references and gradients.
KERNEL_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FLOATS = (*KERNEL_FLOATS, torch.float64)


def name_of(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


BY_NAME = {name_of(dtype): dtype for dtype in FLOATS}
KERNEL_FLOAT_NAMES = "float32, bfloat16 and float16"
