"""``core_iterations``: several iterations of the core block in one call."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import blocks
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.ops.row_linear import check_scale, weight_dtype
from rdkernels.ops.transformer_blocks import Tensors, check_blocks, default_scale
from rdkernels.registry import define


def _check(
    adapter_input: torch.Tensor,
    adapter: torch.Tensor,
    adapter_scale: torch.Tensor | None,
    weights: Tensors,
    key_caches: Tensors,
    value_caches: Tensors,
    cos_sin: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
    iterations: int,
    placement: str,
) -> None:
    op, rows = "core_iterations", (cos_sin, page_table, cu_rows, start)
    expect_tensor(op, "adapter_input", adapter_input, (None, None), FLOATS)
    dtype = weight_dtype(adapter, adapter_input)
    expect_tensor(op, "adapter", adapter, (None, None), dtype, like=adapter_input)
    width = adapter.size(0)
    expect_tensor(op, "adapter", adapter, (width, 2 * width), dtype)
    expect_tensor(op, "adapter_input", adapter_input, (None, 2 * width), adapter_input.dtype)
    check_scale(op, "adapter_scale", adapter_scale, adapter)
    expect(iterations >= 0, op, "iterations", "at least 0", iterations)
    caches = (key_caches, value_caches)
    check_blocks(op, adapter_input, width, weights, *caches, rows, active, placement)


def _fake() -> None:
    return None


OP = define(
    blocks.core_iterations,
    check=_check,
    fake=_fake,
    mutates=("adapter_input", "key_caches", "value_caches"),
    cpu_only="the ops that it is made of serve",
    composed=True,
)


def core_iterations(
    adapter_input: torch.Tensor,
    adapter: torch.Tensor,
    weights: Tensors,
    key_caches: Tensors,
    value_caches: Tensors,
    cos_sin: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None = None,
    *,
    iterations: int = 1,
    adapter_scale: torch.Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
    placement: str = "sandwich",
    interleaved: bool = True,
    backend: str | None = None,
) -> None:
    """Iterate the core block ``iterations`` times on all rows, in place.

    ``adapter_input`` is ``state | embed``. Every iteration computes
    ``transformer_blocks(adapter_input @ adapter.T)`` and makes it the state. An inactive row
    (``active[i]`` false, or ``i >= cu_rows[B]``) keeps its state and its K/V, to which other rows
    still attend. All iterations write the K/V of the same cells: one slot.

    Args:
        adapter_input: ``[N, 2 D]`` (fp32, bf16, fp16; fp64: eager only); its first D columns are
            written. Rows may lie apart; the native kernel wants their elements contiguous.
        adapter: ``[D, 2 D]``, dtype of ``adapter_input``; or int8.
        weights, key_caches, value_caches: of the core block, as for :func:`transformer_blocks`.
        cos_sin, page_table, cu_rows, start, active: as for :func:`recurrent_attention`.
        iterations: how many; 0 changes nothing.
        adapter_scale: ``[D]`` fp32, for an int8 adapter: what its rows are multiplied by.
        eps, scale, placement, interleaved: as for :func:`transformer_blocks`.
        backend: force ``native``, ``triton`` or ``eager``.

    Raises:
        ArgumentError: counts, shapes, dtypes or devices do not fit, the placement is unknown, or
            an int8 weight lacks its scale or another weight has one.
        BackendError: the forced provider cannot serve; says why.
    """
    if scale is None:
        scale = default_scale(key_caches)
    blocks = (list(weights), list(key_caches), list(value_caches))
    rows = (cos_sin, page_table, cu_rows, start, active)
    function = OP.provider(
        adapter_input, backend, (adapter_input, adapter, adapter_scale, *weights)
    )
    options = (iterations, eps, scale, placement, interleaved)
    function(adapter_input, adapter, adapter_scale, *blocks, *rows, *options)
