"""All ops served by the CUDA kernels in the emulator, as the native provider would serve them.

``EmulatedOps.serve()`` takes the place of the provider ``native``: a model that is loaded with
``backend="native"`` then runs every op through its kernel. Arguments and results are those of the
schemas.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from rdkernels.backends import eager
from rdkernels.ops import OPS
from rdkernels.registry import Provider, Serving, choice, copying, forget_choices

from .attention_case import Case, Result
from .build import load_module
from .tensors import DTYPES, address

_CRITERIA = {"latent-diff": 0, "cosine": 1}
_STYLES = {"huginn": 0, "llama": 1, "olmo": 2}
_WITH_MODULE_OF_THEIR_OWN = (
    "advance_wavefront",
    "carry_rows",
    "exit_update",
    "inject_state",
    "recurrent_attention",
    "sample_tokens",
    "truncated_normal",
)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """With contiguous rows, as the binding passes tensors on."""
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) <= 1 else tensor.contiguous()


def _array(tensor: torch.Tensor | None) -> tuple[int, int]:
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), tensor.stride(0) if tensor.dim() == 2 else 0


class EmulatedOps:
    """The ops; ``calls`` counts them by name.

    Args:
        options: of every emulated launch; see ``simt_pybind.h``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = {"count_memory": False} | options
        self.calls: Counter[str] = Counter()
        self._modules: dict[str, ModuleType] = {
            op: load_module(f"tests/simt/{op}_emulated.cpp") for op in _WITH_MODULE_OF_THEIR_OWN
        }
        self._row_kernels = load_module("tests/simt/row_kernels.cpp")

    def __call__(self, op: str, *args: Any) -> Any:
        self.calls[op] += 1
        return getattr(self, f"_{op}")(*args)

    @contextmanager
    def serve(self) -> Iterator[None]:
        """In this block, the provider ``native`` is the emulator."""

        with mock.patch.object(choice, "_PROVIDERS", self._providers()):
            forget_choices()
            try:
                yield
            finally:
                forget_choices()

    def _providers(self) -> dict[str, Provider]:
        """This emulator as the provider ``native``, and eager; nobody else."""

        def reason(op: str, device: str, dtype: torch.dtype) -> str | None:
            return None if OPS[op].cpu_only is None else f"{op} has no CUDA kernel"

        def function(op: str) -> Serving:
            return copying(OPS[op], partial(self, op))

        native = SimpleNamespace(reason=reason, only_by_name=eager.only_by_name, function=function)
        return {"native": native, "triton": eager, "eager": eager}

    def _launch(self, op: str, fields: dict[str, Any], *dtype: int) -> None:
        self._modules[op].run(fields, *dtype, **self.options)

    # ---- one method per op, with the positional arguments of its schema ----

    def _rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x, out = _rows(x), x.new_full(x.shape, math.nan)
        arrays = map(_array, (x, weight, out))
        self._row_kernels.rms_norm(DTYPES[x.dtype], *x.shape, *arrays, eps, **self.options)
        return out

    def _residual_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        post_weight: torch.Tensor | None,
        pre_weight: torch.Tensor | None,
        eps: float,
        style: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        delta, residual = _rows(delta), _rows(residual)
        hidden = residual.new_full(residual.shape, math.nan)
        normed = residual.new_empty(0) if pre_weight is None else torch.full_like(hidden, math.nan)
        target = None if pre_weight is None else normed
        arrays = map(_array, (delta, residual, post_weight, pre_weight, hidden, target))
        sizes = (DTYPES[delta.dtype], *delta.shape)
        self._row_kernels.residual_norm(*sizes, *arrays, eps, _STYLES[style], **self.options)
        return hidden, normed

    def _swiglu(self, x: torch.Tensor) -> torch.Tensor:
        x, width = _rows(x), x.size(1) // 2
        out = x.new_full((x.size(0), width), math.nan)
        sizes = (DTYPES[x.dtype], x.size(0), width)
        self._row_kernels.swiglu(*sizes, _array(x), _array(out), **self.options)
        return out

    def _recurrent_attention(
        self,
        qkv: torch.Tensor,
        qk_bias: torch.Tensor | None,
        cos_sin: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        page_table: torch.Tensor,
        cu_rows: torch.Tensor,
        start: torch.Tensor,
        active: torch.Tensor | None,
        scale: float,
        interleaved: bool,
    ) -> torch.Tensor:
        layout = (_rows(page_table), cu_rows, start, active, scale, interleaved)
        case = Case(_rows(qkv), qk_bias, cos_sin, key_cache, value_cache, *layout, seed=0)
        result = Result(
            qkv.new_full((qkv.size(0), case.num_heads * key_cache.size(3)), math.nan),
            key_cache,
            value_cache,
        )
        module, code = self._modules["recurrent_attention"], DTYPES[qkv.dtype]
        fields = case.fields(result)
        size = module.plan(fields, code)["workspace_bytes"]
        workspace = torch.full((size // 4,), math.nan)
        fields["workspace"] = workspace.data_ptr() if size else 0
        self._launch("recurrent_attention", fields, code)
        return result.out

    def _inject_state(
        self,
        state: torch.Tensor,
        embed: torch.Tensor,
        previous_embed: torch.Tensor | None,
        depth: torch.Tensor | None,
        momentum: float,
        noise_weight: torch.Tensor | None,
        row_keys: torch.Tensor | None,
        seed: int,
        noise_std: float,
        variance_preserving: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state, embed = _rows(state), _rows(embed)
        rows, width = state.shape
        adapter_input = state.new_full((rows, 2 * width), math.nan)
        mixed_embed = state.new_full((rows, width), math.nan)
        fields = {
            "state": address(state),
            "embed": address(embed),
            "previous_embed": address(previous_embed),
            "depth": 0 if previous_embed is None else address(depth),
            "noise_weight": address(noise_weight),
            "row_keys": 0 if noise_weight is None else address(row_keys),
            "adapter_input": address(adapter_input),
            "mixed_embed": address(mixed_embed),
            "rows": rows,
            "width": width,
            "state_stride": state.stride(0),
            "embed_stride": embed.stride(0),
            "previous_stride": 0 if previous_embed is None else previous_embed.stride(0),
            "key_stride": 0 if noise_weight is None else row_keys.stride(0),
            "adapter_stride": adapter_input.stride(0),
            "mixed_stride": mixed_embed.stride(0),
            "momentum": momentum,
            "one_minus_momentum": 1.0 - momentum,
            "noise_std": noise_std,
            "variance_preserving": variance_preserving,
            "seed": seed % 2**64,
        }
        self._launch("inject_state", fields, DTYPES[state.dtype])
        return adapter_input, mixed_embed

    def _exit_update(
        self,
        state: torch.Tensor,
        previous_state: torch.Tensor,
        depth: torch.Tensor,
        active: torch.Tensor | None,
        iterations: int,
        threshold: float,
        criterion: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state, previous_state = _rows(state), _rows(previous_state)
        rows, width = state.shape
        delta = torch.full((rows,), math.nan)
        converged = torch.empty(rows, dtype=torch.bool)
        fields = {
            "state": address(state),
            "previous_state": address(previous_state),
            "active": address(active),
            "depth": address(depth),
            "delta": address(delta),
            "converged": address(converged),
            "rows": rows,
            "width": width,
            "state_stride": state.stride(0),
            "previous_stride": previous_state.stride(0),
            "iterations": iterations,
            "threshold": threshold,
            "criterion": _CRITERIA[criterion],
        }
        self._launch("exit_update", fields, DTYPES[state.dtype])
        return delta, converged

    def _truncated_normal(
        self,
        row_keys: torch.Tensor,
        width: int,
        std: float,
        seed: int,
        stream: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        row_keys, out = _rows(row_keys), torch.full((len(row_keys), width), math.nan, dtype=dtype)
        fields = {
            "row_keys": address(row_keys),
            "out": address(out),
            "rows": len(row_keys),
            "width": width,
            "key_stride": row_keys.stride(0),
            "out_stride": out.stride(0),
            "seed": seed % 2**64,
            "stream": stream,
            "std": std,
        }
        self._launch("truncated_normal", fields, DTYPES[dtype])
        return out

    def _sample_tokens(
        self,
        logits: torch.Tensor,
        row_keys: torch.Tensor | None,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        seed: int,
    ) -> torch.Tensor:
        logits, out = _rows(logits), torch.full((len(logits),), -1, dtype=torch.int64)
        fields = {
            "logits": address(logits),
            "row_keys": address(row_keys),
            "out": address(out),
            "rows": logits.size(0),
            "vocabulary": logits.size(1),
            "logits_stride": logits.stride(0),
            "key_stride": 0 if row_keys is None else row_keys.stride(0),
            "seed": seed % 2**64,
            "top_k": top_k,
            "temperature": temperature,
            "top_p": top_p,
            "min_p_offset": temperature * math.log(min_p) if min_p > 0.0 else -math.inf,
        }
        self._launch("sample_tokens", fields, DTYPES[logits.dtype])
        return out

    def _advance_wavefront(
        self,
        tokens: torch.Tensor,
        start: torch.Tensor,
        done: torch.Tensor,
        committed_depth: torch.Tensor,
        sampled: torch.Tensor,
        settled: torch.Tensor,
        depth: torch.Tensor,
        cu_rows: torch.Tensor,
        limit: torch.Tensor,
        known: torch.Tensor,
        sequence_ids: torch.Tensor,
        stop_tokens: torch.Tensor,
        headway: int,
        max_wavefront: int,
        restart: bool,
    ) -> tuple[torch.Tensor, ...]:
        batch, num_rows = start.numel(), sampled.numel()
        capacity = num_rows + batch * headway
        next_cu_rows = torch.full((batch + 1,), -99, dtype=torch.int32)
        source_row = torch.full((capacity,), -99, dtype=torch.int32)
        committed = torch.full((batch,), -99, dtype=torch.int32)
        row_tokens = torch.full((capacity,), -99)
        row_keys = torch.full((capacity, 3), -99, dtype=torch.int32)
        fields = {
            "tokens": address(tokens),
            "start": address(start),
            "done": address(done),
            "committed_depth": address(committed_depth),
            "sampled": address(sampled),
            "settled": address(settled),
            "depth": address(depth),
            "cu_rows": address(cu_rows),
            "limit": address(limit),
            "known": address(known),
            "sequence_ids": address(sequence_ids),
            "stop_tokens": address(stop_tokens),
            "next_cu_rows": address(next_cu_rows),
            "source_row": address(source_row),
            "committed": address(committed),
            "row_tokens": address(row_tokens),
            "row_keys": address(row_keys),
            "num_rows": num_rows,
            "capacity": capacity,
            "max_length": tokens.size(1),
            "tokens_stride": tokens.stride(0),
            "committed_depth_stride": committed_depth.stride(0),
            "key_stride": row_keys.stride(0),
            "num_stop_tokens": stop_tokens.numel(),
            "headway": headway,
            "max_wavefront": max_wavefront,
            "num_sequences": batch,
            "restart": restart,
        }
        self._launch("advance_wavefront", fields)
        return next_cu_rows, source_row, committed, row_tokens, row_keys

    def _carry_rows(
        self,
        state: torch.Tensor,
        embed: torch.Tensor,
        source_row: torch.Tensor,
        row_keys: torch.Tensor,
        cu_rows: torch.Tensor,
        seed: int,
        std: float,
        continuous: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state, embed, row_keys = _rows(state), _rows(embed), _rows(row_keys)
        shape = (source_row.numel(), state.size(1))
        next_state = state.new_full(shape, math.nan)
        next_embed = state.new_full(shape, math.nan)
        fields = {
            "state": address(state),
            "embed": address(embed),
            "source_row": address(source_row),
            "row_keys": address(row_keys),
            "row_count": address(cu_rows[-1:]),
            "next_state": address(next_state),
            "next_embed": address(next_embed),
            "num_rows": state.size(0),
            "rows": shape[0],
            "width": shape[1],
            "state_stride": state.stride(0),
            "embed_stride": embed.stride(0),
            "key_stride": row_keys.stride(0),
            "next_state_stride": next_state.stride(0),
            "next_embed_stride": next_embed.stride(0),
            "seed": seed % 2**64,
            "std": std,
            "continuous": continuous,
        }
        self._launch("carry_rows", fields, DTYPES[state.dtype])
        return next_state, next_embed
