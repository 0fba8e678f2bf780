"""Counter-based random numbers (Philox4x32-10) in eager PyTorch.

A draw is a pure function of (seed, stream, sequence id, position, step, channel), so noise, initial
states and sampled tokens do not depend on the batch, the shape of the wavefront, the provider or
the device. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

Counter words: ``(channel // 4, position, sequence id, stream << 28 | step)``; key words: the low
and the high half of the seed. Channel ``c`` takes word ``c % 4`` of its block.
"""

from __future__ import annotations

import torch

STREAM_INITIAL_STATE = 0
STREAM_STATE_NOISE = 1
STREAM_SAMPLING = 2
MAX_STEP = 1 << 28

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(counter: tuple[torch.Tensor, ...], seed: int) -> tuple[torch.Tensor, ...]:
    """Four words of 32 random bits (int64 tensors) for four counter words, broadcast together."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        # int64 products wrap modulo 2**64, so their bits are those of the unsigned products.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        hi0, lo0 = (p0 >> 32) & _MASK, p0 & _MASK
        hi1, lo1 = (p1 >> 32) & _MASK, p1 & _MASK
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(row_keys: torch.Tensor, width: int, seed: int, stream: int) -> torch.Tensor:
    """Uniform draws in (0, 1), ``[N, width]`` float64 with 24 random bits, for ``row_keys [N, 3]``.

    ``row_keys`` holds (sequence id, position, step) per row. A value ``u`` is
    ``(bits >> 8) * 2**-24 + 2**-25``: never 0 or 1, and symmetric about 1/2. It has up to 25
    significant bits, one more than float32, where it would round to 1 at the top; ``2u - 1`` is
    exact in float32.
    """
    sequence, position, step = row_keys.to(torch.int64).unsqueeze(-1).unbind(1)
    blocks = torch.arange((width + 3) // 4, device=row_keys.device).unsqueeze(0)
    last = (stream << 28) | (step & (MAX_STEP - 1))
    words = philox((blocks, position & _MASK, sequence & _MASK, last), seed)
    bits = torch.stack(words, dim=-1).flatten(1)[:, :width]
    return (bits >> 8).double() * 2.0**-24 + 2.0**-25


def truncated_normal(
    row_keys: torch.Tensor, width: int, std: float, seed: int, stream: int
) -> torch.Tensor:
    """Normal draws of deviation ``std`` truncated at 3 ``std``, ``[N, width]`` float64.

    Inverse transform: ``sqrt(2) * erfinv((2u - 1) * erf(3 / sqrt(2)))``.
    """
    reach = 0.9973002039367398  # erf(3 / sqrt(2))
    u = uniform(row_keys, width, seed, stream)
    return torch.erfinv((2.0 * u - 1.0) * reach) * (std * 2.0**0.5)
