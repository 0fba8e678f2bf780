"""The Huginn architecture with autograd: whole sequences, no cache, parameters named as on disk.

The inference model of ``rdkernels.models`` works on packed rows and a paged cache and never needs
gradients; this one is what a training step needs and nothing more. ``state_dict`` keys are exactly
the tensor names of a checkpoint, so saving is one call. Shapes: B sequences, S positions, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdkernels.models.config import BlockStyle, LoopStyle, ModelConfig


class RMSNorm(nn.Module):
    """Normalise in fp32, round to the input's dtype, then scale: the order that inference uses."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(
            x.dtype
        ) * self.weight


def rotary_table(config: ModelConfig) -> Tensor:
    """cos and sin of every position, ``[2, context, head_dim / 2]`` fp32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.context_length).float(), config.rope_base**-exponents)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate adjacent pairs of ``x [B, S, H, d]`` by the angles ``[2, S, d / 2]``, in fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_sin[:, None, :, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(3).to(x.dtype)


class Attention(nn.Module):
    """Causal attention by plain matmuls: at these lengths the backward of the fused CPU kernel is
    far slower than theirs."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.num_kv_heads != config.num_heads:
            raise ValueError("the demo models have as many K/V heads as heads")
        self.heads, self.head_dim = config.num_heads, config.head_dim
        inner = config.num_heads * config.head_dim
        self.Wqkv = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        shape = (2, 1, config.num_heads, config.head_dim)
        self.qk_bias = nn.Parameter(torch.zeros(shape)) if config.block.qk_bias else None
        self.proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos_sin: Tensor) -> Tensor:
        query, key, value = self.Wqkv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        if self.qk_bias is not None:
            query, key = query + self.qk_bias[0], key + self.qk_bias[1]
        query, key = rotate(query, cos_sin).transpose(1, 2), rotate(key, cos_sin).transpose(1, 2)
        scores = (query @ key.transpose(-1, -2)).float() * self.head_dim**-0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(future, -math.inf), -1).to(x.dtype)
        return self.proj((weights @ value.transpose(1, 2)).transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc(x).chunk(2, -1)
        return self.proj(F.silu(gate) * up)


class SandwichBlock(nn.Module):
    """Norms before each sublayer and after each residual sum."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.norm_3, self.norm_4 = (
            RMSNorm(config.hidden_size, config.norm_eps) for _ in range(4)
        )
        self.attn = Attention(config)
        self.mlp = GatedMLP(config)

    def forward(self, x: Tensor, cos_sin: Tensor) -> Tensor:
        x = self.norm_2(self.attn(self.norm_1(x), cos_sin) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class TrainingModel(nn.Module):
    """``forward(ids, num_steps, backprop_steps)`` -> logits; the head is the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.tie_embeddings:
            raise ValueError("the demo models tie head and embedding")
        served = BlockStyle(qk_bias=config.block.qk_bias)
        if config.block != served or config.loop != LoopStyle():
            raise ValueError(f"the demo models have {served} and {LoopStyle()}")
        self.config = config

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(SandwichBlock(config) for _ in range(count))

        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "prelude": blocks(config.prelude_layers),
                "adapter": nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False),
                "core_block": blocks(config.core_layers),
                "coda": blocks(config.coda_layers),
                "ln_f": RMSNorm(config.hidden_size, config.norm_eps),
            }
        )
        # A plain attribute, not a buffer: conversion to bf16 must not round the angles.
        self.cos_sin = rotary_table(config)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normals; what writes to the residual stream is damped by the unrolled depth."""
        config = self.config
        std = math.sqrt(2 / (5 * config.hidden_size))
        unrolled = config.core_layers * config.mean_recurrence
        depth = config.prelude_layers + unrolled + config.coda_layers
        damped = std / math.sqrt(2 * depth)
        for name, parameter in self.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.proj.weight")):
                truncated_normal_(parameter, damped)
            elif name.endswith("mlp.fc.weight"):
                gate, up = parameter.data.chunk(2)
                truncated_normal_(gate, std)
                truncated_normal_(up, damped)
            elif parameter.dim() == 2:
                truncated_normal_(parameter, std)

    def embed(self, ids: Tensor) -> Tensor:
        """Prelude: ids ``[B, S]`` -> embeddings ``[B, S, D]``."""
        x = self.transformer["wte"](ids) * self.config.embed_scale
        for block in self.transformer["prelude"]:
            x = block(x, self.cos_sin[:, : ids.shape[1]])
        return x

    def initial_state(self, embedding: Tensor) -> Tensor:
        """A fresh random state for every position."""
        state = torch.empty(embedding.shape, dtype=torch.float32, device=embedding.device)
        return truncated_normal_(state, self.config.state_std).to(embedding.dtype)

    def iterate(self, state: Tensor, embedding: Tensor) -> Tensor:
        """One iteration of the core block."""
        x = self.transformer["adapter"](torch.cat([state, embedding], -1))
        for block in self.transformer["core_block"]:
            x = block(x, self.cos_sin[:, : x.shape[1]])
        return x

    def decode(self, state: Tensor) -> Tensor:
        """Coda and head: states -> fp32 logits ``[B, S, V]``."""
        x = self.transformer["ln_f"](state)
        for block in self.transformer["coda"]:
            x = block(x, self.cos_sin[:, : x.shape[1]])
        return F.linear(self.transformer["ln_f"](x), self.transformer["wte"].weight).float()

    @torch.no_grad()
    def warm_state(self, ids: Tensor, num_steps: int, fresh: Tensor) -> Tensor:
        """States after ``num_steps`` iterations, begun again where ``fresh [B, S]`` says so."""
        embedding = self.embed(ids)
        state = self.initial_state(embedding)
        for _ in range(num_steps):
            state = self.iterate(state, embedding)
        return torch.where(fresh[..., None], self.initial_state(embedding), state)

    def forward(
        self,
        ids: Tensor,
        num_steps: int,
        backprop_steps: int = 0,
        initial_state: Tensor | None = None,
    ) -> Tensor:
        """Logits after ``num_steps`` iterations; gradients flow through the last ``backprop_steps``
        of them (truncated backpropagation), and through all embeddings."""
        embedding = self.embed(ids)
        state = self.initial_state(embedding) if initial_state is None else initial_state
        with torch.no_grad():
            for _ in range(num_steps - backprop_steps):
                state = self.iterate(state, embedding)
        for _ in range(backprop_steps):
            state = self.iterate(state, embedding)
        return self.decode(state)


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill in place from a normal cut at three deviations."""
    return nn.init.trunc_normal_(tensor, 0.0, std, -3 * std, 3 * std)
