"""The recurrent-depth model over packed rows: prelude, core block, coda.

``RecurrentDepthModel`` knows nothing of tokens in time: it maps rows of a wavefront to rows. What
to iterate, when to stop and what to commit is the samplers' business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import linear as torch_linear

from rdkernels import ops
from rdkernels.cache import LayerCache, SharedKVCache
from rdkernels.errors import ArgumentError
from rdkernels.models.config import ModelConfig
from rdkernels.models.quantized import LinearWeight, QuantizedWeight, quantized_linear
from rdkernels.models.tokenizer import Tokenizer
from rdkernels.wavefront import Wavefront

# Up to so many rows the native CPU kernel of row_linear is faster than torch's GEMM.
FEW_ROWS = 32


@dataclass(frozen=True)
class Block:
    """Weights of one transformer block (Huginn's sandwich norms).

    ``x = norm_2(attention(norm_1(x)) + x)``, then ``x = norm_4(mlp(norm_3(x)) + x)``.
    """

    norm_1: torch.Tensor  # [D]
    norm_2: torch.Tensor  # [D]
    norm_3: torch.Tensor  # [D]
    norm_4: torch.Tensor  # [D]
    wqkv: LinearWeight  # [(H + 2 HK) d, D]: q | k | v
    qk_bias: torch.Tensor | None  # [H + HK, d]: q | k
    attn_proj: LinearWeight  # [D, H d]
    mlp_fc: LinearWeight  # [2F, D]: gate | up
    mlp_proj: LinearWeight  # [D, F]


@dataclass(frozen=True)
class Weights:
    """All weights of a model on one device, in one dtype or, all linear layers, int8."""

    embedding: torch.Tensor  # [V, D]
    prelude: tuple[Block, ...]
    adapter: LinearWeight  # [D, 2D]: state | embed
    core: tuple[Block, ...]
    coda: tuple[Block, ...]
    final_norm: torch.Tensor  # [D]: before the coda and before the head
    head: LinearWeight  # [V, D]; where tied the embedding itself, or its int8 copy

    @property
    def quantized(self) -> bool:
        """Whether the linear layers are int8."""
        return isinstance(self.adapter, QuantizedWeight)

    def tensors(self) -> list[torch.Tensor]:
        """Every distinct tensor once; of int8 weights the values and the scale."""
        return list({id(tensor): tensor for tensor in _tensors_of(self)}.values())


def _tensors_of(value: object) -> Iterator[torch.Tensor]:
    """The tensors in a weight, a block or a tuple of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors_of(part)
    elif isinstance(value, Weights | Block | QuantizedWeight):
        for field in fields(value):
            yield from _tensors_of(getattr(value, field.name))


class Rows(NamedTuple):
    """Where packed rows sit, as the attention op wants it.

    For one slot per core layer these are the wavefront and the cache's page table. With more
    slots, rows at different depths become sequences of their own, each with the table of its slot.
    A launch writes a table's cells in no order against the reads of other sequences on that table,
    so where two groups share one, the later group waits for a launch of its own: ``later`` holds
    the active rows of each further launch.
    """

    page_table: torch.Tensor  # [B, max_pages] int32
    cu_rows: torch.Tensor  # [B + 1] int32
    start: torch.Tensor  # [B] int32
    active: torch.Tensor | None  # [N] bool
    later: tuple[torch.Tensor, ...] = ()  # each [N] bool


class RecurrentDepthModel:
    """A Huginn-family model: ``embed -> iterate (r times) -> decode`` over packed rows ``[N, D]``.

    Attributes:
        config: sizes and constants.
        weights: all tensors.
        tokenizer: text to ids and back, or None where the checkpoint has none.
        backend: provider forced for every op, or None for the best that can serve.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        tokenizer: Tokenizer | None = None,
        backend: str | None = None,
    ) -> None:
        self.config, self.weights = config, weights
        self.tokenizer, self.backend = tokenizer, backend
        self.cos_sin = rotary_table(config, self.device)

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.embedding.dtype

    def parameter_bytes(self, part: str | None = None) -> int:
        """Bytes of all weights, or of one ``iterate`` pass with ``part='core'``."""
        tensors = self.weights.tensors()
        if part == "core":
            tensors = list(_tensors_of((self.weights.adapter, self.weights.core)))
        return sum(t.numel() * t.element_size() for t in tensors)

    def new_cache(
        self, max_sequences: int, max_tokens: int, *, slots: int = 1, page_size: int = 64
    ) -> SharedKVCache:
        """An empty cache that fits this model. See :class:`rdkernels.SharedKVCache`."""
        c = self.config
        return SharedKVCache(
            prelude_layers=c.prelude_layers,
            core_layers=c.core_layers,
            coda_layers=c.coda_layers,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            max_sequences=max_sequences,
            max_tokens=max_tokens,
            slots=slots,
            page_size=page_size,
            dtype=self.dtype,
            device=self.device,
        )

    def embed(self, tokens: torch.Tensor, rows: Rows, cache: SharedKVCache) -> torch.Tensor:
        """Prelude: ``tokens [N]`` int64 -> input embeddings ``[N, D]``; writes its K/V."""
        hidden = self.weights.embedding[tokens] * self.config.embed_scale
        return self._blocks(hidden, self.weights.prelude, cache.prelude, rows)

    def iterate(
        self, adapter_input: torch.Tensor, rows: Rows, cache: SharedKVCache
    ) -> torch.Tensor:
        """One iteration of the core block: ``[N, 2D]`` (state | embed) -> next states ``[N, D]``.

        Writes the core layers' K/V to the slots that ``rows`` addresses.
        """
        hidden = self._linear(adapter_input)(adapter_input, self.weights.adapter)
        return self._blocks(hidden, self.weights.core, cache.core, rows)

    def decode(
        self,
        state: torch.Tensor,
        rows: Rows,
        cache: SharedKVCache,
        select: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Coda and head: states ``[N, D]`` -> fp32 logits ``[N, V]`` (of rows ``select`` only).

        Writes the coda's K/V of all rows.
        """
        w, eps = self.weights, self.config.norm_eps
        hidden = ops.rms_norm(state, w.final_norm, eps, backend=self.backend)
        normed = self._blocks(hidden, w.coda, cache.coda, rows, last_norm=w.final_norm)
        if select is not None:
            normed = normed[select]
        return self._linear(normed)(normed, w.head).float()

    def _linear(self, rows: torch.Tensor) -> Callable[[torch.Tensor, LinearWeight], torch.Tensor]:
        """What applies linear layers to ``rows``: torch's GEMM, or a kernel for few rows."""
        if self.weights.quantized:
            return partial(quantized_linear, ops.bind(rows, self.backend).row_linear)
        if rows.size(0) > FEW_ROWS or rows.device.type != "cpu":
            return torch_linear
        serving = ops.bind(rows, self.backend).row_linear
        return torch_linear if serving is ops.OPS["row_linear"].eager else serving

    def _blocks(
        self,
        hidden: torch.Tensor,
        blocks: tuple[Block, ...],
        caches: list[LayerCache],
        rows: Rows,
        last_norm: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run blocks; returns the hidden rows, normalised by ``last_norm`` if that is given."""
        eps, scale = self.config.norm_eps, self.config.head_dim**-0.5
        op, linear = ops.bind(hidden, self.backend), self._linear(hidden)
        normed = op.rms_norm(hidden, blocks[0].norm_1, eps)
        for i, (block, layer) in enumerate(zip(blocks, caches, strict=True)):
            qkv = linear(normed, block.wqkv)
            inputs = (qkv, block.qk_bias, self.cos_sin, layer.key, layer.value, *rows[:3])
            mixed = op.recurrent_attention(*inputs, rows.active, scale, True)
            for active in rows.later:  # rows of other launches come out as zeros
                mixed = mixed + op.recurrent_attention(*inputs, active, scale, True)
            delta = linear(mixed, block.attn_proj)
            norms = (block.norm_2, block.norm_3)
            hidden, normed = op.residual_norm(delta, hidden, *norms, eps, "huginn")
            delta = linear(op.swiglu(linear(normed, block.mlp_fc)), block.mlp_proj)
            norms = (block.norm_4, blocks[i + 1].norm_1 if i + 1 < len(blocks) else last_norm)
            hidden, normed = op.residual_norm(delta, hidden, *norms, eps, "huginn")
        return hidden if last_norm is None else normed

    def rows(self, wavefront: Wavefront, page_table: torch.Tensor) -> Rows:
        """The rows of a wavefront on one page table."""
        return Rows(page_table, wavefront.cu_rows, wavefront.start, wavefront.active)

    @torch.no_grad()
    def forward(
        self,
        tokens: torch.Tensor,
        num_steps: int,
        *,
        seed: int = 0,
        initial_state_scale: float = 1.0,
        slots: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Plain forward pass without sampling: ``tokens [B, T]`` -> logits and final states.

        Returns:
            ``(logits [B, T, V] fp32, states [B, T, D])``, the states after the final norm.

        Raises:
            ArgumentError: the tokens are not ids ``[B, T]`` of the vocabulary on the model's
                device, with ``1 <= T <= context``, or ``num_steps`` is not positive.
        """
        from rdkernels.samplers.prefill import prefill_states

        self._check_tokens(tokens)
        if num_steps < 1:
            raise ArgumentError("forward", "num_steps", "at least 1", num_steps)

        batch, length = tokens.shape
        cache = self.new_cache(batch, length, slots=slots)
        for b in range(batch):
            cache.reserve(b, length)
        wavefront = Wavefront.from_lengths([0] * batch, [length] * batch, self.device)
        ids = torch.arange(batch, dtype=torch.int32, device=self.device)
        state = prefill_states(
            self,
            tokens.flatten(),
            wavefront,
            cache,
            num_steps=num_steps,
            sequence_ids=ids,
            seed=seed,
            initial_state_scale=initial_state_scale,
        )
        logits = self.decode(state, self.rows(wavefront, cache.page_table()), cache)
        normed = ops.rms_norm(
            state, self.weights.final_norm, self.config.norm_eps, backend=self.backend
        )
        return logits.view(batch, length, -1), normed.view(batch, length, -1)

    def _check_tokens(self, tokens: torch.Tensor) -> None:
        def expect(condition: bool, expected: str, got: object) -> None:
            if not condition:
                raise ArgumentError("forward", "tokens", expected, got)

        context, vocabulary = self.config.context, self.config.vocabulary
        expect(tokens.dim() == 2 and tokens.numel() > 0, "[B, T], not empty", list(tokens.shape))
        expect(tokens.size(1) <= context, f"at most {context} positions", tokens.size(1))
        expect(tokens.dtype in (torch.int64, torch.int32), "int64 or int32", tokens.dtype)
        expect(tokens.device == self.device, f"a tensor on {self.device}", tokens.device)
        low, high = (int(bound) for bound in tokens.aminmax())
        inside = low >= 0 and high < vocabulary
        expect(inside, f"ids in [0, {vocabulary})", low if low < 0 else high)


def rotary_table(config: ModelConfig, device: torch.device) -> torch.Tensor:
    """``[context, d]`` fp32: cosines, then sines, of ``position * base**(-2i / d)``."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angle = torch.outer(
        torch.arange(config.context, dtype=torch.float32), 1.0 / config.rope_base**exponent
    )
    return torch.cat((angle.cos(), angle.sin()), dim=1).to(device)
