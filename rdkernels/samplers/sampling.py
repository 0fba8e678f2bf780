"""How a token is drawn from logits, and what is done to the logits before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from rdkernels import ops
from rdkernels.errors import ArgumentError, is_number, is_whole
from rdkernels.wavefront import Wavefront


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits; see :func:`rdkernels.ops.sample_tokens`.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep tokens while the mass above them is below this.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        repetition_penalty: divides the positive logits of tokens that stand before a position, and
            multiplies the negative ones; 1 does nothing.
        logit_bias: added to the logits of single tokens; ``-inf`` forbids one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        checks = {
            "temperature": (is_number, lambda t: 0.0 <= t < math.inf, "a finite value >= 0"),
            "top_k": (is_whole, lambda k: k >= 0, "a count >= 0 (0: no limit)"),
            "top_p": (is_number, lambda p: 0.0 < p <= 1.0, "0 < top_p <= 1"),
            "min_p": (is_number, lambda p: 0.0 <= p <= 1.0, "0 <= min_p <= 1"),
            "repetition_penalty": (is_number, lambda r: 0.0 < r < math.inf, "a finite value > 0"),
        }
        for name, (of_kind, in_range, expected) in checks.items():
            value = getattr(self, name)
            if not of_kind(value) or not in_range(value):
                raise ArgumentError("Sampling", name, expected, value)
        if not isinstance(self.logit_bias, Mapping):
            raise ArgumentError("Sampling", "logit_bias", "token -> bias", repr(self.logit_bias))
        for token, bias in self.logit_bias.items():
            known = is_whole(token) and token >= 0 and is_number(bias)
            if not known or math.isnan(bias) or bias == math.inf:
                expected = "a token id and a finite bias or -inf"
                raise ArgumentError("Sampling", "logit_bias", expected, f"{token!r}: {bias!r}")

    @property
    def changes_logits(self) -> bool:
        return self.repetition_penalty != 1.0 or bool(self.logit_bias)


class TokenSampler:
    """:class:`Sampling` on a model's device: logits of rows in, a token per row out."""

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: int,
        seed: int,
        device: torch.device,
        backend: str | None,
    ) -> None:
        self.sampling, self.seed = sampling, seed
        self._ops = ops.bind(torch.empty(0, device=device), backend)  # logits are fp32
        self.bias: torch.Tensor | None = None
        if sampling.logit_bias:
            if (largest := max(sampling.logit_bias)) >= vocabulary:
                expected = f"token ids below {vocabulary}"
                raise ArgumentError("Sampling", "logit_bias", expected, largest)
            self.bias = torch.zeros(vocabulary, dtype=torch.float32, device=device)
            ids = torch.tensor(list(sampling.logit_bias), device=device)
            self.bias[ids] = torch.tensor(
                list(sampling.logit_bias.values()), dtype=torch.float32, device=device
            )

    def adjust(
        self, logits: torch.Tensor, tokens: torch.Tensor, wavefront: Wavefront
    ) -> torch.Tensor:
        """Penalty and bias on ``logits [N, V]``, in place; rows see ``tokens [B, T]``."""
        penalty = self.sampling.repetition_penalty
        if penalty != 1.0:
            seen = tokens[wavefront.row_sequence]
            position = torch.arange(tokens.size(1), device=tokens.device)
            before = position <= wavefront.row_position[:, None]
            # Positions behind a row point at its own token, which counts anyway.
            own = seen.gather(1, wavefront.row_position[:, None])
            seen = torch.where(before, seen, own)
            score = logits.gather(1, seen)
            logits.scatter_(1, seen, torch.where(score > 0, score / penalty, score * penalty))
        return logits if self.bias is None else logits.add_(self.bias)

    def draw(self, logits: torch.Tensor, row_keys: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """A token for each row of ``logits [N, V]``, written to ``out [N]`` int64."""
        s = self.sampling
        keys = row_keys if s.temperature > 0.0 else None
        self._ops.sample_tokens(
            logits, keys, s.temperature, s.top_k, s.top_p, s.min_p, self.seed, out=(out,)
        )
        return out
