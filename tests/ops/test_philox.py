"""The random numbers behind every draw: Philox4x32-10, its counter layout, its statistics."""

import numpy as np
import pytest
import torch

from rdkernels.backends import philox
from tests.support import philox_reference

SEEDS = (0, 1, 2**32 - 1, 2**32, 2**63 - 1, -1, -(2**63))

# Random123, tests/kat_vectors: philox4x32 with 10 rounds; counter, key, result.
KNOWN_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    low, high = words(key)
    block = tuple(torch.tensor([word]) for word in words(counter))
    assert [int(word) for word in philox.philox(block, high << 32 | low)] == words(result)
    reference = philox_reference.philox4x32(tuple(words(counter)), (low, high))
    assert [int(word) for word in reference] == words(result)


def test_random_blocks_match_the_reference(seed):
    counter = torch.randint(0, 2**32, (4, 500))
    key = int(torch.randint(0, 2**62, ()))
    got = torch.stack(philox.philox(tuple(counter), key))
    want = philox_reference.philox4x32(tuple(counter.numpy()), (key % 2**32, key >> 32))
    assert np.array_equal(got.numpy(), np.stack(want).astype(np.int64))


@pytest.mark.parametrize("stream", [0, 1, 2])
@pytest.mark.parametrize("width", [0, 1, 4, 6])
def test_counter_layout(width, stream, seed):
    keys = philox_reference.random_keys(3)
    keys[0] = torch.tensor([-1, 2**31 - 1, 2**28 - 1])  # the ends of every field
    for draw_seed in SEEDS:
        got = philox.uniform(keys, width, draw_seed, stream)
        assert got.shape == (3, width)
        assert np.array_equal(got.numpy(), philox_reference.uniform(keys, width, draw_seed, stream))


def test_every_field_of_the_key_matters(seed):
    keys = philox_reference.random_keys(1)
    base = philox.uniform(keys, 8, seed, 0)
    for field in range(3):
        other = keys.clone()
        other[0, field] ^= 1
        assert not torch.equal(philox.uniform(other, 8, seed, 0), base)
    assert not torch.equal(philox.uniform(keys, 8, seed ^ 1, 0), base)
    assert not torch.equal(philox.uniform(keys, 8, seed ^ (1 << 40), 0), base)
    assert not torch.equal(philox.uniform(keys, 8, seed, 1), base)


def test_a_wider_row_begins_with_the_narrow_one(seed):
    keys = philox_reference.random_keys(3)
    assert torch.equal(philox.uniform(keys, 11, seed, 0)[:, :5], philox.uniform(keys, 5, seed, 0))


def test_uniform_is_open_and_even():
    keys = philox_reference.random_keys(100)
    draws = philox.uniform(keys, 1000, 1234, 0)
    assert draws.min() > 0.0 and draws.max() < 1.0
    symmetric = 2.0 * draws - 1.0
    assert torch.equal(symmetric.float().double(), symmetric), "2u - 1 is exact in float32"
    counts = torch.histc(draws.float(), bins=20, min=0.0, max=1.0)
    expected = draws.numel() / 20
    chi_square = ((counts - expected).square() / expected).sum()
    assert chi_square < 60, "19 degrees of freedom; above 60 with probability 4e-6"


@pytest.mark.parametrize("bits", [0, 2**32 - 1])
def test_extreme_bits(bits, monkeypatch):
    monkeypatch.setattr(
        philox, "philox", lambda counter, seed: (torch.full_like(counter[0], bits),) * 4
    )
    keys = torch.zeros(1, 3, dtype=torch.int32)
    u = philox.uniform(keys, 4, 0, 0)
    assert ((u > 0) & (u < 1)).all()
    z = philox.truncated_normal(keys, 4, 1.0, 0, 0)
    assert ((z.abs() > 2.999) & (z.abs() < 3)).all()
