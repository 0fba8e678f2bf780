"""How much noise is mixed into a row's state at the start of an outer step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

NOISE_SCHEDULES = ("linear", "hyperbolic", "constant", "variance-preserving")


@dataclass(frozen=True)
class NoiseSchedule:
    """The share ``w`` of noise in ``s = (1 - w) * s + w * z`` for a row of some depth.

    With ``n`` iterations behind a row and ``num_steps`` in all:

    * ``linear``: ``scale * (1 - n / num_steps)``, 0 from ``num_steps`` on (arXiv 2510.14961);
    * ``hyperbolic``: ``scale / (1 + n)``;
    * ``constant``: ``scale``;
    * ``variance-preserving``: ``w`` as linear, but ``s = sqrt(1 - w**2) * s + w * z``, so that a
      state as large as the noise keeps its size.
    """

    kind: str
    scale: float
    num_steps: int

    @property
    def preserves_variance(self) -> bool:
        return self.kind == "variance-preserving"

    def weight(self, depth: torch.Tensor) -> torch.Tensor:
        """``[N]`` fp32 for ``depth [N]`` int32."""
        if self.kind == "constant":
            return torch.full_like(depth, self.scale, dtype=torch.float32)
        if self.kind == "hyperbolic":
            return self.scale / (1.0 + depth.float())
        return self.scale * (1.0 - depth.float() / self.num_steps).clamp_(min=0.0)
