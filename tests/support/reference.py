"""Slow, plain second implementations: a dense model, and the diffusion forcing loop for one prompt.

They share no code with ``rdkernels.samplers`` and ``RecurrentDepthModel`` beyond the weights, the
keyed random draws and the choice of one token from logits: everything is recomputed from whole
sequences, K/V lives in dictionaries, and there are no pages, packed rows or fused ops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.nn.functional import silu

from rdkernels import ops
from rdkernels.backends import philox
from rdkernels.models.recurrent_depth import Block, RecurrentDepthModel
from rdkernels.samplers import FixedDepth, LastConverged, Sampling, TokenStable
from rdkernels.samplers.schedule import WavefrontPolicy


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """Interleaved rotary embedding of ``x [heads, d]``: pairs as complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    exponent = torch.arange(0, x.shape[-1], 2, dtype=torch.float32) / x.shape[-1]
    angle = position * (1.0 / base**exponent)
    turned = pairs * torch.polar(torch.ones_like(angle), angle).to(pairs.dtype)
    return torch.view_as_real(turned).flatten(-2)


class DenseModel:
    """One sequence; ``cache`` maps (layer name, slot, position) to a key and a value."""

    def __init__(self, model: RecurrentDepthModel) -> None:
        self.config, self.weights = model.config, model.weights
        self.cache: dict[tuple[str, int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def attention(
        self, block: Block, x: torch.Tensor, layer: str, slots: list[int], positions: list[int]
    ) -> torch.Tensor:
        c, rows = self.config, []
        for i, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            q, k, v = (
                (block.wqkv @ x[i]).view(-1, c.head_dim).split((c.heads, c.kv_heads, c.kv_heads))
            )
            if block.qk_bias is not None:
                q, k = q + block.qk_bias[: c.heads], k + block.qk_bias[c.heads :]
            rows.append(rotate(q, position, c.rope_base))
            self.cache[layer, slot, position] = (rotate(k, position, c.rope_base), v)
        out = []
        for q, slot, position in zip(rows, slots, positions, strict=True):
            cells = [self.cache[layer, slot, p] for p in range(position + 1)]
            keys, values = (torch.stack(part) for part in zip(*cells, strict=True))
            heads = []
            for h in range(c.heads):
                g = h // (c.heads // c.kv_heads)
                weights = torch.softmax(keys[:, g] @ q[h] / math.sqrt(c.head_dim), dim=0)
                heads.append(weights @ values[:, g])
            out.append(block.attn_proj @ torch.cat(heads))
        return torch.stack(out)

    def blocks(
        self, part: str, x: torch.Tensor, slots: list[int], positions: list[int]
    ) -> torch.Tensor:
        eps = self.config.norm_eps
        for i, b in enumerate(getattr(self.weights, part)):
            mixed = self.attention(b, rms(x, b.norm_1, eps), f"{part}{i}", slots, positions)
            x = rms(mixed + x, b.norm_2, eps)
            gate, up = (rms(x, b.norm_3, eps) @ b.mlp_fc.T).chunk(2, dim=-1)
            x = rms((silu(gate) * up) @ b.mlp_proj.T + x, b.norm_4, eps)
        return x

    def embed(self, tokens: list[int], positions: list[int]) -> torch.Tensor:
        hidden = self.weights.embedding[tokens] * math.sqrt(self.config.width)
        return self.blocks("prelude", hidden, [0] * len(tokens), positions)

    def iterate(
        self, state: torch.Tensor, embed: torch.Tensor, slots: list[int], positions: list[int]
    ) -> torch.Tensor:
        x = torch.cat((state, embed), dim=1) @ self.weights.adapter.T
        return self.blocks("core", x, slots, positions)

    def decode(self, state: torch.Tensor, positions: list[int]) -> torch.Tensor:
        norm, eps = self.weights.final_norm, self.config.norm_eps
        x = self.blocks("coda", rms(state, norm, eps), [0] * len(positions), positions)
        return (rms(x, norm, eps) @ self.weights.head.T).float()


@dataclass
class Row:
    position: int
    token: int
    state: torch.Tensor
    depth: int = 0
    embed: torch.Tensor | None = None
    sampled: int | None = None
    same_token: int = 0


@dataclass
class ReferenceRun:
    """Generated tokens with their depths, and per outer step (positions, tokens, deltas)."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    steps: list[tuple[list[int], list[int], list[float]]] = field(default_factory=list)


class ReferenceSampler:
    """Diffusion forcing of one prompt, a position at a time, after arXiv 2510.14961."""

    def __init__(
        self,
        model: RecurrentDepthModel,
        policy: WavefrontPolicy,
        sampling: Sampling,
        seed: int,
        sequence_id: int,
    ) -> None:
        self.dense, self.config, self.dtype = DenseModel(model), model.config, model.dtype
        self.policy, self.sampling = policy, sampling
        self.seed, self.id = seed, sequence_id

    def normal(self, position: int, step: int, stream: int, scale: float) -> torch.Tensor:
        key = torch.tensor([[self.id, position, step]], dtype=torch.int32)
        std = scale * self.config.state_std
        draw = philox.truncated_normal(key, self.config.width, std, self.seed, stream)
        return draw[0].to(self.dtype)

    def fresh(self, position: int, token: int) -> Row:
        scale = self.policy.initial_state_scale
        state = self.normal(position, 0, philox.STREAM_INITIAL_STATE, scale)
        return Row(position, token, state)

    def pick(self, logits: torch.Tensor, position: int) -> int:
        s = self.sampling
        keys = torch.tensor([[self.id, position, 0]], dtype=torch.int32)
        options = {"top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p, "seed": self.seed}
        picked = ops.sample_tokens(logits[None], keys, temperature=s.temperature, **options)
        return int(picked)

    def prompt(self, tokens: list[int]) -> Row:
        """Compute the prompt; the first fresh row, whose token the prompt predicts."""
        positions, slots = list(range(len(tokens))), self.policy.slots
        embed = self.dense.embed(tokens, positions)
        state = torch.stack([self.fresh(p, t).state for p, t in enumerate(tokens)])
        for k in range(self.policy.num_steps):
            state = self.dense.iterate(state, embed, [k % slots] * len(tokens), positions)
        logits = self.dense.decode(state, positions)[-1]
        row = self.fresh(len(tokens), self.pick(logits, len(tokens) - 1))
        if self.policy.continuous_compute:
            row.state = state[-1]
        return row

    def noise_shares(self, depth: int) -> tuple[float, float]:
        """Factors on the state and on the noise for a row of ``depth``."""
        if self.policy.noise is None:
            return 1.0, 0.0
        kind, beta = self.policy.noise.kind, self.policy.noise.scale
        if kind == "hyperbolic":
            beta /= 1 + depth
        elif kind != "constant":
            beta *= max(1 - depth / self.policy.num_steps, 0.0)
        beta = float(torch.tensor(beta, dtype=torch.float32))
        return (math.sqrt(1 - beta**2) if kind == "variance-preserving" else 1 - beta), beta

    def advance_states(self, rows: list[Row]) -> list[float]:
        """Iterate all rows in flight; returns how far each one's state moved."""
        policy, slots = self.policy, self.policy.slots
        positions = [row.position for row in rows]
        embeds = self.dense.embed([row.token for row in rows], positions)
        state = torch.stack([row.state for row in rows])
        for i, row in enumerate(rows):
            eta = policy.momentum if row.depth else 0.0
            row.embed = embeds[i] if eta == 0.0 else eta * row.embed + (1 - eta) * embeds[i]
            keep, beta = self.noise_shares(row.depth)
            if beta > 0.0:
                z = self.normal(row.position, row.depth, philox.STREAM_STATE_NOISE, 1.0)
                state[i] = keep * row.state + beta * z
        embed = torch.stack([row.embed for row in rows])
        for k in range(policy.inner_recurrence):
            at = [(row.depth + k) % slots for row in rows]
            state = self.dense.iterate(state, embed, at, positions)
        deltas = []
        for row, new in zip(rows, state, strict=True):
            deltas.append(float((new - row.state).norm() / new.norm()))
            row.state, row.depth = new, row.depth + policy.inner_recurrence
        return deltas

    def settled(self, rows: list[Row], deltas: list[float]) -> list[bool]:
        policy, rule = self.policy, self.policy.freeze_rule
        done = [row.depth >= policy.depth_limit for row in rows]
        if isinstance(rule, TokenStable):
            same = [row.same_token >= rule.outer_steps for row in rows]
            return [d or ok for d, ok in zip(done, same, strict=True)]
        if isinstance(rule, FixedDepth):
            return [d or row.depth >= rule.num_steps for d, row in zip(done, rows, strict=True)]
        own = [d or x < policy.exit_threshold for d, x in zip(done, deltas, strict=True)]
        if isinstance(rule, LastConverged):
            last = max((i for i, ok in enumerate(own) if ok), default=-1)
            return [i <= last for i in range(len(own))]
        return own

    def run(self, prompt: list[int], limit: int, stops: tuple[int, ...] = ()) -> ReferenceRun:
        out, first = ReferenceRun(), self.prompt(prompt)
        out.tokens.append(first.token)
        out.depths.append(self.policy.num_steps)
        rows = [first]
        self.extend(rows, first.token, limit, already=1)
        while len(prompt) + len(out.tokens) < limit and out.tokens[-1] not in stops:
            deltas = self.advance_states(rows)
            positions = [row.position for row in rows]
            out.steps.append((positions, [row.token for row in rows], deltas))
            logits = self.dense.decode(torch.stack([row.state for row in rows]), positions)
            sampled = [self.pick(logits[i], p) for i, p in enumerate(positions)]
            for row, token in zip(rows, sampled, strict=True):
                row.same_token = row.same_token + 1 if row.sampled == token else 0
                row.sampled = token
            settled = self.settled(rows, deltas)
            count = 0
            for i, row in enumerate(rows):
                if not settled[i] or (i > 0 and row.token != sampled[i - 1]):
                    break
                count += 1
                out.tokens.append(sampled[i])
                out.depths.append(row.depth)
                self.fill(row)
                if sampled[i] in stops or len(prompt) + len(out.tokens) >= limit:
                    return out
            for row, token in zip(rows[1:], sampled, strict=False):
                row.token = token
            last = rows[-1]
            rows = rows[count:]
            self.extend(rows, sampled[-1], limit, last)
        return out

    def fill(self, row: Row) -> None:
        """A committed row stands in with its last K/V where later rows go deeper than it went."""
        for i in range(self.config.core_layers):
            for slot in range(row.depth, self.policy.slots):
                cell = self.dense.cache[f"core{i}", row.depth - 1, row.position]
                self.dense.cache[f"core{i}", slot, row.position] = cell

    def extend(
        self, rows: list[Row], token: int, limit: int, last: Row | None = None, already: int = 0
    ) -> None:
        """Add fresh rows at the front: no more than headway, the wavefront, and the limit allow."""
        position = (last.position if last else rows[-1].position) + 1
        for _ in range(self.policy.headway - already):
            if len(rows) >= self.policy.max_wavefront or position > limit - 2:
                break
            row = self.fresh(position, token)
            if self.policy.continuous_compute:
                row.state = last.state if last else rows[0].state
            rows.append(row)
            position += 1
