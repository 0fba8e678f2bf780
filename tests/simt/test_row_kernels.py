"""The CUDA kernels of rms_norm, residual_norm and swiglu, run by the emulator and held to eager."""

from __future__ import annotations

import pytest
import torch

from rdkernels.backends.eager import norms as eager
from tests.simt.build import compiler, load_module
from tests.simt.parameters import parameters
from tests.support.checking import assert_close_to_reference

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
STYLES = {"huginn": 0, "llama": 1, "olmo": 2}
# One warp per row; scalar; one, two and four chunks per thread; more than one tile.
WIDTHS = (1, 7, 64, 264, 1000, 5280, 5281, 8200)
SCHEDULES = ("round_robin", "random", "warp_greedy", "warp_greedy_reverse")


@pytest.fixture(scope="module")
def kernels():
    return load_module("tests/simt/row_kernels.cpp")


def rows(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def check(results, function, *arguments):
    """The error rule for each output, with eager as the same-precision and the fp64 computation."""

    def outputs(*values):
        result = function(*values)
        return result if isinstance(result, tuple) else (result,)

    wide = (a.double() if isinstance(a, torch.Tensor) else a for a in arguments)
    triples = zip(results, outputs(*arguments), outputs(*wide), strict=True)
    for out, same, exact in triples:
        assert_close_to_reference(out, same, exact)


def launch(kernels, op, like, options, **fields):
    """One emulated launch for rows as those of ``like``; ``options`` are the emulator's."""
    size, width = like.shape
    params = parameters(op, rows=size, width=width, **fields)
    return getattr(kernels, op)(params, DTYPES[like.dtype], **options)


def rms_norm(kernels, x, weight, out, **options):
    fields = {"x": x, "weight": weight, "out": out, "eps": 1e-6}
    return launch(kernels, "rms_norm", out, options, **fields)


def residual_norm(kernels, delta, residual, post, pre, hidden, normed, style, **options):
    fields = {"delta": delta, "residual": residual, "hidden": hidden, "normed": normed}
    fields |= {"post_weight": post, "pre_weight": pre, "eps": 1e-6, "style": STYLES[style]}
    return launch(kernels, "residual_norm", hidden, options, **fields)


def swiglu(kernels, x, out, **options):
    return launch(kernels, "swiglu", out, options, x=x, out=out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(kernels, dtype, width):
    x, weight = rows(width, 5, width, dtype=dtype), rows(1, width, dtype=dtype)
    out = torch.full_like(x, float("nan"))
    rms_norm(kernels, x, weight, out)
    check((out,), eager.rms_norm, x, weight, 1e-6)


@pytest.mark.parametrize("with_pre", (True, False))
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", (7, 64, 5280))
def test_residual_norm(kernels, dtype, width, style, with_pre):
    delta, residual = rows(width, 2, 3, width, dtype=dtype).unbind()
    post = None if style == "llama" else rows(2, width, dtype=dtype)
    pre = rows(3, width, dtype=dtype) if with_pre else None
    hidden = torch.full_like(delta, float("nan"))
    normed = torch.full_like(delta, float("nan")) if with_pre else None
    residual_norm(kernels, delta, residual, post, pre, hidden, normed, style)
    results = (hidden, normed if with_pre else delta.new_empty(0))
    arguments = (delta, residual, post, pre, 1e-6, style)
    check(results, eager.residual_norm, *arguments)


@pytest.mark.parametrize("style", STYLES)
def test_residual_norm_wider_than_a_tile(kernels, style):
    delta, residual = rows(4, 2, 1, 17000, dtype=torch.bfloat16).unbind()
    post = None if style == "llama" else rows(2, 17000, dtype=torch.bfloat16)
    pre = rows(3, 17000, dtype=torch.bfloat16)
    hidden, normed = torch.empty_like(delta), torch.empty_like(delta)
    residual_norm(kernels, delta, residual, post, pre, hidden, normed, style)
    arguments = (delta, residual, post, pre, 1e-6, style)
    check((hidden, normed), eager.residual_norm, *arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", (1, 7, 64, 2056))
def test_swiglu(kernels, dtype, width):
    x = rows(width, 3, 2 * width, dtype=dtype) * 8
    out = torch.full_like(x[:, :width], float("nan")).contiguous()
    swiglu(kernels, x, out)
    check((out,), eager.swiglu, x)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_result_does_not_depend_on_the_schedule(kernels, schedule):
    delta, residual = rows(0, 2, 2, 1000, dtype=torch.bfloat16).unbind()
    post, pre = rows(1, 2, 1000, dtype=torch.bfloat16).unbind()
    results = []
    for name in ("round_robin", schedule):
        hidden, normed = torch.empty_like(delta), torch.empty_like(delta)
        arrays = (delta, residual, post, pre, hidden, normed, "huginn")
        residual_norm(kernels, *arrays, schedule=name, seed=3)
        results.append(torch.cat((hidden, normed)))
    assert torch.equal(*results)


def test_a_row_does_not_depend_on_its_batch(kernels):
    x, weight = rows(0, 9, 96, dtype=torch.float32), rows(1, 96, dtype=torch.float32)
    together, alone = torch.empty_like(x), torch.empty_like(x)
    rms_norm(kernels, x, weight, together)
    for i in range(9):
        rms_norm(kernels, x[i : i + 1], weight, alone[i : i + 1])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("width", (64, 5280, 17000))
def test_outputs_may_be_the_inputs(kernels, width):
    delta, residual = rows(0, 2, 2, width, dtype=torch.bfloat16).unbind()
    post, pre = rows(1, 2, width, dtype=torch.bfloat16).unbind()
    hidden, normed = torch.empty_like(delta), torch.empty_like(delta)
    for style in STYLES:
        weight = None if style == "llama" else post
        residual_norm(kernels, delta, residual, weight, pre, hidden, normed, style)
        a, b = delta.clone(), residual.clone()
        residual_norm(kernels, a, b, weight, pre, b, a, style)
        assert torch.equal(b, hidden) and torch.equal(a, normed), style


def test_memory_is_touched_once(kernels):
    """bf16 5280 wide, two rows: 32-byte sectors read = both inputs + both weights per row."""
    delta, residual = rows(0, 2, 2, 5280, dtype=torch.bfloat16).unbind()
    post, pre = rows(1, 2, 5280, dtype=torch.bfloat16).unbind()
    hidden, normed = torch.empty_like(delta), torch.empty_like(delta)
    report = residual_norm(kernels, delta, residual, post, pre, hidden, normed, "huginn")
    row_sectors = 5280 * 2 // 32
    slack = 8 * report["blocks"]  # torch aligns to 64 bytes, not to a sector pair per warp
    assert report["global"]["read_sectors"] <= 2 * (2 + 2) * row_sectors + slack
    assert report["global"]["write_sectors"] <= 2 * 2 * row_sectors + slack
    assert report["bank_conflicts"] == 0


@pytest.mark.parametrize("offset", (1, 4))
def test_rows_that_are_not_16_byte_aligned(kernels, offset):
    """8-byte alignment must not be taken for 16: the emulator checks every access."""
    big = rows(0, 3, 80, dtype=torch.bfloat16)
    x, weight, out = big[:, offset : offset + 64], rows(1, 64, dtype=torch.bfloat16), big.clone()
    rms_norm(kernels, x, weight, out[:, offset : offset + 64])
    check((out[:, offset : offset + 64],), eager.rms_norm, x, weight, 1e-6)
    out[:, offset : offset + 64] = x
    assert torch.equal(out, big), "wrote outside of its rows"


def test_normed_is_the_norm_of_the_rounded_hidden(kernels):
    """Bits, not tolerances: rms_norm of the stored hidden is what residual_norm returns."""
    delta, residual = rows(0, 2, 4, 1000, dtype=torch.bfloat16).unbind()
    post, pre = rows(1, 2, 1000, dtype=torch.bfloat16).unbind()
    hidden, normed, again = (torch.empty_like(delta) for _ in range(3))
    for style in STYLES:
        weight = None if style == "llama" else post
        residual_norm(kernels, delta, residual, weight, pre, hidden, normed, style)
        rms_norm(kernels, hidden, pre, again)
        assert torch.equal(again, normed), style


def test_rms_norm_reads_its_input_once(kernels):
    x, weight = rows(0, 2, 5280, dtype=torch.bfloat16), rows(1, 5280, dtype=torch.bfloat16)
    report = rms_norm(kernels, x, weight, torch.empty_like(x))
    assert report["global"]["read_sectors"] <= 2 * 2 * 5280 * 2 // 32 + 8 * report["blocks"]
