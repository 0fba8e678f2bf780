"""The rules of the wavefront in Triton; ``rdkernels/kernels/wavefront.h`` has the picture.

A sequence has ``rows`` rows from position ``start`` on, of which the first ``committed`` leave.
Tokens before position ``known`` are given: what a row predicts there is the token that is there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def front_position(start, rows, committed, finished, corrected, RESTART: tl.constexpr):
    """The first position that no row is left for; a row predicts its token."""
    left = rows
    if RESTART:  # a corrected token voids all rows that were not committed
        left = tl.where((committed < rows) & (finished | corrected), committed, rows)
    return start + left


@triton.jit
def rows_added(front, next_start, limit, known, headway, max_wavefront):
    """Fresh rows. Only rows from position ``known - 1`` on count towards ``max_wavefront``."""
    counted = tl.maximum(front - tl.maximum(known - 1, next_start), 0)
    uncounted = tl.maximum(known - 1 - front, 0)
    room = uncounted + max_wavefront - counted
    return tl.maximum(tl.minimum(tl.minimum(headway, room), limit - 1 - front), 0)


@triton.jit
def next_tokens(
    tokens,
    token_stride,
    sampled,
    position,
    mask,
    start,
    front,
    known,
    max_length,
    RESTART: tl.constexpr,
):
    """What the rows at ``position`` of the next outer step consume.

    ``tokens`` and ``sampled`` point to the sequence's own. A token is read where nobody writes it.
    """
    # Past the front and what is known there is no prediction: a row starts from the token before.
    guessed = (position > front) & (position >= known)
    origin = tl.where(guessed, tl.maximum(front, known - 1), position)
    in_place = (origin < known) | (origin == start)
    if RESTART:
        in_place = in_place | (origin < front)
    held_at = tokens + origin.to(tl.int64) * token_stride
    held = tl.load(held_at, mask=mask & in_place & (origin < max_length), other=0)
    predicted = tl.load(sampled + (origin - start - 1), mask=mask & ~in_place, other=0)
    return tl.where(in_place, held, predicted)
