"""``exit_update`` in Triton: one program per row reads its two states once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.launch import contiguous_rows, flags, launch, row_tile
from rdkernels.backends.triton.numeric import load_tile


@triton.jit
def _finite_or_far(delta):
    """What cannot be measured is infinitely far; -infinity becomes the least fp32."""
    delta = tl.where(delta <= 3.4028234663852886e38, delta, float("inf"))  # NaN fails every test
    return tl.where(delta < -3.4028234663852886e38, -3.4028234663852886e38, delta)


@triton.jit
def exit_update_kernel(
    state,
    previous_state,
    depth,
    active,
    delta,
    converged,
    width,
    iterations,
    threshold,
    state_stride,
    previous_stride,
    depth_stride,
    active_stride,
    COSINE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    state += row * state_stride
    previous_state += row * previous_stride
    depth += row * depth_stride
    if active is not None:
        if tl.load(active + row * active_stride) == 0:
            tl.store(delta + row, 0.0)
            tl.store(converged + row, 0)
            return

    now_squares = tl.zeros([BLOCK], tl.float32)
    change_squares = tl.zeros([BLOCK], tl.float32)
    before_squares = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        now = load_tile(state, first, width, BLOCK)
        before = load_tile(previous_state, first, width, BLOCK)
        now_squares += now * now
        change_squares += (now - before) * (now - before)
        if COSINE:
            before_squares += before * before
            products += now * before

    change = tl.sqrt_rn(tl.sum(change_squares, 0))
    size = tl.sqrt_rn(tl.sum(now_squares, 0))
    if COSINE:
        norms = size * tl.sqrt_rn(tl.sum(before_squares, 0))
        far = _finite_or_far(1.0 - tl.div_rn(tl.sum(products, 0), norms))
        distance = tl.where(norms == 0.0, float("inf"), far)
    else:
        distance = _finite_or_far(tl.div_rn(change, size))
    # Equal states have not moved, whatever their size and the rounding of the quotients.
    distance = tl.where(change == 0.0, 0.0, distance)
    tl.store(delta + row, distance)
    tl.store(converged + row, (distance < threshold).to(tl.uint8))
    tl.store(depth, tl.load(depth) + iterations)


def exit_update(
    state: torch.Tensor,
    previous_state: torch.Tensor,
    depth: torch.Tensor,
    active: torch.Tensor | None,
    iterations: int,
    threshold: float,
    criterion: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    state, previous = contiguous_rows(state), contiguous_rows(previous_state)
    rows, width = state.shape
    delta = torch.empty(rows, dtype=torch.float32, device=state.device)
    converged = torch.empty(rows, dtype=torch.bool, device=state.device)
    launch(
        exit_update_kernel,
        (rows,),
        *(state, previous, depth, flags(active), delta, flags(converged)),
        *(width, iterations, threshold),
        *(state.stride(0), previous.stride(0), depth.stride(0)),
        0 if active is None else active.stride(0),
        on=state,
        COSINE=criterion == "cosine",
        **row_tile(width),
    )
    return delta, converged
