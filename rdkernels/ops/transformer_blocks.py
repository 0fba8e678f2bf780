"""``transformer_blocks``: rows through a stack of transformer blocks in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rdkernels.backends.eager import blocks
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import describe, expect, expect_tensor
from rdkernels.ops.row_linear import weight_dtype
from rdkernels.registry import define

BLOCK_TENSORS = blocks.BLOCK_TENSORS
BLOCK_MATRICES = blocks.MATRICES
PLACEMENTS = tuple(BLOCK_TENSORS)
RESIDUAL_STYLES = blocks.RESIDUAL_STYLES

Tensors = Sequence[torch.Tensor]


def check_blocks(
    op: str,
    like: torch.Tensor,
    width: int,
    weights: Tensors,
    key_caches: Tensors,
    value_caches: Tensors,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    active: torch.Tensor | None,
    placement: str,
) -> None:
    """The arguments that this op shares with ``core_iterations``; ``rows``: cos_sin to start."""
    expect(placement in PLACEMENTS, op, "placement", f"one of {PLACEMENTS}", repr(placement))
    names = BLOCK_TENSORS[placement]
    per_block = len(names)
    count, rest = divmod(len(weights), per_block)
    expected = f"{per_block} tensors for each of at least one block"
    expect(count > 0 and rest == 0, op, "weights", expected, f"{len(weights)} tensors")
    for name, caches in (("key_caches", key_caches), ("value_caches", value_caches)):
        expected = f"{count} tensors, one per block"
        expect(len(caches) == count, op, name, expected, f"{len(caches)} tensors")
    sizes = None
    for i, (key, value) in enumerate(zip(key_caches, value_caches, strict=True)):
        tensors = weights[i * per_block : (i + 1) * per_block]
        block = dict(zip(names, tensors, strict=True))
        sizes = _check_block(op, like, width, i, block, key, value, sizes)
    cos_sin, page_table, cu_rows, start = rows
    expect_tensor(op, "cos_sin", cos_sin, (None, key_caches[0].size(3)), torch.float32, like=like)
    expect_tensor(op, "start", start, (None,), torch.int32, like=like)
    expect_tensor(op, "cu_rows", cu_rows, (start.size(0) + 1,), torch.int32, like=like)
    expect_tensor(op, "page_table", page_table, (start.size(0), None), torch.int32, like=like)
    if active is not None:
        expect_tensor(op, "active", active, (like.size(0),), torch.bool, like=like)


def _check_block(
    op: str,
    like: torch.Tensor,
    width: int,
    number: int,
    block: dict[str, torch.Tensor],
    key: torch.Tensor,
    value: torch.Tensor,
    sizes: tuple[int, int, tuple[int, ...]] | None,
) -> tuple[int, int, tuple[int, ...]]:
    """One block; returns heads, MLP width and cache shape, which all blocks have in common."""

    def name(field: str) -> str:
        index = number * len(block) + list(block).index(field)
        return f"weights[{index}] ({field} of block {number})"

    def check(field: str, *shape: int | None, dtype: torch.dtype = like.dtype) -> None:
        expect_tensor(op, name(field), block[field], shape, dtype, like=like)

    def check_matrix(field: str, *shape: int | None) -> None:
        check(field, *shape, dtype=weight_dtype(block[field], like))

    check_matrix("wqkv", None, width)
    check_matrix("mlp_fc", None, width)
    cache_shape = (None,) * 4 if sizes is None else sizes[2]
    expect_tensor(op, f"key_caches[{number}]", key, cache_shape, like.dtype, like=like)
    expect_tensor(op, f"value_caches[{number}]", value, tuple(key.shape), like.dtype, like=like)
    sizes = sizes or _sizes(op, block, key, name)
    heads, mlp_width, (_, _, kv_heads, head_dim) = sizes
    for norm in (field for field in block if field.startswith("norm")):
        check(norm, width)
    check_matrix("wqkv", (heads + 2 * kv_heads) * head_dim, width)
    check_matrix("attn_proj", width, heads * head_dim)
    check_matrix("mlp_fc", 2 * mlp_width, width)
    check_matrix("mlp_proj", width, mlp_width)
    if block["qk_bias"].shape != (0,):
        check("qk_bias", heads + kv_heads, head_dim)
    for matrix in BLOCK_MATRICES:
        field = f"{matrix}_scale"
        if block[matrix].dtype == torch.int8:
            check(field, block[matrix].size(0), dtype=torch.float32)
            continue
        expected = "an empty tensor for a weight that is not int8"
        expect(block[field].numel() == 0, op, name(field), expected, describe(block[field]))
    return sizes


def _sizes(
    op: str, block: dict[str, torch.Tensor], key: torch.Tensor, name: Callable[[str], str]
) -> tuple[int, int, tuple[int, ...]]:
    """Heads, MLP width and cache shape of the first block."""
    page_size, kv_heads, head_dim = key.shape[1:]
    expected = "pages of at least one cell"
    expect(page_size > 0, op, "key_caches[0]", expected, describe(key))
    expect(kv_heads > 0, op, "key_caches[0]", "at least one KV head", describe(key))
    even = head_dim > 0 and head_dim % 2 == 0
    expect(even, op, "key_caches[0]", "an even head_dim", head_dim)
    wqkv, mlp_fc = block["wqkv"], block["mlp_fc"]
    heads = wqkv.size(0) // head_dim - 2 * kv_heads
    fits = wqkv.size(0) % head_dim == 0 and heads > 0 and heads % kv_heads == 0
    expected = f"first size (heads + 2 * {kv_heads}) * {head_dim}, heads a multiple of {kv_heads}"
    expect(fits, op, name("wqkv"), expected, describe(wqkv))
    expected = "an even first size (gate | up)"
    expect(mlp_fc.size(0) % 2 == 0, op, name("mlp_fc"), expected, describe(mlp_fc))
    return heads, mlp_fc.size(0) // 2, tuple(key.shape)


def _check(
    hidden: torch.Tensor,
    weights: Tensors,
    key_caches: Tensors,
    value_caches: Tensors,
    cos_sin: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
    placement: str,
    last_norm: torch.Tensor | None,
) -> None:
    op, rows = "transformer_blocks", (cos_sin, page_table, cu_rows, start)
    expect_tensor(op, "hidden", hidden, (None, None), FLOATS)
    width = hidden.size(1)
    check_blocks(op, hidden, width, weights, key_caches, value_caches, rows, active, placement)
    if last_norm is not None:
        expect_tensor(op, "last_norm", last_norm, (width,), hidden.dtype, like=hidden)


def _fake(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.new_empty(hidden.shape)


OP = define(
    blocks.transformer_blocks,
    check=_check,
    fake=_fake,
    mutates=("key_caches", "value_caches"),
    out=("out",),
    cpu_only="the ops that it is made of serve",
    composed=True,
)


def transformer_blocks(
    hidden: torch.Tensor,
    weights: Tensors,
    key_caches: Tensors,
    value_caches: Tensors,
    cos_sin: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None = None,
    *,
    eps: float = 1e-6,
    scale: float | None = None,
    placement: str = "sandwich",
    interleaved: bool = True,
    last_norm: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Rows through transformer blocks: attention, then a gated MLP, with norms around them.

    ==========  =========================================================================
    placement   a block
    ==========  =========================================================================
    sandwich    ``x = norm_2(attention(norm_1(x)) + x)``, ``x = norm_4(mlp(norm_3(x)) + x)``
    pre         ``x = x + attention(norm_1(x))``, ``x = x + mlp(norm_3(x))``
    post        ``x = x + norm_2(attention(x))``, ``x = x + norm_4(mlp(x))``
    ==========  =========================================================================

    The sums are those of :func:`residual_norm` in the styles huginn, llama and olmo. After the last
    block ``x = last_norm(x)`` if that is given. The attention is :func:`recurrent_attention`, with
    its cache and its inactive rows; those go through the rest of the block like any other, with an
    attention of zero.

    One native call serves a whole stack on the CPU, with the bits of the calls op by op: for few
    rows of a small model, most of the time is in getting to the kernels. Its linear layers are
    :func:`row_linear`, so for many rows torch's GEMMs, op by op, are faster.

    Args:
        hidden: ``[N, D]`` (fp32, bf16, fp16; fp64: eager only).
        weights: 13 tensors per block, 11 where it has two norms, in the order of
            ``BLOCK_TENSORS[placement]``: those of ``norm_1`` to ``norm_4`` ``[D]`` that the table
            names; ``wqkv [(H + 2 HK) d, D]``; ``qk_bias [H + HK, d]`` or empty (``[0]``) for
            none; ``attn_proj [D, H d]``; ``mlp_fc [2 F, D]`` (gate | up);
            ``mlp_proj [D, F]``; then a scale for each of the four matrices, as of
            :func:`row_linear`: fp32, as long as the matrix has rows, where that is int8, else
            empty. All blocks have the same sizes.
        key_caches, value_caches: one ``[pages, page_size, HK, d]`` per block; written.
        cos_sin, page_table, cu_rows, start, active: as for :func:`recurrent_attention`.
        eps: of the norms.
        scale: softmax scale; default ``1 / sqrt(d)``.
        placement: where the norms are: ``sandwich``, ``pre`` or ``post``.
        interleaved: rotate pairs ``(2i, 2i+1)``, else ``(i, i + d/2)``.
        last_norm: ``[D]`` or None.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N, D]``, dtype of ``hidden``. The ``out`` overload may write to ``hidden`` itself.

    Raises:
        ArgumentError: counts, shapes, dtypes or devices do not fit, the placement is unknown, or
            an int8 weight lacks its scale or another weight has one.
        BackendError: the forced provider cannot serve; says why.
    """
    if scale is None:
        scale = default_scale(key_caches)
    rows = (cos_sin, page_table, cu_rows, start, active)
    function = OP.provider(hidden, backend, (hidden, last_norm, *weights))
    return function(
        hidden,
        list(weights),
        list(key_caches),
        list(value_caches),
        *rows,
        eps,
        scale,
        placement,
        interleaved,
        last_norm,
    )


def default_scale(key_caches: Tensors) -> float:
    """``1 / sqrt(d)``; caches of the wrong rank or number must get as far as the checks."""
    return max(key_caches[0].shape[-1:].numel(), 1) ** -0.5 if len(key_caches) else 1.0
