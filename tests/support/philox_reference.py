"""Philox4x32-10 and the keyed draws a second time, in NumPy and the standard library.

Written from Salmon et al. (SC 2011) and the docstrings of ``rdkernels.backends.philox``, with
uint64 products instead of wrapping int64 ones and ``statistics.NormalDist`` instead of ``erfinv``.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import torch

INITIAL_STATE, STATE_NOISE, SAMPLING = 0, 1, 2
_LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter: tuple, key: tuple[int, int]) -> list[np.ndarray]:
    """Four output words (uint64 arrays below 2**32) for four counter words, ten rounds."""
    x = [np.asarray(word, dtype=np.uint64) & _LOW for word in counter]
    k0, k1 = key
    for _ in range(10):
        left = np.uint64(0xD2511F53) * x[0]
        right = np.uint64(0xCD9E8D57) * x[2]
        x = [
            (right >> np.uint64(32)) ^ x[1] ^ np.uint64(k0),
            right & _LOW,
            (left >> np.uint64(32)) ^ x[3] ^ np.uint64(k1),
            left & _LOW,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x


def uniform(row_keys: torch.Tensor, width: int, seed: int, stream: int) -> np.ndarray:
    """``[N, width]`` draws in (0, 1) for keys (sequence id, position, step)."""
    draws = np.empty((len(row_keys), width))
    key = (seed % 2**32, (seed // 2**32) % 2**32)
    for channel in range(width):
        for row, (sequence, position, step) in enumerate(row_keys.tolist()):
            last = (stream << 28) | (step % 2**28)
            block = (channel // 4, position % 2**32, sequence % 2**32, last)
            bits = int(philox4x32(block, key)[channel % 4])
            draws[row, channel] = ((bits >> 8) + 0.5) / 2**24
    return draws


def truncated_normal(
    row_keys: torch.Tensor, width: int, std: float, seed: int, stream: int = INITIAL_STATE
) -> torch.Tensor:
    """``[N, width]`` float64: the quantile of a normal restricted to 3 deviations."""
    normal = NormalDist()
    below, inside = normal.cdf(-3.0), normal.cdf(3.0) - normal.cdf(-3.0)
    quantile = np.vectorize(lambda u: normal.inv_cdf(below + u * inside), otypes=[float])
    return torch.from_numpy(std * quantile(uniform(row_keys, width, seed, stream)))


def gumbel(row_keys: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """``[N, width]`` float64 standard Gumbel noise of the sampling stream, whatever the step."""
    keys = row_keys.clone()
    keys[:, 2] = 0
    return torch.from_numpy(-np.log(-np.log(uniform(keys, width, seed, SAMPLING))))


def random_keys(rows: int, device: str = "cpu") -> torch.Tensor:
    """``[rows, 3]`` int32 keys over the whole range of each field, from torch's generator."""
    sequence = torch.randint(-(2**31), 2**31, (rows,), dtype=torch.int64)
    position = torch.randint(0, 2**20, (rows,))
    step = torch.randint(0, 2**28, (rows,))
    return torch.stack((sequence, position, step), dim=1).int().to(device)
