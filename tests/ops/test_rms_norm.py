"""``rms_norm`` against ``torch.nn.functional.rms_norm``."""

from functools import partial

import pytest
import torch

from rdkernels.ops import rms_norm
from tests.support.checking import (
    NAN,
    adversarial_rows,
    assert_close_to_reference,
    assert_refused,
    assert_rows_close_to_reference,
    assert_same_bits,
    gradients_match,
    layouts,
)

OP = "rms_norm"
EPS = 1e-5


def plain(x, weight, eps=EPS):
    """The definition in the precision of ``x``: fp32 norm, rounded, times the weight."""
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.nn.functional.rms_norm(wide, (x.size(1),), eps=eps).to(x.dtype) * weight


def check(x, weight, provider, eps=EPS):
    out = rms_norm(x, weight, eps, backend=provider)
    assert_close_to_reference(out, plain(x, weight, eps), plain(x.double(), weight.double(), eps))
    return out


def draw(rows, width, device, dtype=torch.float32):
    x = torch.randn(rows, width, device=device).to(dtype)
    return x, torch.randn(width, device=device).to(dtype)


@pytest.mark.parametrize("rows", [0, 1, 3, 17])
@pytest.mark.parametrize("width", [1, 7, 64, 129, 1000])
def test_values(rows, width, provider, device, dtype, seed):
    x, weight = draw(rows, width, device, dtype)
    out = check(x, weight, provider)
    assert out.shape == (rows, width) and out.is_contiguous()


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-6, 1.0])
def test_eps(eps, provider, device, dtype, seed):
    x, weight = draw(5, 33, device, dtype)
    check(x * 1e-2, weight, provider, eps)


def test_layouts(provider, device, dtype, seed):
    x, weight = draw(6, 40, device, dtype)
    for variant in layouts(x):
        check(variant, weight, provider)
    spaced = torch.stack((weight, torch.full_like(weight, NAN)), dim=1)[:, 0]
    check(x, spaced, provider)


@pytest.mark.parametrize("width", [5, 64])
def test_adversarial_rows(width, provider, device, dtype):
    x = adversarial_rows(width, dtype).to(device)
    weight = torch.linspace(-1.5, 1.5, width).to(device, dtype)
    out = rms_norm(x, weight, EPS, backend=provider)
    assert_rows_close_to_reference(out, plain(x, weight), plain(x.float(), weight.float()))
    assert (out[:2] == 0).all(), "rows of zeros give zeros"
    assert out[-1].isfinite().all(), "a NaN or inf row leaves its neighbours alone"


def test_rows_are_independent(provider, device, dtype, seed):
    x, weight = draw(9, 48, device, dtype)
    order = torch.randperm(9)
    want = rms_norm(x, weight, EPS, backend=provider)[order]
    assert_same_bits(rms_norm(x[order], weight, EPS, backend=provider), want)


def test_input_is_not_changed(provider, device, seed):
    x, weight = draw(4, 8, device)
    before = x.clone(), weight.clone()
    rms_norm(x, weight, EPS, backend=provider)
    assert_same_bits(x, before[0])
    assert_same_bits(weight, before[1])


def test_gradients(seed):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert gradients_match(lambda x, weight: rms_norm(x, weight, EPS), x, weight)


def valid(device):
    return {"x": torch.ones(2, 4, device=device), "weight": torch.ones(4, device=device)}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("x", torch.ones(4), r".*\[\*, \*\].*, got float32\[4\] on"),
        ("weight", torch.ones(3), r"float32\[4\] on .*, got float32\[3\] on"),
        ("weight", torch.ones(1, 4), r"float32\[4\] on .*, got float32\[1, 4\] on"),
        ("weight", torch.ones(4).half(), r"float32\[4\] on .*, got float16\[4\] on"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    function = partial(rms_norm, backend=provider)
    assert_refused(OP, function, valid(device), argument, value.to(device), message)


def test_bad_dtype():
    x = torch.ones(2, 4, dtype=torch.int32)
    assert_refused(OP, rms_norm, valid("cpu"), "x", x, r"float32\|.*\[\*, \*\], got int32\[2, 4\]")


def test_bad_device():
    function = partial(rms_norm, backend="eager")
    weight = torch.ones(4, device="meta")
    message = r"float32\[4\] on cpu, got float32\[4\] on meta"
    assert_refused(OP, function, valid("cpu"), "weight", weight, message)
