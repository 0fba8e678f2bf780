"""What every op means, in plain PyTorch: the specification that all other providers are held to.

Functions take the positional arguments of the schemas, which are their signatures. They favour
clarity over speed (``recurrent_attention`` and ``advance_wavefront`` read sizes and tokens back
from the device), compute in fp32 (fp64 for fp64 inputs), and are differentiable where the maths is.
Where autograd records ``recurrent_attention``, the caller's cache becomes part of the graph: detach
it after use.

As a provider, eager serves everything: with these functions, behind the checks of the arguments.
"""

from __future__ import annotations

import torch

from rdkernels.registry import OPS, Serving


def reason(op: str, device: str, dtype: torch.dtype) -> str | None:
    """None: there is nothing that eager cannot serve."""
    return None


def only_by_name(device: str) -> bool:
    """False: eager serves where nobody else does."""
    return False


def function(op: str) -> Serving:
    """The meaning of ``op``, arguments checked."""
    return OPS[op].eager
