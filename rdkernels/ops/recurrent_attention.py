"""``recurrent_attention``: attention of a wavefront over the iteration-shared KV cache."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import attention
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import describe, expect, expect_tensor
from rdkernels.registry import define


def _check(
    qkv: torch.Tensor,
    qk_bias: torch.Tensor | None,
    cos_sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
) -> None:
    op = "recurrent_attention"
    expect_tensor(op, "qkv", qkv, (None, None), FLOATS)
    expect_tensor(op, "key_cache", key_cache, (None, None, None, None), qkv.dtype, like=qkv)
    expect_tensor(op, "value_cache", value_cache, tuple(key_cache.shape), qkv.dtype, like=qkv)
    kv_heads, head_dim = key_cache.shape[2:]
    expect(kv_heads > 0, op, "key_cache", "at least one KV head", describe(key_cache))
    even = head_dim > 0 and head_dim % 2 == 0
    expect(even, op, "key_cache", "an even head_dim", head_dim)
    heads = qkv.size(1) // head_dim - 2 * kv_heads
    fits = qkv.size(1) % head_dim == 0 and heads > 0 and heads % kv_heads == 0
    expected = f"second size (heads + 2 * {kv_heads}) * {head_dim}, heads a multiple of {kv_heads}"
    expect(fits, op, "qkv", expected, describe(qkv))
    if qk_bias is not None:
        expect_tensor(op, "qk_bias", qk_bias, (heads + kv_heads, head_dim), qkv.dtype, like=qkv)
    expect_tensor(op, "cos_sin", cos_sin, (None, head_dim), torch.float32, like=qkv)
    expect_tensor(op, "start", start, (None,), torch.int32, like=qkv)
    expect_tensor(op, "cu_rows", cu_rows, (start.size(0) + 1,), torch.int32, like=qkv)
    expect_tensor(op, "page_table", page_table, (start.size(0), None), torch.int32, like=qkv)
    if active is not None:
        expect_tensor(op, "active", active, (qkv.size(0),), torch.bool, like=qkv)


def _fake(qkv: torch.Tensor, key_cache: torch.Tensor) -> torch.Tensor:
    return qkv.new_empty(qkv.size(0), qkv.size(1) - 2 * key_cache.size(2) * key_cache.size(3))


OP = define(
    attention.recurrent_attention,
    check=_check,
    fake=_fake,
    mutates=("key_cache", "value_cache"),
    out=("out",),
    reads_back=True,
)


def recurrent_attention(
    qkv: torch.Tensor,
    qk_bias: torch.Tensor | None,
    cos_sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    interleaved: bool = True,
    backend: str | None = None,
) -> torch.Tensor:
    """Causal attention of packed rows, whose K/V are written to the cache in the same launch.

    Row ``i`` of sequence ``b`` (``cu_rows[b] <= i < cu_rows[b+1]``) sits at position
    ``p = start[b] + i - cu_rows[b]``. Its q and k get ``qk_bias``, then the rotary embedding of
    ``p``; its k and v go to cell ``p % page_size`` of page ``page_table[b, p // page_size]``; it
    attends to all cached positions ``<= p`` of its sequence, this launch's rows included. The
    cache is the one that all iterations share: a later iteration overwrites the same cells.

    An inactive row (``active[i]`` false, or ``i >= cu_rows[B]``) is not computed: its output is
    zero, its cells keep what they hold, and other rows still attend to those cells.

    Args:
        qkv: ``[N, (H + 2 * HK) * d]`` rows ``q | k | v`` (fp32, bf16, fp16; fp64: eager only).
        qk_bias: ``[H + HK, d]`` added to q and k before the rotation, or None.
        cos_sin: ``[positions, d]`` fp32: cosines, then sines, of the ``d / 2`` rotary angles.
        key_cache, value_cache: ``[pages, page_size, HK, d]``, dtype of ``qkv``; written.
        page_table: ``[B, max_pages]`` int32. Entries past a sequence's last row are not read.
        cu_rows: ``[B + 1]`` int32 prefix sums of rows per sequence.
        start: ``[B]`` int32 position of each sequence's first row.
        active: ``[N]`` bool, or None for all. Cells of inactive rows must have been written.
        scale: softmax scale; default ``1 / sqrt(d)``.
        interleaved: rotate pairs ``(2i, 2i+1)`` (Huginn), else ``(i, i + d/2)`` (Llama).
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N, H * d]``, dtype of ``qkv``; softmax and sums in fp32.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    if scale is None:  # a cache of the wrong rank must get as far as the checks
        scale = max(key_cache.shape[-1:].numel(), 1) ** -0.5
    tensors = (qkv, qk_bias, cos_sin, key_cache, value_cache, page_table, cu_rows, start, active)
    return OP.provider(qkv, backend, (qkv, qk_bias))(*tensors, scale, interleaved)
