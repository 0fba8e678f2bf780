"""Muon for the matrices, AdamW for the rest, on fp32 masters with a bf16 shadow that computes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_WEIGHT_DECAY = 0.02  # of Muon, per unit of learning rate
# Quintic of the Newton-Schulz iteration that sends all singular values near 1 in five rounds
# (Jordan et al., Muon: https://kellerjordan.github.io/posts/muon).
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor) -> Tensor:
    """Nearest matrix with singular values about 1, by Newton-Schulz."""
    a, b, c = _QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def _stacked(name: str) -> int:
    """How many matrices a weight holds one above the other; each is orthogonalised by itself."""
    if name.endswith("Wqkv.weight"):
        return 3
    return 2 if name.endswith("mlp.fc.weight") else 1


class Muon:
    """Momentum SGD whose matrix updates are orthogonalised."""

    def __init__(self, parameters: dict[str, nn.Parameter], learning_rate: float) -> None:
        self._parameters = parameters
        self._learning_rate = learning_rate
        self._velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self, schedule: float) -> None:
        """One update at ``schedule`` times the learning rate."""
        rate = self._learning_rate * schedule
        for name, parameter in self._parameters.items():
            velocity = self._velocity[name].lerp_(parameter.grad, 1 - _MOMENTUM)
            lookahead = parameter.grad.lerp(velocity, _MOMENTUM)
            update = torch.cat(
                [
                    orthogonalise(part) * max(1.0, part.shape[0] / part.shape[1]) ** 0.5
                    for part in lookahead.chunk(_stacked(name))
                ]
            )
            parameter.mul_(1 - rate * _WEIGHT_DECAY).sub_(update, alpha=rate)


class MixedPrecisionOptimizer:
    """Owns the fp32 masters; ``shadow`` is the bf16 copy that runs forward and backward."""

    def __init__(
        self, model: nn.Module, muon_rate: float, adamw_rate: float, dtype: torch.dtype
    ) -> None:
        self.masters = model
        self.shadow = copy.deepcopy(model).to(dtype)
        named = dict(model.named_parameters())
        matrices = {n: p for n, p in named.items() if p.dim() == 2 and "wte" not in n}
        others = [p for n, p in named.items() if n not in matrices]
        self._adamw_rate = adamw_rate
        self._muon = Muon(matrices, muon_rate)
        self._adamw = torch.optim.AdamW(others, adamw_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self._pairs = list(zip(model.parameters(), self.shadow.parameters(), strict=True))

    def step(self, schedule: float) -> None:
        """Take the shadow's gradients, clip, update the masters, copy them back."""
        for master, shadow in self._pairs:
            master.grad, shadow.grad = shadow.grad.float(), None
        nn.utils.clip_grad_norm_([master for master, _ in self._pairs], 1.0)
        self._adamw.param_groups[0]["lr"] = self._adamw_rate * schedule
        self._adamw.step()
        self._muon.step(schedule)
        with torch.no_grad():
            for master, shadow in self._pairs:
                shadow.copy_(master)
