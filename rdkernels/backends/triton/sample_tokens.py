"""``sample_tokens`` in Triton: one program per row, nothing sorted, nothing written but the token.

The search for the threshold of top-k and top-p is in ``threshold``. Noise decides in fp64, as in
the specification: a tile's scores are first bounded in fp32, and only a tile that may beat the best
token so far is computed exactly.
"""

from __future__ import annotations

import math
import struct

import torch
import triton
import triton.language as tl

from rdkernels.backends import philox as specification
from rdkernels.backends.triton.launch import contiguous_rows, launch
from rdkernels.backends.triton.philox import approximate_gumbel, gumbel, keyed_words
from rdkernels.backends.triton.threshold import (
    MAX_TILE,
    kept_by_top_k,
    kept_by_top_p,
    largest_logit,
    load_logits,
)

_STREAM: tl.constexpr = tl.constexpr(specification.STREAM_SAMPLING)
_GREEDY_TILE = 4096
# More than the noise of two tokens can differ by: one that is further from the largest logit, in
# units of the temperature, can not win.
_GUMBEL_RANGE = 20.25


@triton.jit
def _first_best(score, index):
    """The best score of a tile, and the lowest index that has it."""
    best = tl.max(score, 0)
    return best, tl.min(tl.where(score == best, index, 0x7FFFFFFF), 0)


@triton.jit
def greedy_tokens_kernel(logits, out, vocabulary, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    best = tl.full([], float("-inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for first in range(0, vocabulary, BLOCK):
        index = first + tl.arange(0, BLOCK)
        tile_best, tile_token = _first_best(load_logits(logits, index, vocabulary), index)
        token = tl.where(tile_best > best, tile_token, token)
        best = tl.maximum(best, tile_best)
    tl.store(out + row, token.to(tl.int64))


@triton.jit
def _threshold(
    logits,
    vocabulary,
    largest,
    narrow_temperature,
    reach,
    min_p_offset,
    top_k,
    top_p,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Tokens with a logit below this are not kept, or can not win."""
    least = tl.full([], float("-inf"), tl.float32)
    if TOP_K:
        least = kept_by_top_k(logits, vocabulary, top_k, BITS, BLOCK)
    if TOP_P:
        least = kept_by_top_p(
            logits, vocabulary, least, largest, narrow_temperature, top_p, BITS, BLOCK
        )
    near = largest - reach
    if MIN_P:
        near = tl.maximum(near, largest + min_p_offset)
    # An infinite logit wins, and the difference of two infinities would be NaN.
    return tl.maximum(least, tl.where(largest == float("inf"), largest, near))


@triton.jit
def _noisy_token(
    logits,
    vocabulary,
    threshold,
    temperature,
    narrow_temperature,
    sequence,
    position,
    seed,
    stream,
    BLOCK: tl.constexpr,
):
    """``argmax(logit + temperature * Gumbel)`` over the logits from ``threshold`` on."""
    best = tl.full([], float("-inf"), tl.float64)
    token = tl.full([], 0, tl.int32)
    bar = tl.full([], float("-inf"), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        index = first + tl.arange(0, BLOCK)
        logit = load_logits(logits, index, vocabulary)
        kept = (logit >= threshold) & (logit > float("-inf"))
        if tl.max(kept.to(tl.int32), 0) > 0:
            # One draw per (sequence, position), whatever the step: a row's token settles when its
            # logits do.
            bits = keyed_words(sequence, position, 0, seed, stream, first, BLOCK)
            # Twice what a score in fp32 can be off by: the noise's error, and a few roundings.
            slack = narrow_temperature * (5.0 * 4e-6) + 5e-7 * tl.abs(logit)
            rough = logit + narrow_temperature * approximate_gumbel(bits)
            may_win = kept & ~(rough + slack < bar)
            if tl.max(may_win.to(tl.int32), 0) > 0:
                score = logit.to(tl.float64) + temperature * gumbel(bits)
                score = tl.where(may_win, score, float("-inf"))
                tile_best, tile_token = _first_best(score, index)
                token = tl.where(tile_best > best, tile_token, token)
                best = tl.maximum(best, tile_best)
                bar = best.to(tl.float32)
    return token


@triton.jit(do_not_specialize=["seed", "top_k", "temperature_bits"])
def sample_tokens_kernel(
    logits,
    row_keys,
    out,
    vocabulary,
    logits_stride,
    key_stride,
    seed,
    stream,
    temperature_bits,
    narrow_temperature,
    reach,
    top_k,
    top_p,
    min_p_offset,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    row_keys += row * key_stride
    # A float argument would arrive in fp32.
    temperature = temperature_bits.to(tl.int64).to(tl.float64, bitcast=True)
    largest = largest_logit(logits, vocabulary, BLOCK)
    token = tl.full([], 0, tl.int32)
    if largest > float("-inf"):
        threshold = _threshold(
            logits, vocabulary, largest, narrow_temperature, reach, min_p_offset, top_k, top_p,
            TOP_K, TOP_P, MIN_P, BITS, BLOCK,
        )  # fmt: skip
        token = _noisy_token(
            logits, vocabulary, threshold, temperature, narrow_temperature,
            tl.load(row_keys), tl.load(row_keys + 1), seed, stream, BLOCK,
        )  # fmt: skip
    tl.store(out + row, token.to(tl.int64))


def sample_tokens(
    logits: torch.Tensor,
    row_keys: torch.Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> torch.Tensor:
    logits = contiguous_rows(logits)
    rows, vocabulary = logits.shape
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if temperature == 0.0:
        block = min(triton.next_power_of_2(vocabulary), _GREEDY_TILE)
        arguments = (logits, out, vocabulary, logits.stride(0))
        launch(greedy_tokens_kernel, (rows,), *arguments, on=logits, BLOCK=block, num_warps=8)
        return out
    keys = contiguous_rows(row_keys)
    launch(
        sample_tokens_kernel,
        (rows,),
        *(logits, keys, out, vocabulary, logits.stride(0), keys.stride(0), seed, _STREAM.value),
        struct.unpack("<q", struct.pack("<d", temperature))[0],
        *(temperature, temperature * _GUMBEL_RANGE, top_k, top_p),
        temperature * math.log(min_p) if min_p > 0.0 else 0.0,
        on=logits,
        TOP_K=0 < top_k < vocabulary,
        TOP_P=top_p < 1.0,
        MIN_P=min_p > 0.0,
        BITS={torch.bfloat16: 16, torch.float16: 20}.get(logits.dtype, 32),
        BLOCK=max(16, min(triton.next_power_of_2(vocabulary), MAX_TILE)),
        num_warps=8,
    )
    return out
