"""rms_norm, residual_norm and swiglu in the emulator: hostile memory and values, exact traffic.

``test_row_kernels.py`` holds their values over shapes and dtypes.
"""

from __future__ import annotations

import pytest
import torch

from rdkernels.backends.eager import norms as eager
from tests.support.checking import (
    adversarial_rows,
    assert_close_to_reference,
    assert_rows_close_to_reference,
)

from .build import compiler, load_module, run_sanitized
from .schedules import adversarial
from .tensors import (
    DTYPES,
    aligned,
    assert_same_everywhere,
    blank,
    guarded,
    sectors,
    sectors_of,
    unaligned,
)
from .test_row_kernels import STYLES, residual_norm, rms_norm, swiglu

MODULE = "tests/simt/row_kernels.cpp"
RUNS = adversarial(seed=21)


@pytest.fixture(scope="module")
def kernels():
    if compiler() is None:
        pytest.skip("no C++ compiler (g++ is not on PATH and CXX names none)")
    return load_module(MODULE)


def random_rows(seed, rows, width, dtype, place=aligned):
    generator = torch.Generator().manual_seed(seed)
    return place(torch.randn(rows, width, generator=generator).to(dtype))


def random_weight(seed, width, dtype, place=aligned):
    return random_rows(seed, 1, width, dtype, place)[0]


def wide(*tensors):
    return tuple(None if t is None else t.double() for t in tensors)


# One tensor at a time off its alignment: each has to switch the whole launch to the scalar path.
@pytest.mark.parametrize("which", ["x", "weight", "out", "all"])
@pytest.mark.parametrize("width", [8, 40, 1000, 4104])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_unaligned(kernels, dtype, width, which):
    place = {name: unaligned if which in (name, "all") else aligned for name in ("x", "weight")}
    x = random_rows(width, 3, width, dtype, place["x"])
    weight = random_weight(2, width, dtype, place["weight"])
    out = blank(3, width, dtype, gap=int(which in ("out", "all")))
    rms_norm(kernels, x, weight, out)
    same = eager.rms_norm(x, weight, 1e-6)
    assert_close_to_reference(out, same, eager.rms_norm(*wide(x, weight), 1e-6))
    assert guarded(out), "something was written between rows"


@pytest.mark.parametrize("which", ["delta", "residual", "post", "pre", "hidden", "normed"])
@pytest.mark.parametrize("style", STYLES)
def test_residual_norm_unaligned(kernels, style, which):
    width, dtype = 1000, torch.bfloat16

    def place(name):
        return unaligned if name == which else aligned

    delta = random_rows(1, 3, width, dtype, place("delta"))
    residual = random_rows(2, 3, width, dtype, place("residual"))
    post = None if style == "llama" else random_weight(3, width, dtype, place("post"))
    pre = random_weight(4, width, dtype, place("pre"))
    hidden = blank(3, width, dtype, gap=int(which == "hidden"))
    normed = blank(3, width, dtype, gap=int(which == "normed"))
    residual_norm(kernels, delta, residual, post, pre, hidden, normed, style)
    tensors = (delta, residual, post, pre)
    same = eager.residual_norm(*tensors, 1e-6, style)
    exact = eager.residual_norm(*wide(*tensors), 1e-6, style)
    for out, same_precision, reference in zip((hidden, normed), same, exact, strict=True):
        assert_close_to_reference(out, same_precision, reference)
        assert guarded(out), "something was written between rows"


