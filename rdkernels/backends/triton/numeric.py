"""Maths that several Triton kernels share: element types, tiles of a row, a logarithm.

A row is worked on in tiles of ``BLOCK`` elements. Most rows are one tile, which stays in registers
between the passes over the row; of a wider row that is the last one, and the others are read again.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rdkernels.backends.triton import interpreted

# The interpreter truncates to bf16 and mistakes its subnormals: there, bits are moved by hand.
INTERPRETED: tl.constexpr = tl.constexpr(interpreted())


@triton.jit
def widened(x):
    """``x`` in fp32, exactly."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """fp32 ``x`` rounded to ``dtype``: to nearest, ties to even; NaN stays NaN."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, bits + (0x7FFF + ((bits >> 16) & 1)), 0x7FFF0000)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def last_tile(width, BLOCK: tl.constexpr):
    """First element of the last tile of a row."""
    return (tl.cdiv(width, BLOCK) - 1) * BLOCK


@triton.jit
def load_tile(row, first, width, BLOCK: tl.constexpr):
    """``row[first : first + BLOCK]`` in fp32, zeros past the width."""
    index = first + tl.arange(0, BLOCK)
    return widened(tl.load(row + index, mask=index < width, other=0.0))


@triton.jit
def store_tile(row, values, first, width, BLOCK: tl.constexpr):
    """``row[first : first + BLOCK] = values``, rounded, up to the width."""
    index = first + tl.arange(0, BLOCK)
    tl.store(row + index, narrowed(values, row.dtype.element_ty), mask=index < width)


@triton.jit
def sum_of_squares(x):
    return tl.sum(x * x, 0)


@triton.jit
def inverse_rms(squares, width, eps):
    return 1.0 / tl.sqrt_rn(squares / width.to(tl.float32) + eps)


@triton.jit
def scaled(x, scale, weight, dtype: tl.constexpr):
    """``x * scale``, rounded to ``dtype``, times the weight; in fp32."""
    return widened(narrowed(x * scale, dtype)) * weight


@triton.jit
def log1p_small(f):
    """``log(1 + f)`` for ``|f| <= 1/3`` within 2 ulp: ``f - f^2 / 2 + f^3 P(f)``."""
    p = f * -0.12238648533821106 + 0.13430239260196686
    p = p * f - 0.12324346601963043
    p = p * f + 0.14117565751075745
    p = p * f - 0.1667134314775467
    p = p * f + 0.2000381052494049
    p = p * f - 0.24999971687793732
    p = p * f + 0.33333319425582886
    square = f * f
    return f + (square * (f * p) - 0.5 * square)


@triton.jit
def log_positive(x):
    """``log(x)`` of positive normal fp32 within 2 ulp: ``x = m * 2^n`` with m in [2/3, 4/3)."""
    bits = x.to(tl.int32, bitcast=True)
    n = (bits - 0x3F2AAAAB) >> 23
    m = (bits - (n << 23)).to(tl.float32, bitcast=True)
    count = n.to(tl.float32)
    # ln(2) in two parts; the first has few bits, so that count times it is exact.
    return count * 0.693359375 + (count * -2.12194440e-4 + log1p_small(m - 1.0))
