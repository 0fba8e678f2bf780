"""``truncated_normal``: initial states that depend on nothing but their key."""

from __future__ import annotations

import torch

from rdkernels.backends import philox
from rdkernels.backends.eager import state as state_ops
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define


def _check(row_keys: torch.Tensor, width: int, std: float, dtype: torch.dtype) -> None:
    op = "truncated_normal"
    expect_tensor(op, "row_keys", row_keys, (None, 3), torch.int32)
    expect(width >= 0, op, "width", "a size >= 0", width)
    expect(0.0 <= std < float("inf"), op, "std", "a finite deviation >= 0", std)
    expect(dtype in FLOATS, op, "dtype", "a floating dtype", dtype)


def _fake(row_keys: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    return row_keys.new_empty(row_keys.size(0), width, dtype=dtype)


OP = define(state_ops.truncated_normal, check=_check, fake=_fake, out=("out",))


def truncated_normal(
    row_keys: torch.Tensor,
    width: int,
    std: float,
    seed: int,
    *,
    stream: int = philox.STREAM_INITIAL_STATE,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> torch.Tensor:
    """Normal draws of deviation ``std``, truncated at 3 deviations, keyed per row.

    Channel ``c`` of a row is a pure function of ``(seed, stream, row key, c)`` (Philox4x32-10, see
    ``rdkernels/backends/philox.py``), so it is the same in every batch and on every device.

    Args:
        row_keys: ``[N, 3]`` int32 (sequence id, position, step).
        width: channels per row.
        std: deviation before truncation; 0 gives zeros.
        seed: 64-bit seed.
        stream: which family of draws: 0 initial states, 1 state noise, 2 sampling.
        dtype: of the result.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N, width]`` of ``dtype``.

    Raises:
        ArgumentError: shapes or dtypes do not fit, or std is negative.
        BackendError: the forced provider cannot serve; says why.
    """
    function = OP.provider(row_keys, backend, dtype=dtype)
    return function(row_keys, width, std, seed, stream, dtype)
