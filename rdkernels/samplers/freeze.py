"""Freeze rules: which rows of a wavefront are settled at the end of an outer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch

from rdkernels.errors import ArgumentError, is_whole
from rdkernels.wavefront import Wavefront


@dataclass(frozen=True)
class RowStatus:
    """What a freeze rule may look at, one entry per row ``[N]``, at the end of an outer step.

    Rows past ``wavefront.cu_rows[-1]`` are padding: their entries mean nothing, and it does not
    matter what a rule says about them. On a GPU a rule must not read any value back to the host.

    Attributes:
        wavefront: where the rows sit.
        delta: fp32, what the exit criterion measured.
        converged: bool, the criterion's verdict.
        depth: int32 iterations behind each row.
        depth_limit: iterations after which a row is settled under every rule.
        same_token: int32 outer steps in a row that have ended with the token that this one ended
            with; 0 for a row whose token has just changed. None unless the rule asks for it.
        scratch: ``[N]`` bool that a rule may write its answer to, or None.
    """

    wavefront: Wavefront
    delta: torch.Tensor
    converged: torch.Tensor
    depth: torch.Tensor
    depth_limit: int
    same_token: torch.Tensor | None = None
    scratch: torch.Tensor | None = None

    @property
    def exhausted(self) -> torch.Tensor:
        """Rows that have used up their iterations: settled under every rule."""
        return self.depth >= self.depth_limit


class FreezeRule(ABC):
    """Decides which rows are settled; a sequence commits its longest settled prefix."""

    watches_tokens = False  # whether `same_token` is needed

    @abstractmethod
    def settled(self, rows: RowStatus) -> torch.Tensor:
        """``[N]`` bool."""


@dataclass(frozen=True)
class ConvergedPrefix(FreezeRule):
    """Settled when converged (arXiv 2510.14961, main text). The default."""

    def settled(self, rows: RowStatus) -> torch.Tensor:
        return rows.converged


@dataclass(frozen=True)
class LastConverged(FreezeRule):
    """Everything up to the last converged row is settled (arXiv 2510.14961, Algorithm 2)."""

    def settled(self, rows: RowStatus) -> torch.Tensor:
        own = rows.converged | rows.exhausted
        index = torch.arange(own.numel(), device=own.device)
        own &= index < rows.wavefront.cu_rows[-1]  # padding is no sequence's
        last = torch.full_like(rows.wavefront.start, -1, dtype=torch.int64)
        last.scatter_reduce_(0, rows.wavefront.row_sequence, torch.where(own, index, -1), "amax")
        return index <= last[rows.wavefront.row_sequence]


@dataclass(frozen=True)
class FixedDepth(FreezeRule):
    """Settled after ``num_steps`` iterations, whatever the state does (Algorithm 1)."""

    num_steps: int = 32

    def __post_init__(self) -> None:
        _expect_count("FixedDepth", "num_steps", self.num_steps)

    def settled(self, rows: RowStatus) -> torch.Tensor:
        return torch.ge(rows.depth, self._limit, out=rows.scratch)

    @cached_property
    def _limit(self) -> torch.Tensor:
        """On the CPU, from where every device takes a single number.

        A Python number in its place would become a new tensor at every use.
        """
        return torch.tensor(self.num_steps, dtype=torch.int32)


@dataclass(frozen=True)
class TokenStable(FreezeRule):
    """Settled when the predicted token has stayed the same for ``outer_steps`` outer steps."""

    outer_steps: int = 2
    watches_tokens = True

    def __post_init__(self) -> None:
        _expect_count("TokenStable", "outer_steps", self.outer_steps)

    def settled(self, rows: RowStatus) -> torch.Tensor:
        if rows.same_token is None:
            raise ArgumentError("TokenStable", "same_token", "outer steps of every row", None)
        return rows.same_token >= self.outer_steps


def _expect_count(rule: str, name: str, value: int) -> None:
    if not is_whole(value) or value < 1:
        raise ArgumentError(rule, name, "a count of at least 1", value)