@pytest.mark.parametrize("which", ["x", "out", "odd"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu_unaligned(kernels, dtype, which):
    width = 1001 if which == "odd" else 1000
    x = random_rows(5, 3, 2 * width, dtype, unaligned if which == "x" else aligned)
    out = blank(3, width, dtype, gap=int(which == "out"))
    swiglu(kernels, x, out)
    assert_close_to_reference(out, eager.swiglu(x), eager.swiglu(x.double()))
    assert guarded(out)


@pytest.mark.parametrize("width", [64, 61])
def test_every_array_has_a_stride_of_its_own(kernels, width):
    """All else aligned: rows are 64, 128, 192 and 256 elements apart."""
    dtype, line = torch.bfloat16, 64  # elements in 128 bytes

    def apart(seed, lines):
        return aligned(random_rows(seed, 3, width, dtype), gap=lines * line)

    delta, residual, weight = apart(1, 0), apart(2, 1), random_weight(3, width, dtype)
    hidden, normed = (blank(3, width, dtype, gap=lines * line) for lines in (2, 3))
    assert len({t.stride(0) for t in (delta, residual, hidden, normed)}) == 4
    residual_norm(kernels, delta, residual, weight, weight, hidden, normed, "huginn")
    tensors = (delta, residual, weight, weight)
    same = eager.residual_norm(*tensors, 1e-6, "huginn")
    exact = eager.residual_norm(*wide(*tensors), 1e-6, "huginn")
    for out, same_precision, reference in zip((hidden, normed), same, exact, strict=True):
        assert_close_to_reference(out, same_precision, reference)

    out = blank(3, width, dtype, gap=line)
    rms_norm(kernels, delta, weight, out)
    exact = eager.rms_norm(*wide(delta, weight), 1e-6)
    assert_close_to_reference(out, eager.rms_norm(delta, weight, 1e-6), exact)
    assert guarded(out)


@pytest.mark.parametrize("width", [16, 1000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_values(kernels, dtype, width):
    """Zeros, subnormals, overflowing squares, NaN and infinities: where eager has them, only."""
    x = aligned(adversarial_rows(width, dtype))
    weight = random_weight(6, width, dtype)
    out = blank(*x.shape, dtype)
    rms_norm(kernels, x, weight, out)
    exact = eager.rms_norm(*wide(x, weight), 1e-6)
    assert_rows_close_to_reference(out, eager.rms_norm(x, weight, 1e-6), exact)

    halves = aligned(torch.cat((x, x.roll(3, 0)), dim=1))
    gated = blank(*x.shape, dtype)
    swiglu(kernels, halves, gated)
    assert_rows_close_to_reference(gated, eager.swiglu(halves), eager.swiglu(halves.double()))


def test_swiglu_huginn(kernels):
    x = random_rows(7, 2, 2 * 17920, torch.bfloat16)
    out = blank(2, 17920, torch.bfloat16)
    report = swiglu(kernels, x, out)
    assert_close_to_reference(out, eager.swiglu(x), eager.swiglu(x.double()))
    assert sectors(report) == (sectors_of(x), sectors_of(out))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_moves_the_minimum(kernels, dtype):
    """Huginn's width: the row and the weight once, and that is all."""
    x, weight = random_rows(8, 2, 5280, dtype), random_weight(9, 5280, dtype)
    out = blank(2, 5280, dtype)
    report = rms_norm(kernels, x, weight, out)
    weights = 2 * sectors_of(weight[None])
    assert sectors(report) == (sectors_of(x) + weights, sectors_of(out))
    assert report["bank_conflicts"] == 0


@pytest.mark.parametrize("style", STYLES)
def test_residual_norm_moves_the_minimum(kernels, style):
    dtype = torch.bfloat16
    delta, residual = random_rows(10, 2, 5280, dtype), random_rows(11, 2, 5280, dtype)
    post = None if style == "llama" else random_weight(12, 5280, dtype)
    pre = random_weight(13, 5280, dtype)
    hidden, normed = blank(2, 5280, dtype), blank(2, 5280, dtype)
    report = residual_norm(kernels, delta, residual, post, pre, hidden, normed, style)
    weights = 2 * sectors_of(*(w[None] for w in (post, pre) if w is not None))
    # olmo adds the residual after the norm; each input is still read once.
    assert sectors(report) == (sectors_of(delta, residual) + weights, sectors_of(hidden, normed))


@pytest.mark.parametrize("width", [40, 2600, 17000])
@pytest.mark.parametrize("style", STYLES)
def test_every_schedule(kernels, style, width):
    dtype, results = torch.bfloat16, {}
    delta, residual = random_rows(14, 2, width, dtype), random_rows(15, 2, width, dtype)
    post = None if style == "llama" else random_weight(16, width, dtype)
    pre = random_weight(17, width, dtype)
    for name, options in RUNS.items():
        hidden, normed = blank(2, width, dtype), blank(2, width, dtype)
        arrays = (delta, residual, post, pre, hidden, normed, style)
        residual_norm(kernels, *arrays, count_memory=False, **options)
        results[name] = (hidden, normed)
    assert_same_everywhere(results)


@pytest.mark.slow
def test_sanitizers():
    script = """
import torch
import row_kernels as kernels
from tests.simt.tensors import aligned, unaligned
from tests.simt.test_row_kernels import STYLES, residual_norm, rms_norm, swiglu
from tests.simt.test_row_kernels_hostile import random_rows, random_weight
for place in (aligned, unaligned):
    for width in (1, 40, 1000):
        x, y = (random_rows(seed, 5, width, torch.bfloat16, place) for seed in (1, 2))
        weight = random_weight(3, width, torch.bfloat16, place)
        a, b = torch.empty(2, 5, width, dtype=torch.bfloat16)
        rms_norm(kernels, x, weight, a)
        for style in STYLES:
            residual_norm(kernels, x, y, None if style == "llama" else weight, weight, a, b, style)
        swiglu(kernels, torch.cat((x, y), dim=1), a)
"""
    done = run_sanitized(MODULE, script)
    assert done.returncode == 0, done.stderr
