"""Launches of ``recurrent_attention`` with hostile memory, and their meaning in plain PyTorch.

Everything that the op must not read holds NaN (cells past the last row, spare pages, the ``qkv`` of
inactive and padding rows) or an index far outside the pool (the tail of the page table).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from rdkernels.ops import recurrent_attention
from tests.support.checking import NAN, assert_close_to_reference, assert_same_bits

PAGE_SIZE = 16
GARBAGE_PAGE = 2**30
TENSORS = (
    "qkv", "qk_bias", "cos_sin", "key_cache", "value_cache", "page_table", "cu_rows", "start",
    "active",
)  # fmt: skip


@dataclass(frozen=True)
class AttentionCase:
    """The arguments of one launch. ``lengths`` are the rows of each sequence, as a list."""

    qkv: torch.Tensor
    qk_bias: torch.Tensor | None
    cos_sin: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    page_table: torch.Tensor
    cu_rows: torch.Tensor
    start: torch.Tensor
    active: torch.Tensor | None
    lengths: list[int]
    heads: int
    interleaved: bool = True
    scale: float | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return tuple(getattr(self, name) for name in TENSORS)

    def to(self, device: str) -> AttentionCase:
        moved = {name: getattr(self, name) for name in TENSORS}
        return replace(self, **{n: None if t is None else t.to(device) for n, t in moved.items()})

    def fresh(self) -> AttentionCase:
        """The same launch on copies of the caches."""
        caches = {"key_cache": self.key_cache.clone(), "value_cache": self.value_cache.clone()}
        return replace(self, **caches)

    def run(self, provider: str) -> torch.Tensor:
        """Launch; writes to the caches of this case."""
        options = {"scale": self.scale, "interleaved": self.interleaved, "backend": provider}
        return recurrent_attention(*self.tensors, **options)

    def sequence_rows(self, b: int) -> slice:
        return slice(sum(self.lengths[:b]), sum(self.lengths[: b + 1]))

    def is_active(self, row: int) -> bool:
        return self.active is None or bool(self.active[row])

    def cells(self, b: int, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(page, cell) of positions of sequence ``b``."""
        size = self.key_cache.size(1)
        return self.page_table[b].long()[positions // size], positions % size


def rotary_table(positions: int, head_dim: int, base: float = 50_000.0) -> torch.Tensor:
    """``[positions, d]`` fp32: cosines, then sines."""
    frequency = base ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    angle = torch.arange(positions).double().unsqueeze(1) * frequency
    return torch.cat((angle.cos(), angle.sin()), dim=1).float()


def make_case(
    start: list[int],
    lengths: list[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    inactive: float = 0.0,
    padding: int = 0,
    page_size: int = PAGE_SIZE,
    interleaved: bool = True,
) -> AttentionCase:
    """Random rows, history and page order. ``inactive`` is the share of inactive rows."""
    rows, batch = sum(lengths), len(start)
    used = [-(-(first + n) // page_size) for first, n in zip(start, lengths, strict=True)]
    order = torch.randperm(sum(used) + 3).tolist()  # three spare pages
    page_table = torch.full((batch, max(used, default=0) + 2), GARBAGE_PAGE, dtype=torch.int32)
    page_table[:, -1] = -1
    cache_shape = (len(order), page_size, kv_heads, head_dim)
    active = None
    if inactive:
        active = torch.rand(rows + padding) >= inactive
    qkv = torch.randn(rows + padding, (heads + 2 * kv_heads) * head_dim)
    qkv[rows:] = NAN
    case = AttentionCase(
        qkv=qkv.to(dtype),
        qk_bias=torch.randn(heads + kv_heads, head_dim).to(dtype) if bias else None,
        cos_sin=rotary_table(
            max(map(sum, zip(start, lengths, strict=True)), default=0) + 1, head_dim
        ),
        key_cache=torch.full(cache_shape, NAN, dtype=dtype),
        value_cache=torch.full(cache_shape, NAN, dtype=dtype),
        page_table=page_table,
        cu_rows=torch.tensor([0, *lengths]).cumsum(0).int(),
        start=torch.tensor(start, dtype=torch.int32),
        active=active,
        lengths=lengths,
        heads=heads,
        interleaved=interleaved,
    )
    for b, pages in enumerate(used):
        page_table[b, :pages] = torch.tensor([order.pop() for _ in range(pages)])
        old = list(range(start[b]))  # positions whose K/V is from earlier launches
        for i, row in enumerate(range(rows)[case.sequence_rows(b)]):
            if not case.is_active(row):
                old.append(start[b] + i)
                case.qkv[row] = NAN
        page, cell = case.cells(b, torch.tensor(old, dtype=torch.long))
        for cache in (case.key_cache, case.value_cache):
            cache[page, cell] = torch.randn(len(old), kv_heads, head_dim).to(dtype)
    return case


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
