"""A recurrent-depth block in a plain PyTorch loop: three ops and the shared KV cache.

No model class, no sampler. Twelve rows are iterated until each has stopped moving; a row that has
converged becomes inactive, and the others go on attending to the K/V that it left in the cache.

    python -m examples.single_ops.bare_loop
"""

import torch
from torch.nn.functional import linear

from rdkernels import SharedKVCache, Wavefront
from rdkernels.ops import exit_update, recurrent_attention, residual_norm

WIDTH, HEADS, HEAD_DIM, ROWS = 64, 4, 16, 12
THRESHOLD, MOST_ITERATIONS = 0.01, 64


def make_block(seed: int = 0) -> dict[str, torch.Tensor]:
    """One attention layer behind an adapter; small weights on the state, so that it settles."""
    draw = torch.Generator().manual_seed(seed)

    def weight(out: int, width: int, gain: float = 1.0) -> torch.Tensor:
        return gain * torch.randn(out, width, generator=draw) / width**0.5

    return {
        "adapter": torch.cat((weight(WIDTH, WIDTH, 0.4), weight(WIDTH, WIDTH)), dim=1),
        "qkv": weight(3 * HEADS * HEAD_DIM, WIDTH),
        "proj": weight(WIDTH, HEADS * HEAD_DIM),
        "norm": torch.ones(WIDTH),
        "embed": torch.randn(ROWS, WIDTH, generator=draw),
    }


def rotary_table(positions: int) -> torch.Tensor:
    """``[positions, d]``: cosines, then sines, of every position's angles."""
    frequency = 10_000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angle = torch.outer(torch.arange(positions).float(), frequency)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def run(block: dict[str, torch.Tensor], threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Iterate to convergence: final states ``[N, D]`` and depths ``[N]``."""
    cache = SharedKVCache(
        prelude_layers=0, core_layers=1, coda_layers=0, num_kv_heads=HEADS, head_dim=HEAD_DIM,
        max_sequences=1, max_tokens=ROWS,
    )  # fmt: skip
    cache.reserve(0, ROWS)
    layer, rows = cache.core[0], Wavefront.from_lengths(start=[0], lengths=[ROWS])
    where = (cache.core_page_table(slot=0), rows.cu_rows, rows.start)
    angles = rotary_table(ROWS)

    state, depth = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, dtype=torch.int32)
    active = torch.ones(ROWS, dtype=torch.bool)
    while active.any() and depth.max() < MOST_ITERATIONS:
        hidden = linear(torch.cat((state, block["embed"]), dim=1), block["adapter"])
        qkv = linear(hidden, block["qkv"])
        mixed = recurrent_attention(qkv, None, angles, layer.key, layer.value, *where, active)
        new, _ = residual_norm(linear(mixed, block["proj"]), hidden, block["norm"], None)
        new = torch.where(active[:, None], new, state)
        _, converged = exit_update(new, state, depth, active, iterations=1, threshold=threshold)
        state, active = new, active & ~converged
    return state, depth


def main() -> None:
    block = make_block()
    state, depth = run(block, THRESHOLD)
    exact, _ = run(block, threshold=0.0)
    error = ((state - exact).norm(dim=1) / exact.norm(dim=1)).max().item()
    print("depth of each row:", *depth.tolist())
    print(f"largest distance from {MOST_ITERATIONS} iterations: {error:.4f}")
    assert depth.max() < MOST_ITERATIONS and depth.min() < depth.max()
    assert error < 3 * THRESHOLD


if __name__ == "__main__":
    main()
