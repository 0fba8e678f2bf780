"""``inject_state``: prepares the adapter's input at the start of an outer step."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import state as state_ops
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define


def _check(
    state: torch.Tensor,
    embed: torch.Tensor,
    previous_embed: torch.Tensor | None,
    depth: torch.Tensor | None,
    momentum: float,
    noise_weight: torch.Tensor | None,
    row_keys: torch.Tensor | None,
) -> None:
    op = "inject_state"
    expect_tensor(op, "state", state, (None, None), FLOATS)
    rows = state.size(0)
    expect_tensor(op, "embed", embed, tuple(state.shape), state.dtype, like=state)
    if previous_embed is not None:
        shape = tuple(state.shape)
        expect_tensor(op, "previous_embed", previous_embed, shape, state.dtype, like=state)
        expect(depth is not None, op, "depth", "a tensor beside previous_embed", "None")
        expect_tensor(op, "depth", depth, (rows,), torch.int32, like=state)
        expect(0.0 <= momentum < 1.0, op, "momentum", "0 <= momentum < 1", momentum)
    if noise_weight is not None:
        expect_tensor(op, "noise_weight", noise_weight, (rows,), torch.float32, like=state)
        expect(row_keys is not None, op, "row_keys", "a tensor beside noise_weight", "None")
        expect_tensor(op, "row_keys", row_keys, (rows, 3), torch.int32, like=state)


def _fake(state: torch.Tensor, embed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return state.new_empty(state.size(0), 2 * state.size(1)), embed.new_empty(embed.shape)


OP = define(state_ops.inject_state, check=_check, fake=_fake, out=("adapter_input", "mixed_embed"))


def inject_state(
    state: torch.Tensor,
    embed: torch.Tensor,
    previous_embed: torch.Tensor | None = None,
    depth: torch.Tensor | None = None,
    momentum: float = 0.0,
    noise_weight: torch.Tensor | None = None,
    row_keys: torch.Tensor | None = None,
    seed: int = 0,
    noise_std: float = 1.0,
    variance_preserving: bool = False,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Momentum on the input embedding, noise on the state, and their concatenation.

    Per row: ``e = momentum * previous_embed + (1 - momentum) * embed`` where the row has been
    iterated before (``depth > 0``; a new row takes ``embed`` as it is), and
    ``s = (1 - w) * state + w * z`` where ``w = noise_weight > 0`` and ``z`` is truncated normal
    (3 deviations) keyed by ``(seed, row_keys)``. Mixed in fp32, rounded once. arXiv 2510.14961,
    sections on stabilising (momentum eta, noise beta).

    With ``variance_preserving``, ``s = sqrt(1 - w**2) * state + w * z``: a state as large as the
    noise keeps its size. Beyond ``w = 1`` no state is left.

    Args:
        state: ``[N, D]`` latent states (fp32, bf16, fp16; fp64: eager only).
        embed: ``[N, D]`` prelude output of each row's current token.
        previous_embed: ``[N, D]`` the ``e`` of the previous outer step, or None for no momentum.
        depth: ``[N]`` int32 iterations so far; needed with ``previous_embed``.
        momentum: eta in [0, 1).
        noise_weight: ``[N]`` fp32 beta per row, or None for no noise.
        row_keys: ``[N, 3]`` int32 (sequence id, position, step); needed with ``noise_weight``.
        seed: 64-bit seed of the noise.
        noise_std: deviation of ``z``.
        variance_preserving: which factor the state has beside noise.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``(adapter_input [N, 2D] = s | e, e [N, D])``. Zero rows give empty results.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    tensors = (state, embed, previous_embed)
    function = OP.provider(state, backend, tensors)
    noise = (noise_weight, row_keys, seed, noise_std, variance_preserving)
    return function(*tensors, depth, momentum, *noise)
