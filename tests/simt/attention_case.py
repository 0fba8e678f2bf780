"""One hostile ``recurrent_attention`` problem, its expected result, and its run in the emulator.

Whatever the op must not read is poisoned: NaN in cache cells that no position holds, in rows that
are not computed and between rows; an absurd page number behind the last page that a sequence needs;
NaN in output and workspace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from rdkernels.backends.eager import attention as eager

from .parameters import parameters

OP = "recurrent_attention"
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
GARBAGE_PAGE = 2**31 - 1

Active = Callable[[int, int], bool]  # (sequence, row of the sequence) -> is it computed?


@dataclass
class Result:
    out: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    reports: dict[str, Any] = field(default_factory=dict)

    def bits(self) -> tuple[torch.Tensor, ...]:
        """The tensors as integers: NaN equals itself."""
        return tuple(_bits(t) for t in (self.out, self.key_cache, self.value_cache))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same_bits(left: Result, right: Result) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.bits(), right.bits(), strict=True))


@dataclass
class Case:
    """The tensors of one call; ``active`` is None for all rows."""

    qkv: torch.Tensor
    qk_bias: torch.Tensor | None
    cos_sin: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    page_table: torch.Tensor
    cu_rows: torch.Tensor
    start: torch.Tensor
    active: torch.Tensor | None
    scale: float
    interleaved: bool
    seed: int

    @property
    def num_heads(self) -> int:
        kv_heads, head_dim = self.key_cache.shape[2:]
        return self.qkv.size(1) // head_dim - 2 * kv_heads

    def eager(self, dtype: torch.dtype | None = None) -> Result:
        """The specification's answer, computed in ``dtype`` (default: the case's own)."""
        dtype = dtype or self.qkv.dtype
        keys, values = self.key_cache.to(dtype, copy=True), self.value_cache.to(dtype, copy=True)
        bias = None if self.qk_bias is None else self.qk_bias.to(dtype)
        layout = (self.page_table, self.cu_rows, self.start, self.active)
        qkv = self.qkv.to(dtype)
        out = eager.recurrent_attention(
            qkv, bias, self.cos_sin, keys, values, *layout, self.scale, self.interleaved
        )
        return Result(out, keys, values)

    def fields(self, result: Result, splits: int = 0) -> dict[str, Any]:
        """The launch parameters; ``workspace`` is still to be filled in."""

        page_size, kv_heads, head_dim = self.key_cache.shape[1:]
        return {
            "qkv": self.qkv,
            "qk_bias": self.qk_bias,
            "cos_sin": self.cos_sin,
            "key_cache": result.key_cache,
            "value_cache": result.value_cache,
            "page_table": self.page_table,
            "cu_rows": self.cu_rows,
            "start": self.start,
            "active": self.active,
            "out": result.out,
            "workspace": None,
            "cache_page_stride": self.key_cache.stride(0),
            "num_rows": self.qkv.size(0),
            "num_sequences": self.start.size(0),
            "num_heads": self.num_heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "page_size": page_size,
            "max_pages": self.page_table.size(1),
            "interleaved": self.interleaved,
            "splits": splits,
            "scale": self.scale,
        }

    def run(self, module: ModuleType, splits: int = 0, **options: Any) -> Result:
        """One emulated launch on copies of the caches; ``options`` are the emulator's."""
        result = Result(self._no_output(), self.key_cache.clone(), self.value_cache.clone())
        return self._launch(module, result, splits, **options)

    def run_in_place(self, module: ModuleType, **options: Any) -> Result:
        """The same on the case's own caches."""
        result = Result(self._no_output(), self.key_cache, self.value_cache)
        return self._launch(module, result, 0, **options)

    def _no_output(self) -> torch.Tensor:
        width = self.num_heads * self.key_cache.size(3)
        return torch.full((self.qkv.size(0), width), float("nan"), dtype=self.qkv.dtype)

    def _launch(self, module: ModuleType, result: Result, splits: int, **options: Any) -> Result:
        fields, code = self.fields(result, splits), DTYPE_CODES[self.qkv.dtype]
        size = module.plan(parameters(OP, **fields), code)["workspace_bytes"]
        fields["workspace"] = torch.full((size // 4,), float("nan")) if size else None
        caches = {"key": result.key_cache, "value": result.value_cache, "qkv": self.qkv}
        watch = {
            name: (t.data_ptr(), t.untyped_storage().nbytes() - _byte_offset(t))
            for name, t in caches.items()
        }
        params = parameters(OP, **fields)
        result.reports = module.run(params, code, watch=watch, **options)
        return result

    def plan(self, module: ModuleType, splits: int = 0) -> dict[str, Any]:
        fields = self.fields(Result(self.qkv, self.key_cache, self.value_cache), splits)
        return module.plan(parameters(OP, **fields), DTYPE_CODES[self.qkv.dtype])

    def check(self, result: Result) -> None:
        """Caches bit for bit; outputs to twice the error of eager PyTorch in the same dtype."""
        same, exact = self.eager(), self.eager(torch.float64)
        note = f"seed {self.seed}"
        for name in ("key_cache", "value_cache"):
            wrong = _bits(getattr(result, name)) != _bits(getattr(same, name))
            assert not wrong.any(), f"{name}: {wrong.nonzero()[:4].tolist()} ({note})"
        if not result.out.numel():
            return
        assert torch.isfinite(exact.out).all(), f"the case itself is wrong ({note})"
        bad = (~torch.isfinite(result.out)).nonzero()
        assert not bad.numel(), f"not finite at {bad[:4].tolist()} ({note})"
        error = (result.out.double() - exact.out).abs()
        limit = 2 * float((same.out.double() - exact.out).abs().max()) + 1e-5
        worst = float(error.max())
        where = (error == error.max()).nonzero()[:1].tolist()
        assert worst <= limit, f"error {worst:.3e} > {limit:.3e} at {where} ({note})"
        idle = ~self.computed_rows()
        assert not result.out[idle].any(), f"output of a row that is not computed ({note})"

    def computed_rows(self) -> torch.Tensor:
        rows = torch.arange(self.qkv.size(0)) < self.cu_rows[-1]
        return rows if self.active is None else rows & self.active


def _byte_offset(tensor: torch.Tensor) -> int:
    return tensor.storage_offset() * tensor.element_size()


def make_case(
    seed: int,
    *,
    rows: Sequence[int],
    start: Sequence[int],
    heads: int = 2,
    kv_heads: int | None = None,
    head_dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    page_size: int = 16,
    active: Active | None = None,
    spare_rows: int = 0,
    spare_pages: int = 2,
    bias: bool = True,
    interleaved: bool = True,
    qkv_padding: int = 0,
    scale: float | None = None,
    shift: int = 0,
) -> Case:
    """Random tensors for ``rows[b]`` rows from position ``start[b]`` on, poison everywhere else.

    ``qkv_padding``: elements between qkv's rows. ``shift``: elements by which qkv and the caches
    are off their alignment.
    """
    kv_heads = kv_heads or heads
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def shifted(tensor: torch.Tensor) -> torch.Tensor:
        storage = torch.empty(tensor.numel() + shift, dtype=tensor.dtype)
        view = storage[shift:].view(tensor.shape)
        return view.copy_(tensor)

    counts = [-(-(s + n) // page_size) if n else 0 for s, n in zip(start, rows, strict=True)]
    order = torch.randperm(sum(counts) + spare_pages, generator=generator)
    table = torch.full((len(rows), max(counts, default=0) + 2), GARBAGE_PAGE, dtype=torch.int32)
    pool = (order.numel(), page_size, kv_heads, head_dim)
    keys, values = torch.full(pool, float("nan")), torch.full(pool, float("nan"))

    cu_rows = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()], dtype=torch.int32)
    total = int(cu_rows[-1]) + spare_rows
    width = (heads + 2 * kv_heads) * head_dim
    padded = torch.full((total, width + qkv_padding), float("nan"))
    flags = torch.ones(total, dtype=torch.bool)  # rows that no sequence owns do not count, whatever
    taken = 0
    for b, (first, n) in enumerate(zip(start, rows, strict=True)):
        pages = order[taken : taken + counts[b]]
        table[b, : counts[b]] = pages.int()
        taken += counts[b]
        live = torch.tensor([active is None or active(b, i) for i in range(n)], dtype=torch.bool)
        here = slice(int(cu_rows[b]), int(cu_rows[b + 1]))
        flags[here] = live
        padded[here, :width] = normal(n, width).where(live[:, None], torch.nan)
        # Cells that hold something: the past, and rows whose K/V an earlier iteration has written.
        held = torch.cat((torch.ones(first, dtype=torch.bool), ~live)).nonzero().flatten()
        held = held[held <= _last(live, first)]
        cells = (pages[held // page_size].long(), held % page_size)
        keys[cells] = normal(held.numel(), kv_heads, head_dim)
        values[cells] = normal(held.numel(), kv_heads, head_dim)

    longest = max((s + n for s, n in zip(start, rows, strict=True)), default=0) + 1
    angles = torch.arange(longest)[:, None] * torch.rand(1, head_dim // 2, generator=generator)
    qk_bias = normal(heads + kv_heads, head_dim).to(dtype) if bias else None
    return Case(
        qkv=shifted(padded.to(dtype))[:, :width],
        qk_bias=qk_bias,
        cos_sin=torch.cat((angles.cos(), angles.sin()), dim=1),
        key_cache=shifted(keys.to(dtype)),
        value_cache=shifted(values.to(dtype)),
        page_table=table,
        cu_rows=cu_rows,
        start=torch.tensor(start, dtype=torch.int32),
        active=None if active is None else flags,
        scale=head_dim**-0.5 if scale is None else scale,
        interleaved=interleaved,
        seed=seed,
    )


def _last(live: torch.Tensor, first: int) -> int:
    """Position of the last active row; -1 if there is none, and then nothing may be read at all."""
    rows = live.nonzero()
    return first + int(rows[-1]) if rows.numel() else -1
