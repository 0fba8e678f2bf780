"""``row_linear`` against ``torch.nn.functional.linear``."""

from functools import partial

import pytest
import torch

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
