"""The recurrent-depth model over packed rows: prelude, core block, coda.

``RecurrentDepthModel`` knows nothing of tokens in time: it maps rows of a wavefront to rows. What
to iterate, when to stop and what to commit is the samplers' business.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import linear as torch_linear

from rdkernels import ops
from rdkernels.cache import LayerCache, SharedKVCache
from rdkernels.errors import ArgumentError
from rdkernels.models.blocks import (
    BlockStack,
    DecodeScratch,
    Linear,
    RowLayout,
    few_rows,
    rotary_table,
)
from rdkernels.models.config import ModelConfig
from rdkernels.models.prefill import prefill_states
from rdkernels.models.tokenizer import Tokenizer
from rdkernels.models.weights import (
    Weights,
    quantized_linear,
    tensors_of,
    values_and_scale,
)
from rdkernels.wavefront import Wavefront


class RecurrentDepthModel:
    """A model ``embed -> iterate (r times) -> decode`` over packed rows ``[N, D]``.

    Attributes:
        config: sizes and constants.
        weights: all tensors.
        tokenizer: text to ids and back, or None where the checkpoint has none.
        backend: provider forced for every op, or None for the best that can serve. The environment
            variable RDKERNELS_BACKEND is read when the model is made.
        inference_ops: the ops of the chosen providers, where autograd records nothing.
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
        # A tensor, as a Python number would become a new one at every use; on the CPU, from where
        # every device takes a single number, in more than the precision of half types.
        precise = torch.float64 if self.dtype == torch.float64 else torch.float32
        self._embed_scale = torch.tensor(config.embed_scale, dtype=precise)
        self.inference_ops = ops.bind(torch.empty(0, dtype=self.dtype, device=self.device), backend)
        cpu_only = (name for name, op in ops.OPS.items() if op.cpu_only is not None)
        self._one_call = frozenset(name for name in cpu_only if self._is_native_on_cpu(name))
        self._few_rows = few_rows(config.hidden_size, self.dtype, weights.quantized)
        scale = config.head_dim**-0.5
        self._prelude, self._core, self._coda = (
            BlockStack(blocks, self.cos_sin, config.norm_eps, scale, config.block)
            for blocks in (weights.prelude, weights.core, weights.coda)
        )

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
            tensors = list(tensors_of((self.weights.adapter, self.weights.core)))
        return sum(t.numel() * t.element_size() for t in tensors)

    def new_cache(
        self,
        max_sequences: int,
        max_tokens: int,
        *,
        total_tokens: int | None = None,
        slots: int = 1,
        page_size: int = 64,
    ) -> SharedKVCache:
        """An empty cache that fits this model. See :class:`rdkernels.SharedKVCache`."""
        c = self.config
        return SharedKVCache(
            prelude_layers=c.prelude_layers,
            core_layers=c.core_layers,
            coda_layers=c.coda_layers,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            max_sequences=max_sequences,
            max_tokens=max_tokens,
            total_tokens=total_tokens,
            slots=slots,
            page_size=page_size,
            dtype=self.dtype,
            device=self.device,
        )

    def embed(
        self,
        tokens: torch.Tensor,
        rows: RowLayout,
        cache: SharedKVCache,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Prelude: ``tokens [N]`` int64 -> input embeddings ``[N, D]``; writes its K/V.

        ``out``: where to put them, for instance the right half of an adapter input.
        """
        embedding, scale = self.weights.embedding, self._embed_scale
        if out is None:
            hidden = torch.embedding(embedding, tokens) * scale
        else:
            hidden = torch.index_select(embedding, 0, tokens, out=out).mul_(scale)
        return self._blocks(self._prelude, hidden, cache.prelude, rows, out=out)

    def iterate(
        self,
        adapter_input: torch.Tensor,
        rows: RowLayout,
        cache: SharedKVCache,
        iterations: int = 1,
    ) -> torch.Tensor:
        """Iterations of the core block, in place: ``adapter_input [N, 2D]`` is state | embed.

        All of them write the core layers' K/V to the slots that ``rows`` addresses. A row that no
        launch computes keeps its state.

        Returns:
            The states, a view ``adapter_input[:, :D]``.
        """
        stack, adapter = self._core, self.weights.adapter
        state = adapter_input[:, : self.config.hidden_size]
        if native := self._native("core_iterations", adapter_input, rows):
            arguments = (*values_and_scale(adapter), *stack.arguments(cache.core, rows))
            native.core_iterations(adapter_input, *arguments, iterations, *stack.options)
            return state
        op, linear = self._ops(adapter_input), self._linear(adapter_input)
        live = rows.live(len(state)).unsqueeze(1)
        for _ in range(iterations):
            hidden = stack.op_by_op(op, linear, linear(adapter_input, adapter), cache.core, rows)
            state.copy_(torch.where(live, hidden, state))
        return state

    def decode(
        self,
        state: torch.Tensor,
        rows: RowLayout,
        cache: SharedKVCache,
        select: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        scratch: DecodeScratch | None = None,
    ) -> torch.Tensor:
        """Coda and head: states ``[N, D]`` -> fp32 logits ``[N, V]`` (of rows ``select`` only).

        Writes the coda's K/V of all rows. ``out``: where to put the logits; ``scratch``: memory for
        what comes before them, and then nothing is allocated where native CPU kernels serve.
        """
        hidden, head = scratch or (None, None)
        normed = self.coda(state, rows, cache, out=hidden)
        return self.head(normed if select is None else normed[select], out, head)

    def coda(
        self,
        state: torch.Tensor,
        rows: RowLayout,
        cache: SharedKVCache,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """States ``[N, D]`` -> what the head reads ``[N, D]``; writes the coda's K/V."""
        norm = self.weights.final_norm
        hidden = self._before_coda(state, out)
        return self._blocks(self._coda, hidden, cache.coda, rows, norm, out=out)

    def _before_coda(self, state: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """What the coda reads of the states; a norm writes it to ``out`` if that is given."""
        if not self.config.loop.norm_before_coda:
            return state
        norm, eps, op = self.weights.final_norm, self.config.norm_eps, self._ops(state)
        if out is None:
            return op.rms_norm(state, norm, eps)
        op.rms_norm(state, norm, eps, out=(out,))
        return out

    def head(
        self,
        normed: torch.Tensor,
        out: torch.Tensor | None = None,
        scratch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows ``[N, D]`` of :meth:`coda` -> fp32 logits ``[N, V]``.

        ``scratch``: memory for them in the model's dtype, where that is not the dtype of ``out``.
        """
        weight = self.weights.head
        logits = out if out is not None and out.dtype == self.dtype else scratch
        native = self._native("row_linear", normed)
        if logits is None or native is None:
            logits = self._linear(normed)(normed, weight)
        else:
            native.row_linear(normed, *values_and_scale(weight), out=(logits,))
        if out is None:
            return logits.float()
        return out if logits is out else out.copy_(logits)

    def _native(
        self, name: str, x: torch.Tensor, rows: RowLayout | None = None
    ) -> ops.Bound | None:
        """The ops for tensors like ``x`` if the native CPU kernel ``name`` is to serve, else None.

        It is for few rows, in one launch.
        """
        few = x.size(0) <= self._few_rows and not (rows and rows.later)
        if name not in self._one_call or not few or _is_recorded(x):
            return None
        return self.inference_ops

    def _ops(self, x: torch.Tensor) -> ops.Bound:
        """The ops for tensors like ``x``; eager ones where autograd records it."""
        return ops.bind(x, self.backend) if _is_recorded(x) else self.inference_ops

    def _is_native_on_cpu(self, name: str) -> bool:
        return self.device.type == "cpu" and self.inference_ops.chosen(name) == "native"

    def _linear(self, x: torch.Tensor) -> Linear:
        """What applies linear layers to rows ``x``."""
        if self.weights.quantized:
            return partial(quantized_linear, self._ops(x).row_linear)
        native = self._native("row_linear", x)
        return torch_linear if native is None else native.row_linear

    def _blocks(
        self,
        stack: BlockStack,
        hidden: torch.Tensor,
        caches: list[LayerCache],
        rows: RowLayout,
        last_norm: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows through the prelude or the coda."""
        if native := self._native("transformer_blocks", hidden, rows):
            arguments = (hidden, *stack.arguments(caches, rows), *stack.options)
            if out is None:
                return native.transformer_blocks(*arguments, last_norm)
            native.transformer_blocks(*arguments, last_norm, out=(out,))
            return out
        op, linear = self._ops(hidden), self._linear(hidden)
        result = stack.op_by_op(op, linear, hidden, caches, rows, last_norm)
        return result if out is None else out.copy_(result)

    def rows(self, wavefront: Wavefront, page_table: torch.Tensor) -> RowLayout:
        """The rows of a wavefront on one page table."""
        return RowLayout(page_table, wavefront.cu_rows, wavefront.start, wavefront.active)

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
            ``(logits [B, T, V] fp32, states [B, T, D])``, the states as the coda reads them:
            after the final norm where the loop's style has it there.

        Raises:
            ArgumentError: the tokens are not ids ``[B, T]`` of the vocabulary on the model's
                device, with ``1 <= T <= context``, or ``num_steps`` is not positive.
        """
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
        final = self._before_coda(state)
        return logits.view(batch, length, -1), final.reshape(batch, length, -1)

    def _check_tokens(self, tokens: torch.Tensor) -> None:
        def expect(condition: bool, expected: str, got: object) -> None:
            if not condition:
                raise ArgumentError("forward", "tokens", expected, got)

        context, vocabulary = self.config.context_length, self.config.vocab_size
        expect(tokens.dim() == 2 and tokens.numel() > 0, "[B, T], not empty", list(tokens.shape))
        expect(tokens.size(1) <= context, f"at most {context} positions", tokens.size(1))
        expect(tokens.dtype in (torch.int64, torch.int32), "int64 or int32", tokens.dtype)
        expect(tokens.device == self.device, f"a tensor on {self.device}", tokens.device)
        low, high = (int(bound) for bound in tokens.aminmax())
        inside = low >= 0 and high < vocabulary
        expect(inside, f"ids in [0, {vocabulary})", low if low < 0 else high)


def _is_recorded(x: torch.Tensor) -> bool:
    """Whether autograd records what is done with ``x``."""
    return torch.is_grad_enabled() and x.requires_grad
