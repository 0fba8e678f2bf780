"""``swiglu`` against ``torch.nn.functional.silu``."""

from functools import partial

import pytest
import torch

from rdkernels.ops import swiglu
from tests.support.checking import (
    adversarial_rows,
    assert_close_to_reference,
    assert_refused,
    assert_rows_close_to_reference,
    assert_same_bits,
    gradients_match,
    layouts,
)

OP = "swiglu"


def plain(x):
    """The definition: fp32 (fp64) inside, rounded once."""
    half = x.size(1) // 2
    wide = x if x.dtype == torch.float64 else x.float()
    gate, up = wide[:, :half], wide[:, half:]
    return (gate * torch.sigmoid(gate) * up).to(x.dtype)


def check(x, provider):
    out = swiglu(x, backend=provider)
    assert_close_to_reference(out, plain(x), plain(x.double()))
    return out


@pytest.mark.parametrize("rows", [0, 1, 3, 17])
@pytest.mark.parametrize("half", [0, 1, 7, 64, 129, 1000])
def test_values(rows, half, provider, device, dtype, seed):
    out = check(2 * torch.randn(rows, 2 * half, device=device).to(dtype), provider)
    assert out.shape == (rows, half) and out.is_contiguous()


def test_large_gates_saturate(provider, device, dtype):
    gate = torch.tensor([-200.0, -100.0, -88.0, -20.0, 20.0, 88.0, 100.0, 200.0])
    out = check(torch.cat((gate, torch.ones(8))).unsqueeze(0).to(device, dtype), provider)
    assert_same_bits(out[0, 5:].cpu(), gate[5:].to(dtype))
    assert (out[0, :3].float().abs() < 1e-30).all()


def test_gate_is_the_first_half(provider, device):
    out = swiglu(torch.tensor([[0.0, 5.0]], device=device), backend=provider)
    assert out.item() == 0.0


def test_layouts(provider, device, dtype, seed):
    for variant in layouts(torch.randn(6, 40, device=device).to(dtype)):
        check(variant, provider)


@pytest.mark.parametrize("half", [5, 32])
def test_adversarial_rows(half, provider, device, dtype):
    special = adversarial_rows(half, dtype)
    ordinary = torch.linspace(-2.0, 2.0, half).to(dtype).expand_as(special)
    for x in (torch.cat((special, ordinary), 1), torch.cat((ordinary, special), 1)):
        out = swiglu(x.to(device), backend=provider)
        assert_rows_close_to_reference(out, plain(x), plain(x.double()))
        assert out[-1].isfinite().all(), "a NaN or inf row leaves its neighbours alone"


def test_input_is_not_changed(provider, device, seed):
    x = torch.randn(4, 8, device=device)
    before = x.clone()
    swiglu(x, backend=provider)
    assert_same_bits(x, before)


def test_gradients(seed):
    assert gradients_match(swiglu, torch.randn(3, 6, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(4), r".*\[\*, \*\].*, got float32\[4\] on"),
        (torch.ones(2, 3), r"an even second size \(gate \| up\), got .*\[2, 3\]"),
    ],
)
def test_bad_input(value, message, provider, device):
    arguments = {"x": torch.ones(2, 4, device=device)}
    assert_refused(OP, partial(swiglu, backend=provider), arguments, "x", value, message)


def test_bad_dtype():
    x = torch.ones(2, 4)
    assert_refused(OP, swiglu, {"x": x}, "x", x.int(), r"float32\|.*\[\*, \*\], got int32\[2, 4\]")
