"""Your own attention layer, decoding with ``recurrent_attention`` instead of SDPA.

One set of weights, used in two ways: on all positions of a sequence at once with PyTorch's
scaled_dot_product_attention, and on a few new rows of several sequences against a paged cache.

    python -m examples.single_ops.attention_module
"""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from rdkernels import SharedKVCache, Wavefront
from rdkernels.ops import recurrent_attention

WIDTH, HEADS, KV_HEADS, HEAD_DIM, CONTEXT = 96, 6, 2, 16, 64


class Attention(nn.Module):
    """Causal attention with grouped queries and Llama's rotary embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.proj = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)
        frequency = 10_000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angle = torch.outer(torch.arange(CONTEXT).float(), frequency)
        self.register_buffer("cos_sin", torch.cat((angle.cos(), angle.sin()), dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All positions of one sequence, ``[T, D]``, in plain PyTorch."""
        parts = self.qkv(x).view(len(x), -1, HEAD_DIM).transpose(0, 1)
        q, k, v = parts.split((HEADS, KV_HEADS, KV_HEADS))
        turned = self.rotate(q), self.rotate(k)
        mixed = scaled_dot_product_attention(*turned, v, is_causal=True, enable_gqa=True)
        return self.proj(mixed.transpose(0, 1).flatten(1))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        (cos, sin), (a, b) = self.cos_sin[: x.size(1)].chunk(2, dim=1), x.chunk(2, dim=2)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=2)

    def decode(self, x: torch.Tensor, rows: Wavefront, cache: SharedKVCache) -> torch.Tensor:
        """New rows ``[N, D]`` of several sequences; their K/V go to the cache on the way."""
        layer = cache.core[0]
        mixed = recurrent_attention(
            self.qkv(x), None, self.cos_sin, layer.key, layer.value,
            cache.core_page_table(slot=0), rows.cu_rows, rows.start, interleaved=False,
        )  # fmt: skip
        return self.proj(mixed)


@torch.no_grad()  # the kernels are forward only; with gradients the op would run in eager PyTorch
def main() -> None:
    torch.manual_seed(0)
    attention, lengths = Attention(), (40, 23)
    sequences = [torch.randn(length, WIDTH) for length in lengths]
    cache = SharedKVCache(
        prelude_layers=0, core_layers=1, coda_layers=0, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM,
        max_sequences=2, max_tokens=CONTEXT, page_size=16,
    )  # fmt: skip
    for b, length in enumerate(lengths):
        cache.reserve(b, length)

    # Two prompts at once, then 1 row of the first sequence beside 3 of the second, 5 times.
    done, results = [0, 0], ([], [])
    for counts in [(35, 8)] + 5 * [(1, 3)]:
        rows = Wavefront.from_lengths(start=done, lengths=list(counts))
        new = [x[n : n + more] for x, n, more in zip(sequences, done, counts, strict=True)]
        out = attention.decode(torch.cat(new), rows, cache).split(counts)
        done = [n + more for n, more in zip(done, counts, strict=True)]
        results = [[*old, more] for old, more in zip(results, out, strict=True)]

    for b, x in enumerate(sequences):
        error = (torch.cat(results[b]) - attention(x)).abs().max().item()
        print(f"sequence {b}: {lengths[b]} positions, largest difference from SDPA {error:.1e}")
        assert done[b] == lengths[b] and error < 1e-5


if __name__ == "__main__":
    main()
