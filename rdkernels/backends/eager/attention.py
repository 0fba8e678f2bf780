"""Attention over the cache that all iterations share, and its rotary embedding."""

from __future__ import annotations

import torch

from rdkernels.backends.eager.precision import wide


def rotate(x: torch.Tensor, cos_sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotary embedding of ``x [N, heads, d]`` with per-row ``cos_sin [N, d]``, in fp32."""
    cos, sin = wide(cos_sin).unsqueeze(1).chunk(2, dim=-1)
    pairs = wide(x)
    if interleaved:
        a, b = pairs[..., 0::2], pairs[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
    a, b = pairs.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def recurrent_attention(
    qkv: torch.Tensor,
    qk_bias: torch.Tensor | None,
    cos_sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
    scale: float,
    interleaved: bool,
) -> torch.Tensor:
    num_rows, (page_size, kv_heads, head_dim) = qkv.size(0), key_cache.shape[1:]
    heads = qkv.size(1) // head_dim - 2 * kv_heads
    out = qkv.new_zeros(num_rows, heads, head_dim)
    bounds, starts = cu_rows.tolist(), start.tolist()
    spans = []  # per sequence with rows: (its active rows, their positions, its pages)
    for b, first in enumerate(starts):
        rows = torch.arange(bounds[b], bounds[b + 1], device=qkv.device)
        rows = rows if active is None else rows[active[bounds[b] : bounds[b + 1]]]
        if rows.numel():
            position = rows - bounds[b] + first
            pages = (first + bounds[b + 1] - bounds[b] + page_size - 1) // page_size
            spans.append((rows, position, page_table[b, :pages].long()))

    # All K/V of this launch are in the cache before any row attends.
    queries = []
    for rows, position, pages in spans:
        parts = qkv[rows].view(-1, heads + 2 * kv_heads, head_dim)
        query_key, value = parts.split((heads + kv_heads, kv_heads), dim=1)
        if qk_bias is not None:
            query_key = query_key + qk_bias.view(heads + kv_heads, head_dim)
        query_key = rotate(query_key, cos_sin[position], interleaved)
        query, key = query_key.split((heads, kv_heads), dim=1)
        queries.append(query)
        page, cell = pages[position // page_size], position % page_size
        key_cache[page, cell] = key.to(key_cache.dtype)
        value_cache[page, cell] = value.to(value_cache.dtype)

    for (rows, position, pages), query in zip(spans, queries, strict=True):
        reach = int(position[-1]) + 1
        keys = key_cache[pages].flatten(0, 1)[:reach].repeat_interleave(heads // kv_heads, dim=1)
        values = value_cache[pages].flatten(0, 1)[:reach]
        values = values.repeat_interleave(heads // kv_heads, dim=1)
        scores = torch.einsum("nhd,thd->hnt", wide(query), wide(keys)) * scale
        hidden = torch.arange(reach, device=qkv.device) > position.unsqueeze(1)
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        out[rows] = torch.einsum("hnt,thd->nhd", weights, wide(values)).to(qkv.dtype)
    return out.flatten(1)
