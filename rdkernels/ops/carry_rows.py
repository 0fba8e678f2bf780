"""``carry_rows``: the rows of the next outer step, gathered and begun."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import state as state_ops
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define


def _check(
    state: torch.Tensor,
    embed: torch.Tensor,
    source_row: torch.Tensor,
    row_keys: torch.Tensor,
    cu_rows: torch.Tensor,
    std: float,
) -> None:
    op = "carry_rows"
    expect_tensor(op, "state", state, (None, None), FLOATS)
    expect_tensor(op, "embed", embed, tuple(state.shape), state.dtype, like=state)
    expect_tensor(op, "source_row", source_row, (None,), torch.int32, like=state)
    expect_tensor(op, "row_keys", row_keys, (source_row.size(0), 3), torch.int32, like=state)
    expect_tensor(op, "cu_rows", cu_rows, (None,), torch.int32, like=state)
    expect(cu_rows.size(0) >= 1, op, "cu_rows", "at least one bound", list(cu_rows.shape))
    expect(0.0 <= std < float("inf"), op, "std", "a finite deviation >= 0", std)


def _fake(
    state: torch.Tensor, embed: torch.Tensor, source_row: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (source_row.size(0), state.size(1))
    return state.new_empty(shape), embed.new_empty(shape)


OP = define(state_ops.carry_rows, check=_check, fake=_fake, out=("next_state", "next_embed"))


def carry_rows(
    state: torch.Tensor,
    embed: torch.Tensor,
    source_row: torch.Tensor,
    row_keys: torch.Tensor,
    cu_rows: torch.Tensor,
    *,
    seed: int,
    std: float,
    continuous: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """State and embedding of the next outer step's rows, as :func:`advance_wavefront` laid them.

    A row with ``source_row[i] >= 0`` takes both from that row. A fresh one has a zero embedding
    and starts from the normal draws of :func:`truncated_normal` for its (sequence id, position,
    0), or, if ``continuous``, from the state of row ``-1 - source_row[i]``, the one before it.
    Rows past ``cu_rows[B]`` are zeros; their ``source_row`` and ``row_keys`` do not matter.

    Args:
        state: ``[N, D]`` states of the step that ended (fp32, bf16, fp16; fp64: eager only).
        embed: ``[N, D]`` embeddings, of the same dtype.
        source_row: ``[C]`` int32 for the ``C`` rows wanted; below ``cu_rows[B]`` less than ``N``
            and, if ``continuous``, at least ``-N``.
        row_keys: ``[C, 3]`` int32 (sequence id, position, not used) of the next rows.
        cu_rows: ``[B + 1]`` int32 bounds of the next rows; where ``cu_rows[B]`` is above ``C``,
            the first ``C`` are made.
        seed: 64-bit seed of the draws.
        std: their deviation before truncation; 0 gives zero states.
        continuous: fresh rows go on from the state before them instead of a draw.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``(next_state [C, D], next_embed [C, D])``. The ``out`` overload writes into tensors that
        may have any row stride and must not overlap the inputs.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit, or std is negative.
        BackendError: the forced provider cannot serve; says why.
    """
    function = OP.provider(state, backend, differentiable=(state, embed))
    return function(state, embed, source_row, row_keys, cu_rows, seed, std, continuous)
