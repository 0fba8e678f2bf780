"""``advance_wavefront``: commit what is final, stop what is done, extend the front."""

from __future__ import annotations

import torch

from rdkernels.backends import eager
from rdkernels.ops._registry import define, expect, expect_tensor


def _check(
    tokens: torch.Tensor,
    start: torch.Tensor,
    done: torch.Tensor,
    committed_depth: torch.Tensor,
    sampled: torch.Tensor,
    settled: torch.Tensor,
    depth: torch.Tensor,
    cu_rows: torch.Tensor,
    limit: torch.Tensor,
    stop_tokens: torch.Tensor,
    headway: int,
    max_wavefront: int,
) -> None:
    op = "advance_wavefront"
    expect_tensor(op, "tokens", tokens, (None, None), torch.int64)
    batch = tokens.size(0)
    expect_tensor(op, "start", start, (batch,), torch.int32, like=tokens)
    expect_tensor(op, "done", done, (batch,), torch.bool, like=tokens)
    shape = tuple(tokens.shape)
    expect_tensor(op, "committed_depth", committed_depth, shape, torch.int32, like=tokens)
    expect_tensor(op, "sampled", sampled, (None,), torch.int64, like=tokens)
    rows = sampled.size(0)
    expect_tensor(op, "settled", settled, (rows,), torch.bool, like=tokens)
    expect_tensor(op, "depth", depth, (rows,), torch.int32, like=tokens)
    expect_tensor(op, "cu_rows", cu_rows, (batch + 1,), torch.int32, like=tokens)
    expect_tensor(op, "limit", limit, (batch,), torch.int32, like=tokens)
    expect_tensor(op, "stop_tokens", stop_tokens, (None,), torch.int64, like=tokens)
    expect(headway >= 1, op, "headway", "at least 1", headway)
    expect(max_wavefront >= 1, op, "max_wavefront", "at least 1", max_wavefront)


def _eager(
    tokens: torch.Tensor,
    start: torch.Tensor,
    done: torch.Tensor,
    committed_depth: torch.Tensor,
    sampled: torch.Tensor,
    settled: torch.Tensor,
    depth: torch.Tensor,
    cu_rows: torch.Tensor,
    limit: torch.Tensor,
    stop_tokens: torch.Tensor,
    headway: int,
    max_wavefront: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sequences = (tokens, start, done, committed_depth)
    rows = (sampled, settled, depth, cu_rows)
    limits = (limit, stop_tokens, headway, max_wavefront)
    _check(*sequences, *rows, *limits)
    return eager.advance_wavefront(*sequences, *rows, *limits)


def _fake(
    tokens: torch.Tensor,
    start: torch.Tensor,
    done: torch.Tensor,
    committed_depth: torch.Tensor,
    sampled: torch.Tensor,
    settled: torch.Tensor,
    depth: torch.Tensor,
    cu_rows: torch.Tensor,
    limit: torch.Tensor,
    stop_tokens: torch.Tensor,
    headway: int,
    max_wavefront: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = start.size(0)
    rows = sampled.size(0) + batch * headway
    return cu_rows.new_empty(batch + 1), cu_rows.new_empty(rows), cu_rows.new_empty(batch)


OP = define(
    "advance_wavefront(Tensor(t!) tokens, Tensor(s!) start, Tensor(d!) done, "
    "Tensor(c!) committed_depth, Tensor sampled, Tensor settled, Tensor depth, Tensor cu_rows, "
    "Tensor limit, Tensor stop_tokens, int headway, int max_wavefront) "
    "-> (Tensor, Tensor, Tensor)",
    eager=_eager,
    fake=_fake,
    out="Tensor(a!) next_cu_rows, Tensor(b!) source_row, Tensor(e!) committed",
)


def advance_wavefront(
    tokens: torch.Tensor,
    start: torch.Tensor,
    done: torch.Tensor,
    committed_depth: torch.Tensor,
    sampled: torch.Tensor,
    settled: torch.Tensor,
    depth: torch.Tensor,
    cu_rows: torch.Tensor,
    limit: torch.Tensor,
    stop_tokens: torch.Tensor,
    *,
    headway: int = 1,
    max_wavefront: int = 128,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The per-sequence state machine at the end of an outer step.

    A sequence with ``c`` committed tokens has ``start = c - 1``; its row at position ``p`` consumed
    ``tokens[p]`` and predicts position ``p + 1``. For each sequence with rows, in this order:

    1. *Commit* the longest prefix of rows that are settled and whose consumed token equals what
       the row before them now predicts. Committing row ``p`` makes its sample token ``p + 1``.
    2. *Stop* after a committed stop token, or when ``limit`` tokens are committed.
    3. *Redraft*: every row's sample becomes the input token of the next position.
    4. *Extend* the front by ``headway`` fresh rows, but to no more than ``max_wavefront`` rows and
       no position past ``limit - 2``. A second and later fresh row, for which nothing was
       predicted, starts from the token of the first.

    A sequence without rows is left alone; a finished sequence has none from then on.

    Args:
        tokens: ``[B, T]`` int64, committed tokens and drafts; written.
        start: ``[B]`` int32 position of the first row; advanced by the rows committed.
        done: ``[B]`` bool; set where the sequence stops.
        committed_depth: ``[B, T]`` int32; receives the depth of the row that decided each token.
        sampled: ``[N]`` int64 token that each row predicts.
        settled: ``[N]`` bool from the freeze rule.
        depth: ``[N]`` int32.
        cu_rows: ``[B + 1]`` int32 of the rows just computed (``cu_rows[B] <= N``).
        limit: ``[B]`` int32 largest number of tokens, prompt included; at most ``T``.
        stop_tokens: ``[S]`` int64, possibly empty.
        headway: fresh rows per sequence and outer step.
        max_wavefront: most rows in flight per sequence.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``(next_cu_rows [B + 1], source_row [N + B * headway], committed [B])``, int32. Row ``i``
        of the next step continues row ``source_row[i]`` or, at -1, is fresh; entries past
        ``next_cu_rows[B]`` are -1.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    sequences = (tokens, start, done, committed_depth)
    rows = (sampled, settled, depth, cu_rows)
    function = OP.provider(tokens, backend, dtype=torch.float32)  # any that kernels have
    return function(*sequences, *rows, limit, stop_tokens, headway, max_wavefront)
