"""``recurrent_attention`` at Huginn-0125's shape, beside torch SDPA.

SDPA gets what the op does not have: K/V gathered to one contiguous tensor per head, queries and
keys already biased and rotated, nothing to write to a cache.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.support import assert_close, copies, providers, run, wide
from rdkernels.ops import recurrent_attention

OP = "recurrent_attention"
HEADS, HEAD_DIM, PAGE_SIZE = 55, 96, 64
SMALL = {"rows": [1, 8, 32], "context": [256, 1024]}
FULL = {"rows": [1, 8, 32, 128], "context": [256, 1024, 4096]}
DTYPE = torch.bfloat16


def inputs(rows: int, context: int) -> tuple:
    """A wavefront of ``rows`` rows at the end of ``context`` positions; pages lie anywhere."""
    pages = -(-context // PAGE_SIZE)
    angles = torch.rand(context, HEAD_DIM // 2) * 6.28
    cache = (pages, PAGE_SIZE, HEADS, HEAD_DIM)
    return (
        torch.randn(rows, 3 * HEADS * HEAD_DIM).to(DTYPE),
        torch.randn(2 * HEADS, HEAD_DIM).to(DTYPE),
        torch.cat((angles.cos(), angles.sin()), dim=1),
        torch.randn(cache).to(DTYPE),
        torch.randn(cache).to(DTYPE),
        torch.randperm(pages).int().unsqueeze(0),
        torch.tensor([0, rows]).int(),
        torch.tensor([context - rows]).int(),
    )


def sdpa_inputs(rows: int, context: int) -> tuple:
    query = torch.randn(1, HEADS, rows, HEAD_DIM).to(DTYPE)
    key, value = torch.randn(2, 1, HEADS, context, HEAD_DIM).to(DTYPE).unbind()
    if rows == 1:
        return query, key, value, None
    positions = torch.arange(context)
    return query, key, value, positions <= positions[-rows:].unsqueeze(1)


def check(rows: int, context: int, provider: str) -> None:
    """Against fp32; the error of a bf16 softmax over bf16 inputs is SDPA's."""
    args = inputs(rows, context)
    out = recurrent_attention(*copies(args), backend=provider)
    exact = recurrent_attention(*wide(copies(args)), backend="eager")
    rounded = recurrent_attention(*copies(args), backend="eager")
    assert_close(out, rounded, exact)


@pytest.mark.parametrize("provider", [*providers(OP, DTYPE), "sdpa"])
def bench_recurrent_attention(benchmark, rows, context, provider):
    torch.manual_seed(rows * context)
    if provider == "sdpa":
        args, function = sdpa_inputs(rows, context), scaled_dot_product_attention
    else:
        check(rows, context, provider)
        args = inputs(rows, context)

        def function(*args):
            return recurrent_attention(*args, backend=provider)

    width = HEADS * HEAD_DIM * DTYPE.itemsize
    run(
        benchmark,
        function,
        args,
        group=f"{OP} {rows} rows, context {context}",
        provider=provider,
        traffic=(2 * context + 4 * rows) * width,
        shape={"rows": rows, "context": context, "heads": HEADS, "head_dim": HEAD_DIM},
    )
