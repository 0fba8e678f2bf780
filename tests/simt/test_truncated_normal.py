"""The CUDA kernel of ``truncated_normal`` and the maths of philox.h, against the eager op."""

from __future__ import annotations

import pytest
import torch

from rdkernels.backends import philox
from rdkernels.backends.eager import state as eager
from tests.support.checking import assert_close_to_reference

from .build import run_sanitized
from .parameters import parameters
from .schedules import adversarial
from .tensors import (
    DTYPES,
    NAN,
    aligned,
    around,
    assert_same_everywhere,
    blank,
    guarded,
    load_kernels,
    sectors,
    sectors_of,
)

OP = "truncated_normal"
SEED = 0x1234_5678_9ABC_DEF0
KEYS = torch.tensor(
    [[0, 0, 0], [1, 2, 3], [-1, -2, -3], [2**31 - 1, -(2**31), 2**31 - 1], [7, 2, 2**28]],
    dtype=torch.int32,
)


@pytest.fixture(scope="module")
def kernels():
    return load_kernels(OP)


def run(kernels, out, keys=KEYS, std=1.0, draw_seed=SEED, stream=0, **options):
    params = parameters(
        OP,
        row_keys=keys,
        out=out,
        rows=out.size(0),
        width=out.size(1),
        seed=draw_seed,
        stream=stream,
        std=std,
    )
    return kernels.run(params, DTYPES[out.dtype], **options)


def check(out, keys, std, seed, stream):
    same = eager.truncated_normal(keys, out.size(1), std, seed, stream, out.dtype)
    exact = philox.truncated_normal(keys, out.size(1), std, seed, stream)
    # Eager rounds fp64 once; plain fp32 arithmetic is off by a few of its own roundings.
    roundings = 4 * torch.finfo(torch.float32).eps * 3 * std
    assert_close_to_reference(out, same, exact)
    limit = exact.abs() * torch.finfo(out.dtype).eps / 2 + roundings
    assert ((out.double() - exact).abs() <= limit).all()


@pytest.mark.parametrize("stream", [0, 1, 2])
@pytest.mark.parametrize("gap", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("width", [1, 3, 4, 8, 37, 5280, 5281])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(kernels, dtype, width, gap, stream):
    out = blank(len(KEYS), width, dtype, gap)
    run(kernels, out, std=0.6, stream=stream)
    check(out, KEYS, 0.6, SEED, stream)
    assert guarded(out)


@pytest.mark.parametrize("draw_seed", [0, 1, -1, 2**32, -(2**63), 2**63 - 1])
def test_seeds(kernels, draw_seed):
    out = blank(len(KEYS), 64, torch.float32)
    run(kernels, out, draw_seed=draw_seed)
    check(out, KEYS, 1.0, draw_seed, 0)


def test_zero_deviation(kernels):
    out = blank(len(KEYS), 64, torch.bfloat16)
    run(kernels, out, std=0.0)
    assert (out == 0).all()


def test_every_uniform_draw(kernels):
    """All 2**24 values of u: the normal draw within 5 ulp of fp64, the noise within its bound."""
    worst_ulp, worst_gumbel, count = 0.0, 0.0, 1 << 20
    smallest, largest = NAN, NAN
    for first in range(0, 1 << 24, count):
        out = torch.empty(2, count)
        kernels.draws(first, count, out.data_ptr())
        u = torch.arange(first, first + count).double() * 2.0**-24 + 2.0**-25
        normal = torch.erfinv((2 * u - 1) * 0.9973002039367398) * 2**0.5
        ulp = 2.0 ** (normal.abs().log2().floor() - 23)
        worst_ulp = max(worst_ulp, float(((out[0].double() - normal).abs() / ulp).max()))
        gumbel = -(-u.log()).log()
        worst_gumbel = max(worst_gumbel, float((out[1].double() - gumbel).abs().max()))
        smallest = gumbel.min().item() if first == 0 else smallest
        largest = gumbel.max().item()
    assert worst_ulp < 5, worst_ulp
    assert worst_gumbel <= kernels.GUMBEL_ERROR, worst_gumbel
    assert smallest > kernels.SMALLEST_GUMBEL
    assert largest < kernels.LARGEST_GUMBEL
    print(f"truncated normal: {worst_ulp:.2f} ulp; Gumbel noise in fp32: {worst_gumbel:.1e}")


def test_every_schedule(kernels):
    results = {}
    for name, options in adversarial(seed=5).items():
        out = blank(len(KEYS), 700, torch.bfloat16)
        run(kernels, out, **options)
        results[name] = (out,)
    assert_same_everywhere(results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sector_is_written_once(kernels, dtype):
    out = blank(len(KEYS), 5280, dtype)
    report = run(kernels, out)
    assert sectors(report)[1] == sectors_of(out)


@pytest.mark.slow
def test_sanitizers():
    script = f"""
import torch
import {OP}_emulated as kernels
from tests.simt.test_{OP} import KEYS, run
for width in (8, 37, 264):
    for dtype in (torch.bfloat16, torch.float32):
        run(kernels, torch.empty(len(KEYS), width, dtype=dtype))
out = torch.empty(2, 1 << 16)
for first in (0, 1 << 23, (1 << 24) - (1 << 16)):
    kernels.draws(first, 1 << 16, out.data_ptr())
"""
    done = run_sanitized(f"tests/simt/{OP}_emulated.cpp", script)
    assert done.returncode == 0, done.stderr


def test_aligned_rows_are_what_they_say():
    """The helpers of this folder: the fast path is meant to be the one under test."""
    x = aligned(torch.zeros(3, 40, dtype=torch.bfloat16))
    assert x.data_ptr() % 128 == 0 and x.stride(0) * 2 % 128 == 0
    assert around(x).isnan().all() and not x.isnan().any()
