"""Written by ``python -m tools.bound_stub`` from the eager meanings of the ops."""

from collections.abc import Sequence

import torch

class Bound:
    def __init__(self, backend: str | None, device: str, dtype: torch.dtype) -> None: ...
    def chosen(self, name: str) -> str | None: ...
    def advance_wavefront(
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
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]: ...
    def carry_rows(
        self,
        state: torch.Tensor,
        embed: torch.Tensor,
        source_row: torch.Tensor,
        row_keys: torch.Tensor,
        cu_rows: torch.Tensor,
        seed: int,
        std: float,
        continuous: bool,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...
    def core_iterations(
        self,
        adapter_input: torch.Tensor,
        adapter: torch.Tensor,
        adapter_scale: torch.Tensor | None,
        weights: Sequence[torch.Tensor],
        key_caches: Sequence[torch.Tensor],
        value_caches: Sequence[torch.Tensor],
        cos_sin: torch.Tensor,
        page_table: torch.Tensor,
        cu_rows: torch.Tensor,
        start: torch.Tensor,
        active: torch.Tensor | None,
        iterations: int,
        eps: float,
        scale: float,
        placement: str,
        interleaved: bool,
    ) -> None: ...
    def exit_update(
        self,
        state: torch.Tensor,
        previous_state: torch.Tensor,
        depth: torch.Tensor,
        active: torch.Tensor | None,
        iterations: int,
        threshold: float,
        criterion: str,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...
    def inject_state(
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
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...
    def recurrent_attention(
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
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor: ...
    def residual_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        post_weight: torch.Tensor | None,
        pre_weight: torch.Tensor | None,
        eps: float,
        style: str,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...
    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor: ...
    def row_linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor | None = None,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor: ...
    def sample_tokens(
        self,
        logits: torch.Tensor,
        row_keys: torch.Tensor | None,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        seed: int,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor: ...
    def swiglu(
        self,
        x: torch.Tensor,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor: ...
    def transformer_blocks(
        self,
        hidden: torch.Tensor,
        weights: Sequence[torch.Tensor],
        key_caches: Sequence[torch.Tensor],
        value_caches: Sequence[torch.Tensor],
        cos_sin: torch.Tensor,
        page_table: torch.Tensor,
        cu_rows: torch.Tensor,
        start: torch.Tensor,
        active: torch.Tensor | None,
        eps: float,
        scale: float,
        placement: str,
        interleaved: bool,
        last_norm: torch.Tensor | None,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor: ...
    def truncated_normal(
        self,
        row_keys: torch.Tensor,
        width: int,
        std: float,
        seed: int,
        stream: int,
        dtype: torch.dtype,
        *,
        out: tuple[torch.Tensor, ...] | None = None,
    ) -> torch.Tensor: ...

def bind(tensor: torch.Tensor, backend: str | None = None) -> Bound: ...
