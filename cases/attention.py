"""Launches of ``recurrent_attention`` with hostile memory.

Everything that the op must not read holds NaN (cells past the last row, spare pages, the ``qkv`` of
inactive and padding rows) or an index far outside the pool (the tail of the page table).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rdkernels.ops import recurrent_attention

NAN = float("nan")
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

    def to(self, device: torch.device | str) -> AttentionCase:
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
    device: torch.device | str = "cpu",
) -> AttentionCase:
    """Random rows, history and page order; what is large is made on ``device``.

    ``inactive`` is the share of inactive rows; between 0 and 1, one at least of several rows is
    inactive and one is active.
    """
    rows, batch = sum(lengths), len(start)
    used = [-(-(first + n) // page_size) for first, n in zip(start, lengths, strict=True)]
    order = torch.randperm(sum(used) + 3).tolist()  # three spare pages
    page_table = torch.full((batch, max(used, default=0) + 2), GARBAGE_PAGE, dtype=torch.int32)
    page_table[:, -1] = -1
    cache_shape = (len(order), page_size, kv_heads, head_dim)
    active = None
    if inactive:
        active = torch.rand(rows + padding) >= inactive
        if rows > 1 and inactive < 1:
            one, other = torch.randperm(rows)[:2]
            active[one], active[other] = True, False
    qkv = torch.randn(rows + padding, (heads + 2 * kv_heads) * head_dim, device=device)
    qkv[rows:] = NAN
    case = AttentionCase(
        qkv=qkv.to(dtype),
        qk_bias=torch.randn(heads + kv_heads, head_dim).to(dtype) if bias else None,
        cos_sin=rotary_table(
            max(map(sum, zip(start, lengths, strict=True)), default=0) + 1, head_dim
        ),
        key_cache=torch.full(cache_shape, NAN, dtype=dtype, device=device),
        value_cache=torch.full(cache_shape, NAN, dtype=dtype, device=device),
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
            history = torch.randn(len(old), kv_heads, head_dim, device=device)
            cache[page, cell] = history.to(dtype)
    return case.to(device)
