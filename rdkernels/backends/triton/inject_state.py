"""``inject_state`` in Triton: a program mixes one chunk of a row's state and of its embedding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends import philox as specification
from rdkernels.backends.triton.launch import chunk_tile, contiguous_rows, launch
from rdkernels.backends.triton.numeric import narrowed, widened
from rdkernels.backends.triton.philox import random_words, truncated_normal

_NOISE: tl.constexpr = tl.constexpr(specification.STREAM_STATE_NOISE)


@triton.jit(do_not_specialize=["seed"])
def inject_state_kernel(
    state,
    embed,
    previous_embed,
    depth,
    noise_weight,
    row_keys,
    adapter_input,
    mixed_embed,
    width,
    momentum,
    one_minus_momentum,
    seed,
    noise_std,
    state_stride,
    embed_stride,
    previous_stride,
    key_stride,
    PRESERVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    channel = first + tl.arange(0, BLOCK)
    exists = channel < width
    s = tl.load(state + row * state_stride + channel, mask=exists)
    e = tl.load(embed + row * embed_stride + channel, mask=exists)

    if previous_embed is not None:
        if tl.load(depth + row) > 0:  # a new row has no previous embedding to read
            before = tl.load(previous_embed + row * previous_stride + channel, mask=exists)
            mixed = momentum * widened(before) + one_minus_momentum * widened(e)
            e = narrowed(mixed, e.dtype)
    if noise_weight is not None:
        weight = tl.load(noise_weight + row)
        if weight > 0:
            bits = random_words(row_keys + row * key_stride, seed, _NOISE, first, BLOCK)
            noise = truncated_normal(bits) * noise_std
            keep = 1.0 - weight
            if PRESERVE:
                keep = tl.sqrt_rn(tl.maximum(keep * (1.0 + weight), 0.0))
            s = narrowed(keep * widened(s) + weight * noise, s.dtype)

    adapter_row = adapter_input + row * 2 * width
    tl.store(adapter_row + channel, s, mask=exists)
    tl.store(adapter_row + width + channel, e, mask=exists)
    tl.store(mixed_embed + row * width + channel, e, mask=exists)


def inject_state(
    state: torch.Tensor,
    embed: torch.Tensor,
    previous_embed: torch.Tensor | None,
    depth: torch.Tensor | None,
    momentum: float,
    noise_weight: torch.Tensor | None,
    row_keys: torch.Tensor | None,
    seed: int,
    noise_std: float,
    variance_preserving: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    state, embed = contiguous_rows(state), contiguous_rows(embed)
    rows, width = state.shape
    adapter_input = state.new_empty(rows, 2 * width)
    mixed_embed = embed.new_empty(rows, width)
    previous_stride = key_stride = 0
    if previous_embed is not None:
        previous_embed, depth = contiguous_rows(previous_embed), depth.contiguous()
        previous_stride = previous_embed.stride(0)
    if noise_weight is not None:
        noise_weight, row_keys = noise_weight.contiguous(), contiguous_rows(row_keys)
        key_stride = row_keys.stride(0)
    tile = chunk_tile(width)
    launch(
        inject_state_kernel,
        (rows, triton.cdiv(width, tile["BLOCK"])),
        *(state, embed, previous_embed, depth, noise_weight, row_keys, adapter_input, mixed_embed),
        *(width, momentum, 1.0 - momentum, seed, noise_std),
        *(state.stride(0), embed.stride(0), previous_stride, key_stride),
        on=state,
        PRESERVE=variance_preserving,
        **tile,
    )
    return adapter_input, mixed_embed
