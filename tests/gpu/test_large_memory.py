"""Tensors of more than 2^31 elements: offsets must be 64-bit, and grids large enough."""

from __future__ import annotations

import pytest
import torch

from cases.attention import make_case
from rdkernels import ops
from tests.support.attention_case import reference
from tests.support.checking import assert_close_to_reference, assert_same_bits

MORE_THAN_INT32 = 2**31 + 2**20
BF16 = torch.bfloat16


@pytest.fixture
def memory(gpu):
    """A function that skips unless so many GiB are free."""

    def need(gib: float) -> None:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < gib * 2**30:
            pytest.skip(f"needs {gib} GiB of free GPU memory, {free / 2**30:.1f} are")

    yield need
    torch.cuda.empty_cache()


def far_apart(rows: int, width: int) -> torch.Tensor:
    """``[rows, width]`` bf16 whose last row begins past 2^31 elements."""
    stride = -(-MORE_THAN_INT32 // (rows - 1)) // 8 * 8 + 8
    pool = torch.empty((rows - 1) * stride + width, dtype=BF16, device="cuda")
    return pool.as_strided((rows, width), (stride, 1))


def test_rows_past_int32(memory, seed):
    memory(10)
    x = far_apart(3, 5280)
    x.copy_(torch.randn(3, 5280))
    assert x.stride(0) * 2 > 2**31
    weight = torch.randn(5280, device="cuda", dtype=BF16)
    near = x.clone(memory_format=torch.contiguous_format)
    assert_same_bits(
        ops.rms_norm(x, weight, backend="native"), ops.rms_norm(near, weight, backend="native")
    )
    assert_same_bits(ops.swiglu(x, backend="native"), ops.swiglu(near, backend="native"))
    for a, b in zip(
        ops.residual_norm(x, near, weight, weight, backend="native"),
        ops.residual_norm(near, near, weight, weight, backend="native"),
        strict=True,
    ):
        assert_same_bits(a, b)


def test_logits_past_int32(memory, seed):
    """32 800 rows of 65 536 logits: a 4.3 GB tensor, as a batch of long prompts would make."""
    memory(8)
    rows, vocabulary = 32800, 65536
    logits = torch.zeros(rows, vocabulary, dtype=BF16, device="cuda")
    winners = torch.randint(vocabulary, (rows,), device="cuda")
    logits[torch.arange(rows, device="cuda"), winners] = 1.0
    assert torch.equal(ops.sample_tokens(logits, backend="native"), winners)


def test_cache_past_int32(memory, seed):
    """A sequence whose pages lie behind 2^31 elements of the K/V pools."""
    memory(20)
    case = make_case([40], [3], heads=4, kv_heads=4, head_dim=96, dtype=BF16)
    cell = case.key_cache[0].numel()
    first = -(-MORE_THAN_INT32 // cell)
    on_gpu = case.to("cuda")
    pools = []
    for cache in (on_gpu.key_cache, on_gpu.value_cache):
        pool = torch.empty(first + cache.size(0), *cache.shape[1:], dtype=BF16, device="cuda")
        pool[first:] = cache
        pools.append(pool)
    used = case.page_table.lt(cache.size(0)) & case.page_table.ge(0)
    table = torch.where(used, case.page_table + first, case.page_table)
    arguments = list(on_gpu.tensors)
    arguments[3:6] = [*pools, table.int().cuda()]
    out = ops.recurrent_attention(*arguments, interleaved=True, backend="native")
    same, keys, values = reference(case, BF16)
    exact, exact_keys, _ = reference(case, torch.float64)
    assert_close_to_reference(out.cpu(), same, exact)
    assert_close_to_reference(
        pools[0][first:].nan_to_num().cpu(), keys.nan_to_num(), exact_keys.nan_to_num()
    )
    assert_same_bits(pools[1][first:].cpu(), values)
