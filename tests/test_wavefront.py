"""Wavefront: which row is which position of which sequence."""

from __future__ import annotations

import random

import pytest
import torch

from rdkernels import Wavefront
from rdkernels.errors import ArgumentError


def test_rows_of_random_wavefronts(seed):
    rng = random.Random(seed)
    for _ in range(50):
        batch = rng.randint(1, 6)
        start = [rng.randint(0, 300) for _ in range(batch)]
        lengths = [rng.choice([0, 0, 1, 2, rng.randint(0, 40)]) for _ in range(batch)]
        wavefront = Wavefront.from_lengths(start, lengths)
        expected = [(b, start[b] + i) for b in range(batch) for i in range(lengths[b])]
        assert wavefront.batch_size == batch
        assert wavefront.num_rows == len(expected)
        rows = zip(wavefront.row_sequence.tolist(), wavefront.row_position.tolist(), strict=True)
        assert list(rows) == expected
        assert wavefront.cu_rows.dtype == wavefront.start.dtype == torch.int32


def test_padding_rows_point_somewhere_harmless():
    """Buffers may be longer than the rows in them: padding must index nothing out of range."""
    real = Wavefront.from_lengths([7, 3], [2, 1])
    padded = Wavefront(real.cu_rows, real.start, num_rows=6)
    assert padded.row_position.tolist() == [7, 8, 3, 0, 0, 0]
    assert padded.row_sequence.tolist() == [0, 0, 1, 1, 1, 1]


def test_no_rows_at_all():
    for wavefront in (Wavefront.from_lengths([], []), Wavefront.from_lengths([4, 9], [0, 0])):
        assert wavefront.num_rows == 0
        assert wavefront.row_sequence.numel() == wavefront.row_position.numel() == 0
        ids = torch.arange(wavefront.batch_size, dtype=torch.int32)
        assert wavefront.row_keys(ids, None).shape == (0, 3)


def test_row_keys_are_sequence_id_position_step():
    wavefront = Wavefront.from_lengths([5, 0], [2, 1])
    ids = torch.tensor([900, 7], dtype=torch.int32)
    step = torch.tensor([4, 0, 8], dtype=torch.int32)
    keys = wavefront.row_keys(ids, step)
    assert keys.dtype == torch.int32
    assert keys.tolist() == [[900, 5, 4], [900, 6, 0], [7, 0, 8]]
    assert wavefront.row_keys(ids, None).tolist() == [[900, 5, 0], [900, 6, 0], [7, 0, 0]]


@pytest.mark.parametrize(
    ("start", "lengths", "named"),
    [([0, 1], [1], "lengths"), ([-1], [1], "start"), ([0], [-1], "lengths")],
)
def test_bad_rows_are_refused(start, lengths, named):
    with pytest.raises(ArgumentError, match=named):
        Wavefront.from_lengths(start, lengths)
