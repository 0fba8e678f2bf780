"""Keyed random numbers (Philox4x32-10) in Triton kernels.

The specification is ``rdkernels/backends/philox.py``: the words are its words bit for bit. Normal
and approximate Gumbel draws are computed in fp32 from ``2u - 1`` and ``1 - u``, which are exact
there while ``u`` itself has one bit too many.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rdkernels.backends.triton.numeric import log1p_small, log_positive


@triton.jit
def random_words(row_key, seed, stream, first, BLOCK: tl.constexpr):
    """Random words of the channels ``first ... first + BLOCK`` (both multiples of 4) of a row.

    ``row_key`` points to (sequence id, position, step).
    """
    sequence = tl.load(row_key)
    position = tl.load(row_key + 1)
    step = tl.load(row_key + 2)
    return keyed_words(sequence, position, step, seed, stream, first, BLOCK)


@triton.jit
def keyed_words(sequence, position, step, seed, stream, first, BLOCK: tl.constexpr):
    block = first // 4 + tl.arange(0, BLOCK // 4)
    zero = block * 0
    last = zero + (step & 0xFFFFFFF) + (stream << 28)
    a, b, c, d = tl.philox(seed, block, zero + position, zero + sequence, last)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def truncated_normal(bits):
    """Normal draws of deviation 1 truncated at 3, within about 4 ulp.

    With ``v = 2u - 1`` and ``x = v * erf(3 / sqrt(2))`` the draw is ``v * Q(-log(1 - x^2))``; Q is
    smooth, so one polynomial serves the whole range. ``1 - |x|`` comes from the exact ``1 - |v|``.
    """
    odd = (bits >> 8).to(tl.int32) * 2 + (1 - (1 << 24))
    v = odd.to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    size = tl.abs(v)
    rest = (1.0 - size) + size * 0.002699796063260189  # 1 - |x|
    w = -log_positive(rest * (2.0 - rest)) - 2.625  # about its centre
    q = w * -1.1561522e-08 + 2.0674403e-08
    q = q * w + 6.736138e-07
    q = q * w - 4.3162167e-06
    q = q * w - 1.040831e-05
    q = q * w + 0.00030254392
    q = q * w - 0.001614211
    q = q * w - 0.0065256925
    q = q * w + 0.34630698
    q = q * w + 2.160968
    return v * q


@triton.jit
def gumbel(bits):
    """``-log(-log(u))`` in fp64, as the specification has it."""
    u = (bits >> 8).to(tl.float64) * 5.9604644775390625e-08 + 2.98023223876953125e-08
    return -tl.log(-tl.log(u))


@triton.jit
def approximate_gumbel(bits):
    """The same in fp32, to 4e-6: enough to tell which draws can win."""
    odd = (bits >> 8).to(tl.int32) * 2 + 1
    u = odd.to(tl.float32) * 2.98023223876953125e-08  # 2^-25; exact below 1/2
    rest = ((1 << 25) - odd).to(tl.float32) * 2.98023223876953125e-08  # 1 - u, exact above 1/2
    small = rest < 0.3333333
    log_u = tl.where(small, log1p_small(tl.where(small, -rest, 0.0)), log_positive(u))
    return -log_positive(-log_u)
