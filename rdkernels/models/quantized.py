"""Weight-only int8: a matrix as int8 rows with one fp32 scale each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

LARGEST = 127  # symmetric: -128 is not used
_SLICE_ELEMENTS = 1 << 22  # converted at once, so that temporaries stay small beside a weight


@dataclass(frozen=True)
class QuantizedWeight:
    """A linear layer's weight ``values * scale[:, None]``; activations stay as they are."""

    values: torch.Tensor  # [M, K] int8
    scale: torch.Tensor  # [M] fp32

    @classmethod
    def from_weight(cls, weight: torch.Tensor) -> QuantizedWeight:
        """The nearest multiples of ``max |row| / 127``; ``weight [M, K]`` of any float dtype.

        Errors are at most half a scale (and a rounding of fp32).
        """
        values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(weight.size(0), device=weight.device)
        step = max(1, _SLICE_ELEMENTS // max(1, weight.size(1)))
        for first in range(0, weight.size(0), step):
            rows = weight[first : first + step].float()
            largest = rows.abs().amax(dim=1)
            # A row of zeros, or of numbers too small to divide by, becomes zeros.
            scales = (largest / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
            scale[first : first + step] = scales
            values[first : first + step] = (
                (rows / scales[:, None]).round_().clamp_(-LARGEST, LARGEST)
            )
        return cls(values, scale)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``[M, K]`` as the product of values and scales in fp32, rounded to ``dtype``."""
        return (self.values * self.scale[:, None]).to(dtype)


LinearWeight = torch.Tensor | QuantizedWeight  # what a linear layer multiplies by


def values_and_scale(weight: LinearWeight) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A linear layer's weight as ops take it: a matrix, and the scale of an int8 one."""
    if isinstance(weight, QuantizedWeight):
        return weight.values, weight.scale
    return weight, None


def quantized_linear(
    row_linear: Callable[..., torch.Tensor], x: torch.Tensor, weight: QuantizedWeight
) -> torch.Tensor:
    """``x`` times an int8 weight by ``row_linear``, the op's serving function."""
    return row_linear(x, weight.values, weight.scale)
