"""A paged KV cache that belongs to another engine, handed to ``recurrent_attention`` as it is.

The engine keeps K and V side by side, ``[blocks, 2, block_size, heads, d]``, in bf16, and knows its
requests as vLLM does. Nothing is copied or converted; the op needs these four things:

    key_cache, value_cache   the two halves of the engine's tensor (views with gaps between pages)
    page_table               its block table, [requests, most blocks] int32
    cu_rows                  its query_start_loc, [requests + 1] int32
    start                    its seq_lens (new tokens included) less the new tokens

    python -m examples.single_ops.foreign_cache
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

from rdkernels.backends.eager.attention import rotate
from rdkernels.ops import recurrent_attention

BLOCKS, BLOCK_SIZE, HEADS, KV_HEADS, HEAD_DIM = 32, 16, 8, 2, 64


def engine_state() -> tuple[torch.Tensor, ...]:
    """Two requests in the middle of decoding: cache, block table, query_start_loc, seq_lens."""
    kv_cache = torch.randn(BLOCKS, 2, BLOCK_SIZE, KV_HEADS, HEAD_DIM).bfloat16()
    block_table = torch.tensor([[29, 3, 17, 8], [11, 30, -1, -1]], dtype=torch.int32)
    query_start_loc = torch.tensor([0, 1, 4], dtype=torch.int32)  # 1 and 3 new tokens
    seq_lens = torch.tensor([50, 20], dtype=torch.int32)
    return kv_cache, block_table, query_start_loc, seq_lens


def reference(qkv: torch.Tensor, cos_sin: torch.Tensor, *engine: torch.Tensor) -> torch.Tensor:
    """The same rows by gathering each request's K and V, and SDPA in fp32."""
    kv_cache, block_table, bounds, seq_lens = engine
    results = []
    for b, length in enumerate(seq_lens.tolist()):
        rows = qkv[bounds[b] : bounds[b + 1]].view(-1, HEADS + 2 * KV_HEADS, HEAD_DIM)
        position = torch.arange(length - len(rows), length)
        query_key, value = rows.split((HEADS + KV_HEADS, KV_HEADS), dim=1)
        query, key = rotate(query_key, cos_sin[position], False).split((HEADS, KV_HEADS), dim=1)
        blocks = block_table[b, : -(-length // BLOCK_SIZE)].long()
        keys, values = (half.flatten(0, 1)[:length] for half in kv_cache[blocks].unbind(1))
        keys[position], values[position] = key, value
        q, k, v = (t.transpose(0, 1).float() for t in (query, keys, values))
        mask = torch.arange(length) <= position[:, None]
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        results.append(mixed.transpose(0, 1).flatten(1))
    return torch.cat(results)


def main() -> None:
    torch.manual_seed(0)
    engine = kv_cache, block_table, query_start_loc, seq_lens = engine_state()
    angle = torch.outer(torch.arange(64.0), 10_000.0 ** -(torch.arange(0, 1, 2 / HEAD_DIM)))
    cos_sin = torch.cat((angle.cos(), angle.sin()), dim=1)
    qkv = torch.randn(4, (HEADS + 2 * KV_HEADS) * HEAD_DIM).bfloat16()
    want, before = reference(qkv, cos_sin, *engine), kv_cache.clone()

    key_cache, value_cache = kv_cache.unbind(1)  # views: the op writes to the engine's memory
    start = seq_lens - query_start_loc.diff()
    out = recurrent_attention(
        qkv, None, cos_sin, key_cache, value_cache, block_table, query_start_loc, start,
        interleaved=False,
    )  # fmt: skip

    error = (out.float() - want).abs().max().item()
    written = (kv_cache != before).any(-1).all(1).all(-1).nonzero().tolist()
    print(f"largest difference from SDPA: {error:.1e}")
    print("cells written (block, offset):", *map(tuple, written))
    assert error < 2e-2  # bf16
    assert written == [[8, 1], [30, 1], [30, 2], [30, 3]]
    kv_cache[[8, 30, 30, 30], :, [1, 1, 2, 3]] = before[[8, 30, 30, 30], :, [1, 1, 2, 3]]
    assert torch.equal(kv_cache, before), "the rest of the engine's cache is untouched"


if __name__ == "__main__":
    main()
