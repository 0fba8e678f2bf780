"""``row_linear`` against ``torch.nn.functional.linear``; int8 weights against their products."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from rdkernels.backends import native
from rdkernels.ops import row_linear
from tests.support.checking import (
    INF,
    NAN,
    assert_close_to_reference,
    assert_refused,
    assert_same_bits,
    gradients_match,
    layouts,
)

OP = "row_linear"


def check(x, weight, provider):
    out = row_linear(x, weight, backend=provider)
    same = torch.nn.functional.linear(x, weight)
    exact = torch.nn.functional.linear(x.double(), weight.double())
    assert_close_to_reference(out, same, exact)
    return out


def random_pair(rows, depth, width, device, dtype):
    """Random operands whose products are about 1, as the 1e-5 of the error rule expects."""
    x = torch.randn(rows, depth, device=device).to(dtype)
    weight = torch.randn(width, depth, device=device) / max(depth, 1) ** 0.5
    return x, weight.to(dtype)


def check_int8(x, values, scale, provider):
    out = row_linear(x, values, scale, backend=provider)
    weight = values.double() * scale.double()[:, None]
    same = torch.nn.functional.linear(x.float(), weight.float()).to(x.dtype)
    assert_close_to_reference(out, same, torch.nn.functional.linear(x.double(), weight))
    return out


def random_int8(rows, depth, width, device, dtype):
    """As random_pair, with an int8 weight that holds both ends of the range."""
    x = torch.randn(rows, depth, device=device).to(dtype)
    values = torch.randint(-127, 128, (width, depth), dtype=torch.int8, device=device)
    values[:, :2] = torch.tensor([-127, 127], dtype=torch.int8, device=device)[:depth]
    scale = (0.5 + torch.rand(width, device=device)) / 73 / max(depth, 1) ** 0.5
    return x, values, scale


# Depths: less than a vector, whole vectors, chunks of 32 vectors and what is left of them.
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 7, 64, 65, 130])
@pytest.mark.parametrize(
    ("depth", "width"), [(0, 3), (1, 1), (31, 5), (64, 12), (352, 7), (1025, 6), (2100, 13)]
)
def test_values(rows, depth, width, provider, device, dtype, seed):
    out = check(*random_pair(rows, depth, width, device, dtype), provider)
    assert out.shape == (rows, width) and out.is_contiguous()
    assert depth > 0 or not out.any()


def test_no_outputs(provider, device, dtype):
    x, weight = random_pair(2, 8, 0, device, dtype)
    assert row_linear(x, weight, backend=provider).shape == (2, 0)


@pytest.mark.parametrize("depth", [1, 33, 100])
def test_exact_in_integers(depth, provider, device, dtype, seed):
    """Small integers: every sum is exact in every order, so nothing may be missing or twice."""
    x = torch.randint(-1, 2, (5, depth), device=device).to(dtype)
    weight = torch.randint(-1, 2, (9, depth), device=device).to(dtype)
    want = (x.double() @ weight.double().t()).to(dtype)
    assert_same_bits(row_linear(x, weight, backend=provider) + 0.0, want + 0.0)


def test_layouts(provider, device, dtype, seed):
    x, weight = random_pair(6, 71, 10, device, dtype)
    want = check(x, weight, provider)
    for variant in layouts(x):
        check(variant, weight, provider)
    for variant in layouts(weight):
        got = check(x, variant, provider)
        if provider == "native":
            assert_same_bits(got, want)


@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_special_rows_leave_their_neighbours_alone(special, provider, device, dtype, seed):
    x, weight = random_pair(9, 70, 11, device, dtype)
    want = row_linear(x, weight, backend=provider)
    x[4, 69] = special
    out = check(x, weight, provider)
    others = [row for row in range(9) if row != 4]
    assert_same_bits(out[others], want[others])
    assert not out[4].isfinite().any()


def test_special_outputs_leave_their_neighbours_alone(provider, device, dtype, seed):
    x, weight = random_pair(3, 70, 11, device, dtype)
    want = row_linear(x, weight, backend=provider)
    weight[10, 0] = NAN
    out = check(x, weight, provider)
    assert_same_bits(out[:, :10], want[:, :10])
    assert out[:, 10].isnan().all()


def test_overflow_and_large_values(provider, device, dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([[largest, 0.0], [0.5, 0.25]], device=device).to(dtype)
    weight = torch.tensor([[1.0, 0.0], [4.0, 0.0], [-4.0, 1.0]], device=device).to(dtype)
    out = row_linear(x, weight, backend=provider)
    want = torch.tensor([[largest, INF, -INF], [0.5, 2.0, -1.75]], device=device).to(dtype)
    assert_same_bits(out, want)


def test_inputs_are_not_changed(provider, device, seed):
    inputs = random_pair(4, 40, 6, device, torch.float32)
    before = [t.clone() for t in inputs]
    row_linear(*inputs, backend=provider)
    for now, then in zip(inputs, before, strict=True):
        assert_same_bits(now, then)


@pytest.mark.parametrize("depth", [70, 2100])
def test_native_rows_do_not_depend_on_their_neighbours(provider, device, dtype, depth, seed):
    """Not in any bit: whatever the number of rows and wherever among them and among outputs."""
    if provider != "native":
        pytest.skip("torch's GEMMs choose their order of summation by the number of rows")
    x, weight = random_pair(67, depth, 29, device, dtype)
    together = row_linear(x, weight, backend=provider)
    for first, last in [(0, 1), (1, 3), (5, 8), (6, 10), (40, 45), (64, 67), (3, 67)]:
        assert_same_bits(row_linear(x[first:last], weight, backend=provider), together[first:last])
    for first, last in [(0, 1), (3, 10), (28, 29)]:
        part = row_linear(x, weight[first:last], backend=provider)
        assert_same_bits(part, together[:, first:last].contiguous())


def test_gradients(seed):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert gradients_match(row_linear, x, torch.randn(4, 6, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("x", torch.ones(4), r".*\[\*, \*\].*, got float32\[4\] on"),
        ("weight", torch.ones(3, 5), r"float32\[\*, 4\] on .*, got float32\[3, 5\] on"),
        ("weight", torch.ones(3, 4).half(), r"float32\[\*, 4\] on .*, got float16\[3, 4\] on"),
        ("weight", torch.ones(4), r".*\[\*, .*\].*, got float32\[4\] on"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    arguments = {"x": torch.ones(2, 4, device=device), "weight": torch.ones(3, 4, device=device)}
    function = partial(row_linear, backend=provider)
    assert_refused(OP, function, arguments, argument, value.to(device), message)


def test_bad_dtype():
    arguments = {"x": torch.ones(2, 4), "weight": torch.ones(3, 4)}
    message = r"float32\|.*\[\*, \*\], got int32\[2, 4\]"
    assert_refused(OP, row_linear, arguments, "x", arguments["x"].int(), message)


# ---- int8 weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 7, 64, 70])
@pytest.mark.parametrize(
    ("depth", "width"), [(0, 3), (1, 1), (31, 5), (64, 12), (352, 7), (1025, 6), (2100, 13)]
)
def test_int8_values(rows, depth, width, provider, device, dtype, seed):
    out = check_int8(*random_int8(rows, depth, width, device, dtype), provider)
    assert out.shape == (rows, width) and out.is_contiguous()


@pytest.mark.parametrize("rows", [1, 5])
def test_every_int8_is_widened_exactly(rows, provider, device, dtype):
    values = torch.arange(-128, 128, device=device).to(torch.int8)
    eye = torch.zeros(256, 256, dtype=torch.int8, device=device)
    x = torch.ones(rows, 256, device=device, dtype=dtype)
    got = row_linear(x, eye.diagonal_scatter(values), torch.ones(256, device=device))
    assert_same_bits(got + 0.0, values.to(dtype).expand(rows, 256))


@pytest.mark.parametrize("depth", [70, 2100])
def test_native_int8_rows_do_not_depend_on_their_neighbours(provider, device, dtype, depth, seed):
    if provider != "native":
        pytest.skip("torch's GEMMs choose their order of summation by the number of rows")
    x, values, scale = random_int8(67, depth, 29, device, dtype)
    together = row_linear(x, values, scale, backend=provider)
    for first, last in [(0, 1), (1, 3), (5, 8), (6, 10), (40, 45), (64, 67), (3, 67)]:
        part = row_linear(x[first:last], values, scale, backend=provider)
        assert_same_bits(part, together[first:last])
    for first, last in [(0, 1), (3, 10), (28, 29)]:
        part = row_linear(x, values[first:last], scale[first:last], backend=provider)
        assert_same_bits(part, together[:, first:last].contiguous())


def test_int8_layouts(provider, device, dtype, seed):
    x, values, scale = random_int8(6, 71, 10, device, dtype)
    want = check_int8(x, values, scale, provider)
    spread = torch.full((10, 3), NAN, device=device)
    spread[:, 1] = scale
    padded = torch.full((10, 80), 99, dtype=torch.int8, device=device)
    padded[:, 5:76] = values
    for weight in (padded[:, 5:76], values.t().contiguous().t()):
        got = row_linear(x, weight, spread[:, 1], backend=provider)
        if provider == "native":
            assert_same_bits(got, want)
        check_int8(x, weight, spread[:, 1], provider)


@pytest.mark.parametrize("special", [NAN, INF])
def test_int8_special_rows_and_scales(special, provider, device, dtype, seed):
    x, values, scale = random_int8(9, 70, 11, device, dtype)
    want = row_linear(x, values, scale, backend=provider)
    scale[10] = special
    out = row_linear(x, values, scale, backend=provider)
    assert_same_bits(out[:, :10], want[:, :10])
    assert not out[:, 10].isfinite().any()
    x[4, 0] = special
    others = [row for row in range(9) if row != 4]
    out = row_linear(x, values, scale, backend=provider)
    assert_same_bits(out[others, :10], want[others, :10])
    assert not out[4].isfinite().any()


@pytest.mark.parametrize(
    ("weight", "scale", "message"),
    [
        (torch.ones(3, 4, dtype=torch.int8), None, "a scale for an int8 weight, got None"),
        (torch.ones(3, 4), torch.ones(3), r"None for a weight that is not int8, got float32\[3\]"),
        (
            torch.ones(3, 4, dtype=torch.int8),
            torch.ones(4),
            r"float32\[3\] on .*, got float32\[4\]",
        ),
        (torch.ones(3, 4, dtype=torch.int8), torch.ones(3).half(), r"float32\[3\].*, got float16"),
        (
            torch.ones(3, 4, dtype=torch.int8),
            torch.ones(3, 1),
            r"float32\[3\].*, got float32\[3, 1\]",
        ),
    ],
)
def test_bad_scale(weight, scale, message, provider, device):
    scale = None if scale is None else scale.to(device)
    valid = torch.ones(3, device=device) if weight.dtype == torch.int8 else None
    arguments = {"x": torch.ones(2, 4, device=device), "weight": weight.to(device), "scale": valid}
    function = partial(row_linear, backend=provider)
    assert_refused(OP, function, arguments, "scale", scale, message)


CHECK_CAPABILITY = """
import sys, torch
from rdkernels.backends import native
from tests.ops import test_row_linear as here
assert native.build_info()["cpu_capability"] == sys.argv[1]
torch.manual_seed(int(sys.argv[2]))
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    here.test_every_int8_is_widened_exactly(5, "native", "cpu", dtype)
    for depth in (31, 70, 1100):
        for rows in (1, 2, 3, 4, 9):
            here.check_int8(*here.random_int8(rows, depth, 13, "cpu", dtype), "native")
    here.test_native_int8_rows_do_not_depend_on_their_neighbours("native", "cpu", dtype, 1100, 0)
"""


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_int8_on_every_instruction_set(capability, seed):
    if native.load_error() is not None:
        pytest.skip("no native kernels")
    order = ["baseline", "avx2", "avx512", "avx512_bf16"]
    if order.index(capability) > order.index(native.build_info()["cpu_capability"]):
        pytest.skip(f"this machine has no {capability}")
    command = [sys.executable, "-c", CHECK_CAPABILITY, capability, str(seed)]
    environment = os.environ | {"RDKERNELS_CPU_CAPABILITY": capability}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
