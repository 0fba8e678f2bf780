"""``residual_norm`` in its three styles against ``torch.nn.functional.rms_norm``."""

from functools import partial

import pytest
import torch

from rdkernels.ops import residual_norm, rms_norm
from tests.support.checking import (
    adversarial_rows,
    assert_close_to_reference,
    assert_refused,
    assert_rows_close_to_reference,
    assert_same_bits,
    gradients_match,
    layouts,
)

OP = "residual_norm"
EPS = 1e-5
STYLES = ("huginn", "llama", "olmo")


def plain(delta, residual, post, pre, style, eps=EPS):
    """The table of the docstring, with ``round`` to the dtype of ``residual``."""
    dtype, shape = residual.dtype, (residual.size(1),)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def norm(x):
        return torch.nn.functional.rms_norm(x.to(wide), shape, eps=eps)

    if style == "olmo":
        hidden = (norm(delta) * post.to(wide) + residual.to(wide)).to(dtype)
    else:
        hidden = delta.to(wide) + residual.to(wide)
        hidden = hidden.to(dtype) if style == "llama" else norm(hidden).to(dtype) * post
    return hidden, None if pre is None else norm(hidden).to(dtype) * pre


def check(delta, residual, post, pre, style, provider, wide=torch.float64, by_row=False):
    assert_close = assert_rows_close_to_reference if by_row else assert_close_to_reference
    got = residual_norm(delta, residual, post, pre, EPS, style, backend=provider)
    tensors = (delta, residual, post, pre)
    same = plain(*tensors, style)
    exact = plain(*(None if t is None else t.to(wide) for t in tensors), style)
    assert_close(got[0], same[0], exact[0])
    if pre is None:
        assert got[1] is None
    else:
        assert_close(got[1], same[1], exact[1])
    return got


def draw(rows, width, style, device, dtype=torch.float32):
    delta, residual = torch.randn(2, rows, width, device=device).to(dtype).unbind()
    post, pre = torch.randn(2, width, device=device).to(dtype).unbind()
    return delta, residual, None if style == "llama" else post, pre


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (3, 7), (17, 129), (2, 1000), (5, 64)])
def test_values(rows, width, style, provider, device, dtype, seed):
    delta, residual, post, pre = draw(rows, width, style, device, dtype)
    hidden, normed = check(delta, residual, post, pre, style, provider)
    assert hidden.shape == normed.shape == (rows, width)
    check(delta, residual, post, None, style, provider)


def test_llama_hidden_is_the_sum(provider, device, dtype, seed):
    delta, residual, _, _ = draw(4, 16, "llama", device, dtype)
    hidden, normed = residual_norm(delta, residual, None, None, EPS, "llama", backend=provider)
    assert_same_bits(hidden, (delta.float() + residual.float()).to(dtype))
    assert normed is None


def test_olmo_norms_only_the_delta(provider, device):
    residual = torch.full((1, 4), 100.0, device=device)
    delta = torch.tensor([[3.0, -3.0, 3.0, -3.0]], device=device)
    ones = torch.ones(4, device=device)
    hidden, _ = residual_norm(delta, residual, ones, None, 0.0, "olmo", backend=provider)
    assert hidden.tolist() == [[101.0, 99.0, 101.0, 99.0]]


@pytest.mark.parametrize("style", STYLES)
def test_normed_is_rms_norm_of_hidden(style, provider, device, dtype, seed):
    delta, residual, post, pre = draw(6, 48, style, device, dtype)
    hidden, normed = residual_norm(delta, residual, post, pre, EPS, style, backend=provider)
    assert_same_bits(normed, rms_norm(hidden, pre, EPS, backend=provider))


@pytest.mark.parametrize("style", STYLES)
def test_layouts(style, provider, device, dtype, seed):
    delta, residual, post, pre = draw(6, 40, style, device, dtype)
    for strided_delta, strided_residual in zip(layouts(delta), layouts(residual), strict=True):
        check(strided_delta, residual, post, pre, style, provider)
        check(delta, strided_residual, post, pre, style, provider)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("width", [5, 64])
