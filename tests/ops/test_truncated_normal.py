"""``truncated_normal``: values against the standard library, moments, bounds, independence."""

import math
from functools import partial

import pytest
import torch

from rdkernels.backends import philox
from rdkernels.ops import truncated_normal
from tests.support import philox_reference
from tests.support.checking import (
    assert_close_to_reference,
    assert_refused,
    assert_same_bits,
)
from tests.support.philox_reference import random_keys

OP = "truncated_normal"


def plain_float(keys, width, std, seed, stream, dtype):
    """The docstring of ``philox.truncated_normal`` in fp32: what the precision allows."""
    u = philox.uniform(keys, width, seed, stream).float()
    z = torch.erfinv((2.0 * u - 1.0) * math.erf(3 / math.sqrt(2))) * math.sqrt(2)
    return (z * std).to(dtype)


@pytest.mark.parametrize("stream", [0, 1])
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (5, 7), (4, 16), (3, 0)])
def test_values(rows, width, stream, provider, device, dtype, seed):
    keys = random_keys(rows)
    out = truncated_normal(
        keys.to(device), width, 0.4, seed, stream=stream, dtype=dtype, backend=provider
    )
    assert out.shape == (rows, width) and out.dtype == dtype
    same = plain_float(keys, width, 0.4, seed, stream, dtype)
    exact = philox_reference.truncated_normal(keys, width, 0.4, seed, stream)
    assert_close_to_reference(out.cpu(), same, exact)


@pytest.mark.parametrize("draw_seed", [0, 2**32, 2**63 - 1, -1])
def test_seeds_of_64_bits(draw_seed, provider, device):
    keys = random_keys(3)
    out = truncated_normal(keys.to(device), 6, 1.0, draw_seed, backend=provider)
    same = plain_float(keys, 6, 1.0, draw_seed, 0, torch.float32)
    exact = philox_reference.truncated_normal(keys, 6, 1.0, draw_seed)
    assert_close_to_reference(out.cpu(), same, exact)


@pytest.mark.slow_interpreted
@pytest.mark.parametrize("std", [0.02, 1.0, 3.5])
def test_moments_and_bounds(std, provider, device, dtype):
    keys = torch.stack([torch.tensor([7, p, 0]) for p in range(200)]).int().to(device)
    out = truncated_normal(keys, 1000, std, 99, dtype=dtype, backend=provider)
    draws = out.double().cpu() / std
    bound = torch.tensor(3.0 * std).to(dtype).double().item() / std  # 3 std may round up
    assert draws.abs().max() <= bound + 1e-6
    assert draws.abs().max() > 2.95, "the tails are there"
    # Of a normal truncated at 3: variance 0.97334, fourth moment 2.6801, mass within one 0.68453.
    assert abs(draws.mean()) < 0.012
    assert abs(draws.square().mean() - 0.97334) < 0.02
    assert abs(draws.pow(4).mean() - 2.680) < 0.15
    assert abs((draws.abs() < 1).double().mean() - 0.68453) < 0.006


@pytest.mark.slow_interpreted
def test_neighbours_are_uncorrelated(provider, device):
    keys = torch.stack([torch.tensor([s, p, 0]) for s in range(50) for p in range(50)]).int()
    draws = truncated_normal(keys.to(device), 16, 1.0, 5, backend=provider).double().cpu()
    for a, b in ((draws[:, 1:], draws[:, :-1]), (draws[1:], draws[:-1]), (draws[50:], draws[:-50])):
        assert abs((a * b).mean()) < 5 / math.sqrt(a.numel())


def test_zero_deviation_gives_zeros(provider, device, dtype):
    out = truncated_normal(random_keys(3, device), 8, 0.0, 1, dtype=dtype, backend=provider)
    assert (out == 0).all()


def test_batch_does_not_matter(provider, device, dtype, seed):
    keys = random_keys(12, device)
    draw = partial(truncated_normal, width=9, std=1.0, seed=seed, dtype=dtype, backend=provider)
    together, order = draw(keys), torch.randperm(12)
    assert_same_bits(draw(keys[order]), together[order])
    for row in range(12):
        assert_same_bits(draw(keys[row : row + 1]), together[row : row + 1])


def test_width_does_not_matter(provider, device, seed):
    keys = random_keys(4, device)
    wide = truncated_normal(keys, 21, 1.0, seed, backend=provider)
    for width in (1, 5, 8, 20):
        narrow = truncated_normal(keys, width, 1.0, seed, backend=provider)
        assert_same_bits(narrow, wide[:, :width])


def test_strided_keys(provider, device, seed):
    keys = random_keys(5, device)
    want = truncated_normal(keys, 8, 1.0, seed, backend=provider)
    assert_same_bits(
        truncated_normal(keys.t().contiguous().t(), 8, 1.0, seed, backend=provider), want
    )
    spaced = torch.stack((keys, keys + 1), dim=1)[:, 0]
    assert_same_bits(truncated_normal(spaced, 8, 1.0, seed, backend=provider), want)


def test_default_is_the_initial_state_stream_in_fp32(provider, device, seed):
    keys = random_keys(2, device)
    out = truncated_normal(keys, 4, 1.0, seed, backend=provider)
    explicit = truncated_normal(keys, 4, 1.0, seed, stream=0, dtype=torch.float32, backend=provider)
    assert_same_bits(out, explicit)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("row_keys", torch.ones(3, dtype=torch.int32), r"int32\[\*, 3\].*, got int32\[3\] on"),
        (
            "row_keys",
            torch.ones(2, 2, dtype=torch.int32),
            r"int32\[\*, 3\].*, got int32\[2, 2\] on",
        ),
        ("width", -1, "a size >= 0, got -1"),
        ("std", -0.5, "a finite deviation >= 0, got -0.5"),
        ("std", float("inf"), "a finite deviation >= 0, got inf"),
        ("std", float("nan"), "a finite deviation >= 0, got nan"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    keys = torch.ones(2, 3, dtype=torch.int32, device=device)
    arguments = {"row_keys": keys, "width": 4, "std": 1.0, "seed": 0, "dtype": torch.float32}
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    function = partial(truncated_normal, backend=provider)
    assert_refused(OP, function, arguments, argument, value, message)


def test_bad_output_dtype():
    arguments = {"row_keys": torch.ones(2, 3, dtype=torch.int32), "width": 4, "std": 1.0, "seed": 0}
    message = "a floating dtype, got .*int32"
    assert_refused(OP, truncated_normal, arguments, "dtype", torch.int32, message)


def test_bad_dtype():
    arguments = {"row_keys": torch.ones(2, 3, dtype=torch.int32), "width": 4, "std": 1.0, "seed": 0}
    message = r"int32\[\*, 3\]( on cpu)?, got int64\[2, 3\] on cpu"
    keys = torch.ones(2, 3, dtype=torch.int64)
    assert_refused(OP, truncated_normal, arguments, "row_keys", keys, message)
