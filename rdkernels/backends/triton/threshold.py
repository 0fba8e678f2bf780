"""The smallest logit that top-k or top-p keeps, without sorting.

Both ask: which is the smallest logit with less than a target weight strictly above it? (top-k:
weight 1, target k. top-p: weight ``exp((logit - largest) / temperature)``, target ``p * total``.)
It is answered digit by digit, as in radix sort, over the bits of the logits in an order-preserving
form, 4 bits per pass over the row: 4 passes for bf16, 5 for fp16, 8 for fp32. A pass adds up the
weights by their next digit in a tile ``[BLOCK, 16]`` of registers, in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rdkernels.backends.triton.numeric import widened

MAX_TILE = 1024  # logits: times 16 digits, 64 registers of each thread of 8 warps
_DIGITS: tl.constexpr = tl.constexpr(16)


@triton.jit
def load_logits(logits, index, vocabulary):
    """Logits in fp32; NaN, and what is past the end, is -infinity."""
    x = widened(tl.load(logits + index, mask=index < vocabulary, other=float("-inf")))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def largest_logit(logits, vocabulary, BLOCK: tl.constexpr):
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        largest = tl.maximum(largest, load_logits(logits, first + tl.arange(0, BLOCK), vocabulary))
    return tl.max(largest, 0)


@triton.jit
def _order_key(x):
    """Unsigned order of the keys is the order of the floats; -0 counts as 0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.uint32, bitcast=True)
    return bits ^ tl.where((bits >> 31) != 0, 0xFFFFFFFF, 0x80000000).to(tl.uint32)


@triton.jit
def _value_of_key(prefix, BITS: tl.constexpr):
    """The float whose key begins with ``prefix``: of a narrow dtype, the rest repeats the sign."""
    rest: tl.constexpr = (1 << (32 - BITS)) - 1
    positive = (prefix >> 31) != 0
    bits = tl.where(positive, prefix ^ 0x80000000, (prefix | rest) ^ 0xFFFFFFFF)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def mass(x, least, largest, temperature):
    """Probability times a constant of the logits from ``least`` on, 0 of the others."""
    # The difference of two infinities would be NaN.
    scaled = tl.where(x == largest, 0.0, tl.div_rn(x - largest, temperature))
    return tl.where(x >= least, tl.exp(scaled), 0.0)


@triton.jit
def _sums_by_digit(
    logits,
    vocabulary,
    prefix,
    shift,
    least,
    largest,
    temperature,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``[16]`` weights of the logits that begin with ``prefix``, by their next digit."""
    digit_of_column = tl.arange(0, _DIGITS).to(tl.uint32)[None, :]
    sums = tl.zeros([BLOCK, _DIGITS], tl.int32 if COUNT else tl.float32)
    for first in range(0, vocabulary, BLOCK):
        index = first + tl.arange(0, BLOCK)
        x = load_logits(logits, index, vocabulary)
        if COUNT:
            weight = (index < vocabulary).to(tl.int32)
        else:
            weight = mass(x, least, largest, temperature)
        digit = (_order_key(x) ^ prefix) >> shift  # 16 or more where an earlier digit differs
        sums += tl.where(digit[:, None] == digit_of_column, weight[:, None], 0)
    return tl.sum(sums, 0)


@triton.jit
def _smallest_kept(
    logits,
    vocabulary,
    share,
    least,
    largest,
    temperature,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The smallest logit with less than the target strictly above it.

    The target is ``share`` itself where logits are counted, else that part of all mass.
    """
    digits = tl.arange(0, _DIGITS)
    is_higher = digits[:, None] > digits[None, :]
    prefix = tl.full([], 0, tl.uint32)  # the digits known so far, and zeros
    above = tl.full([], 0, tl.int32 if COUNT else tl.float32)  # weight with a larger prefix
    target = share + above
    shift = tl.full([], 28, tl.uint32)
    for _ in range(0, BITS // 4):
        sums = _sums_by_digit(
            logits, vocabulary, prefix, shift, least, largest, temperature, COUNT, BLOCK
        )
        if not COUNT:
            target = tl.where(shift == 28, share * tl.sum(sums, 0), target)
        higher = above + tl.sum(tl.where(is_higher, sums[:, None], 0), 0)
        candidate = (sums > 0) & (higher < target)
        found = tl.min(tl.where(candidate, digits, _DIGITS - 1), 0)
        above = tl.sum(tl.where(digits == found, higher, 0), 0)
        prefix = prefix | (found.to(tl.uint32) << shift)
        shift -= 4
    return _value_of_key(prefix, BITS)


@triton.jit
def kept_by_top_k(logits, vocabulary, top_k, BITS: tl.constexpr, BLOCK: tl.constexpr):
    return _smallest_kept(logits, vocabulary, top_k, 0.0, 0.0, 1.0, True, BITS, BLOCK)


@triton.jit
def kept_by_top_p(
    logits, vocabulary, least, largest, temperature, top_p, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The smallest logit that top-p keeps among those from ``least`` on."""
    found = _smallest_kept(
        logits, vocabulary, top_p, least, largest, temperature, False, BITS, BLOCK
    )
    # Equal masses stand or fall together, and a high temperature makes different logits equal.
    least_mass = mass(found, least, largest, temperature)
    smallest = tl.full([BLOCK], float("inf"), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        x = load_logits(logits, first + tl.arange(0, BLOCK), vocabulary)
        kept = mass(x, least, largest, temperature) >= least_mass
        smallest = tl.minimum(smallest, tl.where(kept, x, float("inf")))
    return tl.min(smallest, 0)
