"""``carry_rows`` in Triton: a program makes one chunk of a row's state and of its embedding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends import philox as specification
from rdkernels.backends.triton.launch import chunk_tile, contiguous_rows, launch
from rdkernels.backends.triton.numeric import narrowed
from rdkernels.backends.triton.philox import keyed_words, truncated_normal

_INITIAL_STATE: tl.constexpr = tl.constexpr(specification.STREAM_INITIAL_STATE)


@triton.jit(do_not_specialize=["seed"])
def carry_rows_kernel(
    state,
    embed,
    source_row,
    row_keys,
    row_count,
    next_state,
    next_embed,
    width,
    seed,
    std,
    state_stride,
    embed_stride,
    key_stride,
    CONTINUOUS: tl.constexpr,
    DRAWN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    channel = first + tl.arange(0, BLOCK)
    exists = channel < width
    is_row = row < tl.load(row_count)
    source = tl.load(source_row + row).to(tl.int64)
    is_kept = is_row & (source >= 0)
    is_fresh = is_row & (source < 0)

    e = tl.load(embed + source * embed_stride + channel, mask=exists & is_kept, other=0.0)
    if CONTINUOUS:  # a fresh row goes on from the state before it
        before = tl.where(source < 0, -1 - source, source)
        s = tl.load(state + before * state_stride + channel, mask=exists & is_row, other=0.0)
    else:
        s = tl.load(state + source * state_stride + channel, mask=exists & is_kept, other=0.0)
        if DRAWN:
            if is_fresh:
                key = row_keys + row * key_stride
                sequence, position = tl.load(key), tl.load(key + 1)
                bits = keyed_words(sequence, position, 0, seed, _INITIAL_STATE, first, BLOCK)
                s = narrowed(truncated_normal(bits) * std, s.dtype)
    tl.store(next_state + row * width + channel, s, mask=exists)
    tl.store(next_embed + row * width + channel, e, mask=exists)


def carry_rows(
    state: torch.Tensor,
    embed: torch.Tensor,
    source_row: torch.Tensor,
    row_keys: torch.Tensor,
    cu_rows: torch.Tensor,
    seed: int,
    std: float,
    continuous: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    state, embed, keys = contiguous_rows(state), contiguous_rows(embed), contiguous_rows(row_keys)
    rows, width = source_row.size(0), state.size(1)
    next_state, next_embed = state.new_empty(rows, width), embed.new_empty(rows, width)
    tile = chunk_tile(width)
    launch(
        carry_rows_kernel,
        (rows, triton.cdiv(width, tile["BLOCK"])),
        *(state, embed, source_row.contiguous(), keys, cu_rows[-1:], next_state, next_embed),
        *(width, seed, std, state.stride(0), embed.stride(0), keys.stride(0)),
        on=state,
        CONTINUOUS=continuous,
        DRAWN=std > 0.0,
        **tile,
    )
    return next_state, next_embed
