"""What only the native CPU kernels have: instruction sets, threads, and shapes that fill registers.

``tests/ops`` holds them to the meaning of the ops; here are the ways in which they could differ
from themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cases.attention import make_case
from rdkernels import ops
from rdkernels.backends import native
from tests.support.attention_case import check_case
from tests.support.checking import assert_same_bits

pytestmark = pytest.mark.skipif(
    native.load_error() is not None, reason=f"no native kernels: {native.load_error()}"
)
CAPABILITIES = ("baseline", "avx2", "avx512", "avx512_bf16")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDE = {"heads": 9, "kv_heads": 9, "head_dim": 96}  # more than 512 channels: bf16 instructions
GROUPED = {"heads": 24, "kv_heads": 2, "head_dim": 64}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def result_of(case) -> tuple[torch.Tensor, ...]:
    used = case.fresh()
    return used.run("native"), used.key_cache, used.value_cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [WIDE, GROUPED], ids=["wide", "grouped"])
@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])
def test_attention_of_wide_models(shape, interleaved, dtype, seed):
    """Tiles of 6 lines and what is left of them; blocks of 64 positions, whole and in part."""
    case = make_case(
        [0, 63, 250], [7, 1, 61], dtype=dtype, interleaved=interleaved, inactive=0.2, **shape
    )
    check_case(case, "native", "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_divided_positions(dtype, seed):
    """Few KV heads: parts of 1024 positions are attended separately and merged."""
    shape = {"heads": 12, "kv_heads": 2, "head_dim": 64}
    check_case(make_case([1020, 2047, 3000], [9, 2, 1], dtype=dtype, **shape), "native", "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [10, 30, 80, 112, 320])
def test_attention_of_odd_head_dims(head_dim, dtype, seed):
    """Not whole vectors of any instruction set; 320 is more than one chunk of rotations."""
    shape = {"heads": 4, "kv_heads": 2, "head_dim": head_dim}
    check_case(make_case([70, 3], [9, 1], dtype=dtype, **shape), "native", "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_gets_the_same_bits_in_any_launch(dtype, seed):
    """Alone, or as one of many rows and sequences: positions are divided in the same way."""
    shape = {"heads": 12, "kv_heads": 2, "head_dim": 64}
    case = make_case([1000, 40], [60, 20], dtype=dtype, **shape)
    together = case.fresh()
    out = together.run("native")
    for row in (0, 23, 59):
        alone = replace(
            together,  # its cache holds the K/V of all rows by now
            qkv=case.qkv[row : row + 1],
            page_table=case.page_table[:1],
            cu_rows=torch.tensor([0, 1], dtype=torch.int32),
            start=torch.tensor([1000 + row], dtype=torch.int32),
            lengths=[1],
        )
        assert_same_bits(alone.run("native")[0], out[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_attention(dtype, seed, two_threads):
    case = make_case([1500, 700, 90], [40, 70, 3], dtype=dtype, **WIDE)
    parallel = result_of(case)
    torch.set_num_threads(1)
    for one, two in zip(result_of(case), parallel, strict=True):
        assert_same_bits(one, two)


def norms_of(state: torch.Tensor, previous: torch.Tensor) -> list[torch.Tensor]:
    """rms_norm, residual_norm of every style, swiglu."""
    weight = previous[0].contiguous()
    results = [ops.rms_norm(state, weight, backend="native")]
    for style in ("huginn", "llama", "olmo"):
        post = None if style == "llama" else weight
        results += ops.residual_norm(state, previous, post, weight, style=style, backend="native")
    return [*results, ops.swiglu(torch.cat((state, previous), 1), backend="native")]


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_state_ops(dtype, seed, two_threads):
    state, previous = torch.randn(2, 64, 5280).to(dtype).unbind()
    logits = torch.randn(8, 65536).to(dtype)
    keys = torch.randint(0, 1000, (64, 3), dtype=torch.int32)
    weight = torch.rand(64)

    def results() -> list[torch.Tensor]:
        depth = torch.ones(64, dtype=torch.int32)
        inject = ops.inject_state(
            state, previous, previous, depth, 0.1, weight, keys, 7, backend="native"
        )
        delta = ops.exit_update(
            state, previous, depth, iterations=1, threshold=0.5, backend="native"
        )
        tokens = ops.sample_tokens(logits, keys[:8], temperature=1.0, top_p=0.9, backend="native")
        noise = ops.truncated_normal(keys, 5280, 0.4, 7, dtype=dtype, backend="native")
        return [*inject, *delta, depth, tokens, noise, *norms_of(state, previous)]

    parallel = results()
    torch.set_num_threads(1)
    for one, two in zip(results(), parallel, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9, 70])
def test_threads_do_not_change_row_linear(rows, dtype, seed, two_threads):
    x, weight = torch.randn(rows, 1056).to(dtype), torch.randn(1001, 1056).to(dtype)
    parallel = ops.row_linear(x, weight, backend="native")
    torch.set_num_threads(1)
    assert_same_bits(ops.row_linear(x, weight, backend="native"), parallel)


SCRIPT = """
import sys, torch
from rdkernels.backends import native
from tests import test_native_cpu as here
capability, seed, path = sys.argv[1:]
assert native.build_info()["cpu_capability"] == capability
torch.manual_seed(int(seed))
torch.save(here.probe(), path)
"""


def probe() -> dict[str, torch.Tensor]:
    """One result of every op that has vector code, from the current random state."""
    results = {}
    for dtype in DTYPES:
        name = str(dtype).removeprefix("torch.")
        case = make_case([100, 5], [9, 20], dtype=dtype, **WIDE)
        results[f"attention {name}"], results[f"keys {name}"], _ = result_of(case)
        state, previous = torch.randn(2, 3, 333).to(dtype).unbind()
        keys = torch.randint(0, 1000, (3, 3), dtype=torch.int32)
        depth = torch.ones(3, dtype=torch.int32)
        inputs = (state, previous, previous, depth, 0.1, torch.rand(3), keys, 7)
        results[f"inject {name}"], _ = ops.inject_state(*inputs, backend="native")
        results[f"exit {name}"], _ = ops.exit_update(
            state, previous, depth, iterations=1, threshold=0.5, backend="native"
        )
        for i, norm in enumerate(norms_of(state, previous)):
            results[f"norm {i} {name}"] = norm
        weight = (torch.randn(11, 333) / 333**0.5).to(dtype)
        results[f"linear {name}"] = ops.row_linear(state, weight, backend="native")
        results[f"noise {name}"] = ops.truncated_normal(
            keys, 333, 0.4, 7, dtype=dtype, backend="native"
        )
        results[f"tokens {name}"] = ops.sample_tokens(
            torch.randn(3, 5000).to(dtype), keys, temperature=1.0, top_k=40, backend="native"
        )
    return results


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_instruction_sets_agree(capability, tmp_path, seed):
    """Every level that this machine has gives the same results, keys to the bit."""
    available = native.build_info()["cpu_capability"]
    if capability not in CAPABILITIES[: CAPABILITIES.index(available) + 1]:
        pytest.skip(f"this machine has {available}")
    path = tmp_path / "probe.pt"
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"RDKERNELS_CPU_CAPABILITY": capability}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, capability, str(seed), str(path)],
        env=environment, cwd=root, check=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
    other = torch.load(path)
    for name, here in probe().items():
        there = other[name]
        if name.startswith(("keys", "tokens")):
            assert_same_bits(there, here)
        else:
            assert (there.double() - here.double()).abs().max() <= tolerance[here.dtype], name


@pytest.mark.slow
def test_offsets_beyond_32_bits():
    """A page of the cache that lies more than 2^31 elements into it."""
    elements = (1 << 31) + (1 << 20)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 3 * 2 * elements:
        pytest.skip(f"needs {3 * 2 * elements >> 30} GiB of free memory, has {free >> 30}")
    page, kv_heads, head_dim = 64, 4, 64
    pages = elements // (page * kv_heads * head_dim)
    # Untouched memory costs nothing: only the last page is used.
    caches = [torch.empty(pages, page, kv_heads, head_dim, dtype=torch.bfloat16) for _ in range(2)]
    small = make_case([0], [5], heads=4, kv_heads=kv_heads, head_dim=head_dim, page_size=page,
                      dtype=torch.bfloat16)  # fmt: skip
    last = torch.full((1, 1), pages - 1, dtype=torch.int32)
    arguments = (small.qkv, small.qk_bias, small.cos_sin)
    layout = (small.cu_rows, small.start, None)
    out = ops.recurrent_attention(*arguments, *caches, last, *layout, backend="native")
    near = [torch.empty_like(cache[:1]) for cache in caches]
    zero = torch.zeros(1, 1, dtype=torch.int32)
    want = ops.recurrent_attention(*arguments, *near, zero, *layout, backend="native")
    assert_same_bits(out, want)
    for cache, cell in zip(caches, near, strict=True):
        assert_same_bits(cache[-1, :5], cell[0, :5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_without_alignment(dtype, seed):
    """Every tensor starts at an odd element, in memory of others."""

    def shifted(x: torch.Tensor) -> torch.Tensor:
        memory = x.new_empty(x.numel() + 1)
        return memory[1:].view(x.shape).copy_(x)

    case = make_case([70, 2], [5, 9], dtype=dtype, **WIDE)
    names = ("qkv", "qk_bias", "cos_sin", "key_cache", "value_cache")
    moved = replace(case, **{name: shifted(getattr(case, name)) for name in names})
    plain, odd = case.fresh(), moved
    assert_same_bits(odd.run("native"), plain.run("native"))
    assert_same_bits(odd.key_cache, plain.key_cache)


def test_layouts_that_do_not_exist_are_refused():
    """The CPU kernel reads the layout before it writes anything."""
    case = make_case([3], [2])
    before = case.key_cache.clone()
    bad = {
        "cu_rows": torch.tensor([0, 9], dtype=torch.int32),
        "start": torch.tensor([10**6], dtype=torch.int32),
        "page_table": torch.full_like(case.page_table, 10**6),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=f"recurrent_attention: {name}: expected"):
            replace(case, **{name: value}).run("native")
    assert_same_bits(case.key_cache, before)
