"""``advance_wavefront``: commit what is final, stop what is done, lay out the next rows."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import wavefront
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define

_OP = "advance_wavefront"
Advanced = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


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
    known: torch.Tensor,
    sequence_ids: torch.Tensor,
    stop_tokens: torch.Tensor,
    headway: int,
    max_wavefront: int,
) -> None:
    expect_tensor(_OP, "tokens", tokens, (None, None), torch.int64)
    batch = tokens.size(0)
    expect_tensor(_OP, "start", start, (batch,), torch.int32, like=tokens)
    expect_tensor(_OP, "done", done, (batch,), torch.bool, like=tokens)
    shape = tuple(tokens.shape)
    expect_tensor(_OP, "committed_depth", committed_depth, shape, torch.int32, like=tokens)
    expect_tensor(_OP, "sampled", sampled, (None,), torch.int64, like=tokens)
    rows = sampled.size(0)
    expect_tensor(_OP, "settled", settled, (rows,), torch.bool, like=tokens)
    expect_tensor(_OP, "depth", depth, (rows,), torch.int32, like=tokens)
    expect_tensor(_OP, "cu_rows", cu_rows, (batch + 1,), torch.int32, like=tokens)
    expect_tensor(_OP, "limit", limit, (batch,), torch.int32, like=tokens)
    expect_tensor(_OP, "known", known, (batch,), torch.int32, like=tokens)
    expect_tensor(_OP, "sequence_ids", sequence_ids, (batch,), torch.int32, like=tokens)
    expect_tensor(_OP, "stop_tokens", stop_tokens, (None,), torch.int64, like=tokens)
    expect(headway >= 1, _OP, "headway", "at least 1", headway)
    expect(max_wavefront >= 1, _OP, "max_wavefront", "at least 1", max_wavefront)


def _check_outputs(
    tokens: torch.Tensor,
    next_cu_rows: torch.Tensor,
    source_row: torch.Tensor,
    committed: torch.Tensor,
    row_tokens: torch.Tensor,
    row_keys: torch.Tensor,
) -> None:
    batch = tokens.size(0)
    expect_tensor(_OP, "next_cu_rows", next_cu_rows, (batch + 1,), torch.int32, like=tokens)
    expect_tensor(_OP, "source_row", source_row, (None,), torch.int32, like=tokens)
    capacity = source_row.size(0)
    expect_tensor(_OP, "committed", committed, (batch,), torch.int32, like=tokens)
    expect_tensor(_OP, "row_tokens", row_tokens, (capacity,), torch.int64, like=tokens)
    expect_tensor(_OP, "row_keys", row_keys, (capacity, 3), torch.int32, like=tokens)


def _write(results: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
    """The rows that there is room for; past the last that exists, rows as the op pads them."""
    for result, output in zip(results, outputs, strict=True):
        count = min(len(result), len(output))
        output[:count] = result[:count]
    _, source_row, _, row_tokens, row_keys = outputs
    there = len(results[1])
    source_row[there:] = -1
    row_tokens[there:] = 0
    row_keys[there:] = 0


def _fake(
    start: torch.Tensor, sampled: torch.Tensor, cu_rows: torch.Tensor, headway: int
) -> Advanced:
    batch = start.size(0)
    rows = sampled.size(0) + batch * headway
    next_cu_rows, source_row = cu_rows.new_empty(batch + 1), cu_rows.new_empty(rows)
    committed, row_tokens = cu_rows.new_empty(batch), sampled.new_empty(rows)
    return next_cu_rows, source_row, committed, row_tokens, cu_rows.new_empty(rows, 3)


OP = define(
    wavefront.advance_wavefront,
    check=_check,
    fake=_fake,
    mutates=("tokens", "start", "done", "committed_depth"),
    out=("next_cu_rows", "source_row", "committed", "row_tokens", "row_keys"),
    check_out=_check_outputs,
    write=_write,
    computes_in=torch.float32,  # a dtype that all kernels have
    reads_back=True,
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
    known: torch.Tensor,
    sequence_ids: torch.Tensor,
    stop_tokens: torch.Tensor,
    *,
    headway: int = 1,
    max_wavefront: int = 128,
    restart: bool = False,
    backend: str | None = None,
) -> Advanced:
    """The per-sequence state machine at the end of an outer step.

    A sequence with ``c`` committed tokens has ``start = c - 1``; its row at position ``p`` consumed
    ``tokens[p]`` and predicts position ``p + 1``: ``tokens[p + 1]`` if that is known
    (``p + 1 < known``), whatever its sample, and else its sample. For each sequence with rows, in
    this order:

    1. *Commit* the longest prefix of rows that are settled and whose consumed token equals what
       the row before them now predicts. Committing row ``p`` makes its prediction token ``p + 1``.
    2. *Stop* after a committed stop token that was not known, or when ``limit`` tokens are
       committed.
    3. *Redraft*: every row's prediction becomes the input token of the next position. Or, with
       ``restart``, where rows are drafts that are right or start anew: rows that stay in flight
       keep the token that they consumed, and only what committed rows and the front (the last
       row) predict is written. If the last committed row predicts another token than the next row
       consumed, that row and all after it are dropped, the front among them.
    4. *Extend* the front by ``headway`` fresh rows, but to no more than ``max_wavefront`` rows and
       no position past ``limit - 2``. Rows before position ``known - 1`` are not counted. A fresh
       row whose token is neither known nor predicted starts from the token of the row before it.

    A sequence without rows is left alone; a finished sequence has none from then on.

    Args:
        tokens: ``[B, T]`` int64, committed tokens and drafts; written, but never where known.
        start: ``[B]`` int32 position of the first row; advanced by the rows committed.
        done: ``[B]`` bool; set where the sequence stops.
        committed_depth: ``[B, T]`` int32; receives the depth of the row that decided each token.
        sampled: ``[N]`` int64 token that each row predicts.
        settled: ``[N]`` bool from the freeze rule.
        depth: ``[N]`` int32.
        cu_rows: ``[B + 1]`` int32 of the rows just computed (``cu_rows[B] <= N``).
        limit: ``[B]`` int32 largest number of tokens, prompt included; at most ``T``.
        known: ``[B]`` int32 leading tokens that are given, the prompt; at most ``T``.
        sequence_ids: ``[B]`` int32, for ``row_keys``.
        stop_tokens: ``[S]`` int64, possibly empty.
        headway: fresh rows per sequence and outer step.
        max_wavefront: most rows in flight per sequence.
        restart: drop wrong drafts instead of feeding them new tokens.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``(next_cu_rows [B + 1], source_row [C], committed [B], row_tokens [C], row_keys [C, 3])``,
        int32 but for ``row_tokens`` (int64), of the next outer step's rows. Row ``i`` continues
        row ``source_row[i]`` or, if that is negative, is fresh and follows row
        ``-1 - source_row[i]``: the front or, where rows were dropped, the last committed one.
        It consumes ``row_tokens[i]`` and has the key (sequence id, position, depth), depth 0 if
        fresh. Only rows below ``next_cu_rows[B]`` exist: those past it are -1, 0 and (0, 0, 0).

        ``C = N + B * headway`` rows always suffice. The ``out`` overload takes outputs of any
        ``C``, and writes the rows below it: ``next_cu_rows[B] > C`` tells that some are missing.
        Its ``next_cu_rows`` and ``committed`` may be parts of one tensor.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    sequences = (tokens, start, done, committed_depth)
    rows = (sampled, settled, depth, cu_rows)
    limits = (limit, known, sequence_ids, stop_tokens, headway, max_wavefront, restart)
    function = OP.provider(tokens, backend)
    return function(*sequences, *rows, *limits)
