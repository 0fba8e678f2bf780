"""What ``recurrent_attention`` means in plain PyTorch, and launches held to it."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from cases.attention import AttentionCase
from tests.support.checking import assert_close_to_reference, assert_same_bits


def rotated(x: torch.Tensor, cos_sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """``x [n, heads, d]`` by complex numbers (interleaved) or ``rotate_half`` (Llama)."""
    cos, sin = (half.unsqueeze(1) for half in cos_sin.chunk(2, dim=-1))
    if interleaved:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    a, b = x.chunk(2, dim=-1)
    turned = torch.cat((-b, a), dim=-1)
    return x * torch.cat((cos, cos), -1) + turned * torch.cat((sin, sin), -1)


def reference(
    case: AttentionCase, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output and both caches after the launch, by SDPA on contiguous K/V in ``dtype``.

    Rotary embedding is in fp32 at least. ``dtype`` is that of the case for "same precision", or
    float64 for the truth.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kv_heads, head_dim = case.key_cache.shape[2:]
    heads, table = case.heads, case.cos_sin.to(wide)
    keys, values = case.key_cache.to(dtype), case.value_cache.to(dtype)
    parts = case.qkv.to(dtype).view(-1, heads + 2 * kv_heads, head_dim)
    out = torch.zeros(len(parts), heads, head_dim, dtype=dtype)
    for b, first in enumerate(case.start.tolist()):
        span = case.sequence_rows(b)
        rows = [row for row in range(len(parts))[span] if case.is_active(row)]
        if not rows:
            continue
        position = torch.tensor([first + row - span.start for row in rows])
        query_key = parts[rows, : heads + kv_heads]
        if case.qk_bias is not None:
            query_key = query_key + case.qk_bias.to(dtype)
        query_key = rotated(query_key.to(wide), table[position], case.interleaved).to(dtype)
        page, cell = case.cells(b, position)
        keys[page, cell] = query_key[:, heads:]
        values[page, cell] = parts[rows, heads + kv_heads :]
        reach = torch.arange(int(position[-1]) + 1)
        page, cell = case.cells(b, reach)
        attended = scaled_dot_product_attention(
            query_key[:, :heads].transpose(0, 1),
            keys[page, cell].transpose(0, 1).repeat_interleave(heads // kv_heads, 0),
            values[page, cell].transpose(0, 1).repeat_interleave(heads // kv_heads, 0),
            attn_mask=reach <= position.unsqueeze(1),
            scale=case.scale,
        )
        out[rows] = attended.transpose(0, 1)
    return out.flatten(1), keys, values


def check_case(case: AttentionCase, provider: str, device: str, scale: float = 1.0) -> torch.Tensor:
    """Run ``case`` on copies of its caches and hold everything it wrote to the reference.

    Outputs and new keys to the error rule, values to the bit; every other cell must be untouched.
    ``scale`` is that of the error rule for the outputs.
    """
    used = case.to(device).fresh()
    out = used.run(provider).cpu()
    same, keys, values = reference(case, case.qkv.dtype)
    exact, exact_keys, _ = reference(case, torch.float64)
    assert_close_to_reference(out, same, exact, scale=scale)
    written = torch.zeros(case.key_cache.shape[:2], dtype=torch.bool)
    for b, first in enumerate(case.start.tolist()):
        for i, row in enumerate(range(len(out))[case.sequence_rows(b)]):
            if case.is_active(row):
                written[case.cells(b, torch.tensor(first + i))] = True
    got_keys, got_values = used.key_cache.cpu(), used.value_cache.cpu()
    assert_close_to_reference(got_keys[written], keys[written], exact_keys[written], scale=scale)
    assert_same_bits(got_keys[~written], case.key_cache[~written])
    assert_same_bits(got_values, values)
    return out
