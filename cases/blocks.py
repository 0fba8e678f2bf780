"""Launches of ``transformer_blocks`` and ``core_iterations`` on hostile memory.

Layout, page table and caches are those of ``cases.attention``: cells that nobody may read hold NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch

from cases.attention import make_case
from rdkernels import ops
from rdkernels.cache import LayerCache
from rdkernels.models.blocks import BlockStack, RowLayout
from rdkernels.models.config import BlockStyle
from rdkernels.models.weights import Block, LinearWeight, QuantizedWeight, values_and_scale

EPS = 1e-5
MLP_WIDTH = 40
MATRICES = {name: f"{name}_scale" for name in ops.BLOCK_MATRICES}


@dataclass(frozen=True)
class BlockCase:
    """Arguments of both ops; ``hidden`` is what transformer_blocks starts from."""

    hidden: torch.Tensor  # [N, D]
    embed: torch.Tensor  # [N, D]
    adapter: LinearWeight  # [D, 2D]
    last_norm: torch.Tensor  # [D]
    weights: list[torch.Tensor]
    key_caches: list[torch.Tensor]
    value_caches: list[torch.Tensor]
    layout: tuple[torch.Tensor | None, ...]  # cos_sin, page_table, cu_rows, start, active
    live: torch.Tensor  # [N] bool
    interleaved: bool = True
    placement: str = "sandwich"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the weights of one block."""
        return ops.BLOCK_TENSORS[self.placement]

    @property
    def style(self) -> BlockStyle:
        has_bias = self.weights[self.names.index("qk_bias")].numel() > 0
        rotation = "interleaved" if self.interleaved else "half"
        return BlockStyle(self.placement, rotation, has_bias)

    @property
    def caches(self) -> list[torch.Tensor]:
        return [*self.key_caches, *self.value_caches]

    @property
    def scale(self) -> float:
        return self.key_caches[0].size(3) ** -0.5

    def fresh(self) -> BlockCase:
        """The same launch on copies of the caches."""
        copies = {n: [c.clone() for c in getattr(self, n)] for n in ("key_caches", "value_caches")}
        return replace(self, **copies)

    def to(self, device: str) -> BlockCase:
        return self._mapped(lambda tensor: tensor.to(device))

    def widened(self) -> BlockCase:
        """The same launch in fp64, weights dequantised; positions and angles are what they were."""
        plain = replace(self, adapter=_dequantized(self.adapter), weights=self._plain_weights())
        return replace(plain._mapped(torch.Tensor.double), layout=self.layout, live=self.live)

    def int8(self) -> BlockCase:
        """The same launch with int8 matrices."""
        weights = list(self.weights)
        for matrix, scale in _matrices(weights, self.names):
            quantized = QuantizedWeight.from_weight(weights[matrix])
            weights[matrix], weights[scale] = quantized.values, quantized.scale
        adapter = QuantizedWeight.from_weight(self.adapter)
        return replace(self, adapter=adapter, weights=weights)

    def _plain_weights(self) -> list[torch.Tensor]:
        weights = list(self.weights)
        for matrix, scale in _matrices(weights, self.names):
            weights[matrix] = _dequantized(_linear_weight(weights[matrix], weights[scale]))
            weights[scale] = torch.empty(0)
        return weights

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> BlockCase:
        def mapped(value: object) -> object:
            if isinstance(value, (list, tuple)):
                return type(value)(mapped(element) for element in value)
            if isinstance(value, QuantizedWeight):
                return QuantizedWeight(change(value.values), change(value.scale))
            return change(value) if isinstance(value, torch.Tensor) else value

        return replace(self, **{f.name: mapped(getattr(self, f.name)) for f in fields(self)})

    def block_arguments(self, last_norm: bool = True) -> tuple:
        """Positional schema arguments of ``transformer_blocks``."""
        blocks = (self.weights, self.key_caches, self.value_caches)
        norm = self.last_norm if last_norm else None
        style = (self.placement, self.interleaved)
        return (self.hidden, *blocks, *self.layout, EPS, self.scale, *style, norm)

    def core_arguments(self, iterations: int) -> tuple:
        """Positional schema arguments of ``core_iterations``; the adapter's input comes first."""
        adapter_input = torch.cat((self.hidden, self.embed), dim=1)
        blocks = (self.weights, self.key_caches, self.value_caches)
        options = (iterations, EPS, self.scale, self.placement, self.interleaved)
        return (adapter_input, *values_and_scale(self.adapter), *blocks, *self.layout, *options)

    def op_by_op(self, hidden: torch.Tensor, last_norm: bool = True) -> torch.Tensor:
        """The blocks by the native ops, one after another; writes to the caches of this case."""
        native = ops.bind(hidden, "native")
        blocks, residual = self._blocks(), ops.RESIDUAL_STYLES[self.placement]

        def norm(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
            return x if weight is None else native.rms_norm(x, weight, EPS)

        for i, block in enumerate(blocks):
            cos_sin, *rows, active = self.layout
            bias = block["qk_bias"] if block["qk_bias"].numel() else None
            caches = (self.key_caches[i], self.value_caches[i])
            mixed = native.recurrent_attention(
                _linear(norm(hidden, block.get("norm_1")), block, "wqkv"),
                *(bias, cos_sin, *caches, *rows, active, self.scale, self.interleaved),
            )
            delta = _linear(mixed, block, "attn_proj")
            norms = (block.get("norm_2"), block.get("norm_3"))
            hidden, normed = native.residual_norm(delta, hidden, *norms, EPS, residual)
            normed = hidden if norms[1] is None else normed
            gated = native.swiglu(_linear(normed, block, "mlp_fc"))
            delta = _linear(gated, block, "mlp_proj")
            hidden, _ = native.residual_norm(
                delta, hidden, block.get("norm_4"), None, EPS, residual
            )
        return norm(hidden, self.last_norm if last_norm else None)

    def by_the_model(self, hidden: torch.Tensor, last_norm: bool = True) -> torch.Tensor:
        """The same as the model has it."""
        blocks = []
        for named in self._blocks():
            fields = {name: t for name, t in named.items() if not name.endswith("_scale")}
            fields["qk_bias"] = fields["qk_bias"] if fields["qk_bias"].numel() else None
            for matrix, scale in MATRICES.items():
                fields[matrix] = _linear_weight(named[matrix], named[scale])
            blocks.append(Block(**fields))
        stack = BlockStack(tuple(blocks), self.layout[0], EPS, self.scale, self.style)
        pairs = zip(self.key_caches, self.value_caches, strict=True)
        caches = [LayerCache(*pair) for pair in pairs]
        norm = self.last_norm if last_norm else None

        def linear(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
            return ops.row_linear(x, *values_and_scale(weight), backend="native")

        native, rows = ops.bind(hidden, "native"), RowLayout(*self.layout[1:])
        return stack.op_by_op(native, linear, hidden, caches, rows, norm)

    def _blocks(self) -> list[dict[str, torch.Tensor]]:
        per_block = len(self.names)
        return [
            dict(zip(self.names, self.weights[first : first + per_block], strict=True))
            for first in range(0, len(self.weights), per_block)
        ]


def _linear(x: torch.Tensor, block: dict[str, torch.Tensor], matrix: str) -> torch.Tensor:
    weight = _linear_weight(block[matrix], block[MATRICES[matrix]])
    return ops.row_linear(x, *values_and_scale(weight), backend="native")


def _matrices(weights: list[torch.Tensor], names: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Where the matrices of all blocks and their scales are in a list of weights."""
    for first in range(0, len(weights), len(names)):
        for matrix, scale in MATRICES.items():
            yield first + names.index(matrix), first + names.index(scale)


def _linear_weight(values: torch.Tensor, scale: torch.Tensor) -> LinearWeight:
    return QuantizedWeight(values, scale) if values.dtype == torch.int8 else values


def _dequantized(weight: LinearWeight) -> torch.Tensor:
    if isinstance(weight, QuantizedWeight):
        return weight.values.double() * weight.scale.double()[:, None]
    return weight


def make_block_case(
    start: list[int],
    lengths: list[int],
    *,
    blocks: int = 2,
    width: int = 48,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    mlp_width: int = MLP_WIDTH,
    dtype: torch.dtype = torch.float32,
    bias: bool = True,
    inactive: float = 0.0,
    padding: int = 0,
    interleaved: bool = True,
    placement: str = "sandwich",
    int8: bool = False,
) -> BlockCase:
    """Random weights, states, history and page order."""
    shape = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    options = {"inactive": inactive, "padding": padding, "dtype": dtype}
    case = make_case(start, lengths, **shape, **options)
    rows = len(case.qkv)
    live = torch.arange(rows) < sum(lengths)
    if case.active is not None:
        live &= case.active

    def matrix(*size: int) -> torch.Tensor:
        return (torch.randn(size) / size[-1] ** 0.5).to(dtype)

    def norm() -> torch.Tensor:
        return (1.0 + 0.1 * torch.randn(width)).to(dtype)

    def block() -> list[torch.Tensor]:
        qk_bias = 0.3 * torch.randn(heads + kv_heads, head_dim) if bias else torch.empty(0)
        attention = [matrix((heads + 2 * kv_heads) * head_dim, width), qk_bias.to(dtype)]
        attention.append(matrix(width, heads * head_dim))
        mlp = [matrix(2 * mlp_width, width), matrix(width, mlp_width)]
        scales = [torch.empty(0) for _ in range(4)]
        norms = [norm() for name in ops.BLOCK_TENSORS[placement] if name.startswith("norm")]
        return [*norms, *attention, *mlp, *scales]

    def cache(like: torch.Tensor) -> torch.Tensor:
        return torch.where(like.isnan(), like, torch.randn(like.shape).to(dtype))

    made = BlockCase(
        hidden=torch.randn(rows, width).to(dtype),
        embed=torch.randn(rows, width).to(dtype),
        adapter=matrix(width, 2 * width),
        last_norm=norm(),
        weights=[tensor for _ in range(blocks) for tensor in block()],
        key_caches=[cache(case.key_cache) for _ in range(blocks)],
        value_caches=[cache(case.value_cache) for _ in range(blocks)],
        layout=(case.cos_sin, case.page_table, case.cu_rows, case.start, case.active),
        live=live,
        interleaved=interleaved,
        placement=placement,
    )
    return made.int8() if int8 else made


# Rows of sequences, histories and options: (start, lengths, options of make_block_case).
LAYOUTS = {
    "one row": ([5], [1], {}),
    "no history": ([0], [7], {"bias": False}),
    "batch": ([0, 30, 3], [5, 1, 9], {"interleaved": False}),
    "inactive": ([17, 2, 0], [6, 4, 3], {"inactive": 0.4}),
    "padding": ([3, 40], [4, 2], {"padding": 5, "bias": False}),
    "inactive and padding": ([3, 40], [4, 6], {"padding": 3, "inactive": 0.5, "blocks": 3}),
    "no rows": ([4, 1], [0, 0], {}),
    "one block": ([9], [3], {"blocks": 1, "heads": 2, "kv_heads": 2, "head_dim": 16}),
    "int8": ([17, 2, 0], [6, 4, 3], {"int8": True, "inactive": 0.4, "padding": 2}),
    "int8, one row": ([5], [1], {"int8": True, "bias": False, "width": 33, "mlp_width": 17}),
    "grouped": ([60], [20], {"heads": 6, "kv_heads": 1, "width": 33, "mlp_width": 17}),
    "pre": ([17, 2, 0], [6, 4, 3], {"placement": "pre", "inactive": 0.4, "padding": 2}),
    "pre, no bias": ([3, 40], [4, 2], {"placement": "pre", "interleaved": False, "bias": False}),
    "post": ([0, 30, 3], [5, 1, 9], {"placement": "post", "interleaved": False}),
    "post, int8": ([17, 2], [6, 4], {"placement": "post", "int8": True, "inactive": 0.4}),
}
