"""In what precision the specification computes."""

from __future__ import annotations

import torch


def wide(x: torch.Tensor) -> torch.Tensor:
    """``x`` in fp32, or in fp64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()
