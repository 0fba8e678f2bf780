"""Iterations of the core block on the CPU: one call, the native ops one by one, and eager.

The width of the demo model (two blocks, and what is not arithmetic counts) and one block with the
proportions of Huginn-0125 at 2048 of its 5280 channels (what counts is reading the weights).
``--full`` has all 5280.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from bench.support import assert_close, providers, run
from rdkernels import ops
from rdkernels.cache import LayerCache
from rdkernels.models.blocks import BlockStack, RowLayout
from rdkernels.models.config import BlockStyle
from rdkernels.models.weights import Block

CONTEXT, PAGE_SIZE, EPS = 128, 64, 1e-6


class Size(NamedTuple):
    width: int
    heads: int
    head_dim: int
    mlp_width: int
    blocks: int
    iterations: int


DEMO = Size(128, 4, 32, 352, blocks=2, iterations=32)
NARROW_HUGINN = Size(2048, 32, 64, 6912, blocks=1, iterations=1)
HUGINN = Size(5280, 55, 96, 17920, blocks=1, iterations=1)
SIZES = {"demo": DEMO, "huginn-2048": NARROW_HUGINN, "huginn": HUGINN}
SMALL = {"rows": [1, 8], "size": ["demo", "huginn-2048"]}
FULL = {"rows": [1, 4, 16, 64], "size": list(SIZES)}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Core(NamedTuple):
    """A core block with random weights, and rows behind ``CONTEXT`` cached positions."""

    adapter: torch.Tensor
    stack: BlockStack
    caches: list[LayerCache]
    rows: RowLayout
    iterations: int

    def widened(self) -> Core:
        """The same in fp32."""
        blocks = [
            Block(**{name: getattr(b, name).float() for name in Block.__dataclass_fields__})
            for b in self.stack.blocks
        ]
        stack = BlockStack(tuple(blocks), self.stack.cos_sin, EPS, self.stack.scale, BlockStyle())
        caches = [LayerCache(c.key.float(), c.value.float()) for c in self.caches]
        return self._replace(adapter=self.adapter.float(), stack=stack, caches=caches)

    def one_call(self, adapter_input: torch.Tensor, backend: str) -> torch.Tensor:
        weights, keys, values, *layout = self.stack.arguments(self.caches, self.rows)
        options = {"iterations": self.iterations, "eps": EPS, "backend": backend}
        ops.core_iterations(adapter_input, self.adapter, weights, keys, values, *layout, **options)
        return adapter_input

    def op_by_op(self, adapter_input: torch.Tensor) -> torch.Tensor:
        native = ops.bind(adapter_input, "native")
        state = adapter_input[:, : self.adapter.size(0)]
        for _ in range(self.iterations):
            hidden = native.row_linear(adapter_input, self.adapter)
            arguments = (native, native.row_linear, hidden, self.caches, self.rows)
            state.copy_(self.stack.op_by_op(*arguments))
        return adapter_input


def make_core(size: Size, rows: int, dtype: torch.dtype) -> Core:
    inner, pages = size.num_heads * size.head_dim, (CONTEXT + rows) // PAGE_SIZE + 1

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) / shape[-1] ** 0.5).to(dtype)

    def block() -> Block:
        one = torch.ones(size.hidden_size, dtype=dtype)
        return Block(
            **dict.fromkeys(("norm_1", "norm_2", "norm_3", "norm_4"), one),
            wqkv=matrix(3 * inner, size.hidden_size),
            qk_bias=torch.zeros(2 * size.num_heads, size.head_dim, dtype=dtype),
            attn_proj=matrix(size.hidden_size, inner),
            mlp_fc=matrix(2 * size.intermediate_size, size.hidden_size),
            mlp_proj=matrix(size.hidden_size, size.intermediate_size),
        )

    def cache() -> LayerCache:
        shape = (pages, PAGE_SIZE, size.num_heads, size.head_dim)
        return LayerCache(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype))

    angle = torch.rand(CONTEXT + rows, size.head_dim // 2) * 6
    cos_sin = torch.cat((angle.cos(), angle.sin()), dim=1)
    blocks = tuple(block() for _ in range(size.blocks))
    return Core(
        adapter=matrix(size.hidden_size, 2 * size.hidden_size),
        stack=BlockStack(blocks, cos_sin, EPS, size.head_dim**-0.5, BlockStyle()),
        caches=[cache() for _ in range(size.blocks)],
        rows=RowLayout(
            torch.arange(pages, dtype=torch.int32).unsqueeze(0),
            torch.tensor([0, rows], dtype=torch.int32),
            torch.tensor([CONTEXT], dtype=torch.int32),
            None,
        ),
        iterations=size.iterations,
    )


def functions(core: Core) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The rows of the table; "one call" and "ops" where there are native kernels."""
    found = {"eager": lambda x: core.one_call(x, "eager")}
    if "native" in providers("core_iterations", core.adapter.dtype):
        found |= {"one call": lambda x: core.one_call(x, "native"), "ops": core.op_by_op}
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["eager", "ops", "one call"])
def bench_core_iterations(benchmark, rows, size, dtype, way):
    torch.manual_seed(rows)
    shape = SIZES[size]
    core = make_core(shape, rows, DTYPES[dtype])
    call = functions(core).get(way)
    if call is None:
        pytest.skip("no native kernels")
    adapter_input = torch.randn(rows, 2 * shape.width).to(DTYPES[dtype])
    exact = core.widened().one_call(adapter_input.float(), "eager")
    same = core.one_call(adapter_input.clone(), "eager")
    assert_close(call(adapter_input.clone()), same, exact)
    weights = (core.adapter, *core.stack.weights)
    traffic = shape.iterations * sum(w.numel() * w.element_size() for w in weights)
    name = f"core_iterations {size} {rows} rows x {shape.iterations} {dtype}"
    described = {"rows": rows, "dtype": dtype, **shape._asdict()}
    options = {"group": name, "provider": way, "traffic": traffic, "shape": described}
    run(benchmark, call, (adapter_input,), **options)
