"""``exit_update``: has a row's state stopped moving, and how deep is it now?"""

from __future__ import annotations

import torch

from rdkernels.backends.eager import state as state_ops
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define


def _check(
    state: torch.Tensor,
    previous_state: torch.Tensor,
    depth: torch.Tensor,
    active: torch.Tensor | None,
    criterion: str,
) -> None:
    op = "exit_update"
    expect_tensor(op, "state", state, (None, None), FLOATS)
    shape = tuple(state.shape)
    expect_tensor(op, "previous_state", previous_state, shape, state.dtype, like=state)
    expect_tensor(op, "depth", depth, shape[:1], torch.int32, like=state)
    if active is not None:
        expect_tensor(op, "active", active, shape[:1], torch.bool, like=state)
    known = criterion in state_ops.CRITERIA
    expect(known, op, "criterion", f"one of {state_ops.CRITERIA}", repr(criterion))


def _fake(state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = state.size(0)
    return state.new_empty(rows, dtype=torch.float32), state.new_empty(rows, dtype=torch.bool)


OP = define(
    state_ops.exit_update,
    check=_check,
    fake=_fake,
    mutates=("depth",),
    out=("delta", "converged"),
)


def exit_update(
    state: torch.Tensor,
    previous_state: torch.Tensor,
    depth: torch.Tensor,
    active: torch.Tensor | None = None,
    *,
    iterations: int,
    threshold: float,
    criterion: str = "latent-diff",
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Count iterations and test convergence of every row, against the same row's earlier state.

    ``delta = ||s - s_prev|| / ||s||`` (``latent-diff``) or ``1 - cos(s, s_prev)`` (``cosine``),
    sums in fp32; ``converged = delta < threshold``; ``depth += iterations``. What cannot be
    measured (a zero, infinite or NaN state) is infinitely far; two equal finite states, zero or
    not, have delta 0.

    Args:
        state: ``[N, D]`` states now (fp32, bf16, fp16; fp64: eager only).
        previous_state: ``[N, D]`` states of the same rows before ``iterations`` iterations.
        depth: ``[N]`` int32; increased in place for active rows.
        active: ``[N]`` bool or None. An inactive row has delta 0, is not converged, keeps depth.
        iterations: added to the depth.
        threshold: eps of arXiv 2510.14961.
        criterion: ``latent-diff`` or ``cosine``.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``(delta [N] fp32, converged [N] bool)``; never NaN.

    Raises:
        ArgumentError: shapes, dtypes, devices or the criterion do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    tensors = (state, previous_state, depth, active)
    return OP.provider(state, backend)(*tensors, iterations, threshold, criterion)