def test_adversarial_rows(width, style, provider, device, dtype):
    special = adversarial_rows(width, dtype).to(device)
    zeros = torch.zeros_like(special)
    post = torch.linspace(-1.5, 1.5, width).to(device, dtype)
    pre = torch.linspace(0.5, 2.5, width).to(device, dtype)
    for delta, residual in ((special, zeros), (zeros, special), (special, special)):
        tensors = (delta, residual, None if style == "llama" else post, pre)
        hidden, normed = check(*tensors, style, provider, wide=torch.float32, by_row=True)
        assert (hidden[:2] == 0).all() and (normed[:2] == 0).all()
        assert normed[-1].isfinite().all(), "a NaN or inf row leaves its neighbours alone"


def test_opposite_inputs_cancel(provider, device, dtype, seed):
    delta, _, post, pre = draw(3, 32, "huginn", device, dtype)
    hidden, normed = residual_norm(delta, -delta, post, pre, EPS, backend=provider)
    assert (hidden == 0).all() and (normed == 0).all()


def test_inputs_are_not_changed(provider, device, seed):
    tensors = draw(4, 8, "huginn", device)
    before = [t.clone() for t in tensors]
    residual_norm(*tensors, EPS, backend=provider)
    for tensor, copy in zip(tensors, before, strict=True):
        assert_same_bits(tensor, copy)


@pytest.mark.parametrize("style", STYLES)
def test_gradients(style, seed):
    tensors = [t for t in draw(3, 5, style, "cpu", torch.float64) if t is not None]

    def function(delta, residual, *weights):
        post, pre = weights if style != "llama" else (None, *weights)
        return residual_norm(delta, residual, post, pre, EPS, style)

    assert gradients_match(function, *(t.requires_grad_() for t in tensors))


def valid(device):
    x = torch.ones(2, 4, device=device)
    weight = torch.ones(4, device=device)
    return {"delta": x, "residual": x, "post_weight": weight, "pre_weight": weight}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("residual", torch.ones(4), r".*\[\*, \*\].*, got float32\[4\] on"),
        ("delta", torch.ones(3, 4), r"float32\[2, 4\] on .*, got float32\[3, 4\] on"),
        ("delta", torch.ones(2, 4).half(), r"float32\[2, 4\] on .*, got float16\[2, 4\] on"),
        ("post_weight", torch.ones(3), r"float32\[4\] on .*, got float32\[3\] on"),
        ("post_weight", torch.ones(4).half(), r"float32\[4\] on .*, got float16\[4\] on"),
        ("pre_weight", torch.ones(5), r"float32\[4\] on .*, got float32\[5\] on"),
        ("pre_weight", torch.ones(4).half(), r"float32\[4\] on .*, got float16\[4\] on"),
        ("post_weight", None, "a weight for style 'huginn', got None"),
        ("style", "gemma", r"one of \('huginn', 'llama', 'olmo'\), got 'gemma'"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    function = partial(residual_norm, backend=provider)
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    assert_refused(OP, function, valid(device), argument, value, message)


def test_llama_takes_no_post_weight(provider, device):
    arguments = valid(device) | {"style": "llama", "post_weight": None}
    function = partial(residual_norm, backend=provider)
    message = "None for style 'llama', got a weight"
    assert_refused(OP, function, arguments, "post_weight", torch.ones(4, device=device), message)


def test_bad_dtype():
    residual = torch.ones(2, 4, dtype=torch.int32)
    message = r"float32\|.*\[\*, \*\], got int32\[2, 4\]"
    assert_refused(OP, residual_norm, valid("cpu"), "residual", residual, message)


@pytest.mark.parametrize("argument", ["delta", "post_weight", "pre_weight"])
def test_bad_device(argument):
    arguments = valid("cpu")
    function = partial(residual_norm, backend="eager")
    value = arguments[argument].to("meta")
    assert_refused(OP, function, arguments, argument, value, "float32.* on cpu, got .* on meta")
