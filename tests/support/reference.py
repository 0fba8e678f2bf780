"""Slow, plain second implementations: a dense model, and the sampling loop for one prompt.

They share no code with ``rdkernels.samplers`` and ``RecurrentDepthModel`` beyond the weights, the
keyed random draws and the choice of one token from logits: everything is recomputed from whole
sequences, K/V lives in dictionaries, and there are no pages, packed rows or fused ops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.functional import silu

from rdkernels import ops
from rdkernels.backends import philox
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.weights import Block
from rdkernels.samplers import FixedDepth, LastConverged, Sampling, TokenStable
from rdkernels.samplers.schedule import Phase, WavefrontPolicy
from tests.support.reference_criteria import measure


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x: torch.Tensor, position: int, base: float, rotation: str) -> torch.Tensor:
    """Rotary embedding of ``x [heads, d]``: pairs as complex numbers."""
    if rotation == "half":  # channel i belongs to i + d/2
        return (
            rotate(x.unflatten(-1, (2, -1)).mT.flatten(-2), position, base, "")
            .unflatten(-1, (-1, 2))
            .mT.flatten(-2)
        )
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    exponent = torch.arange(0, x.shape[-1], 2, dtype=torch.float32) / x.shape[-1]
    angle = position * (1.0 / base**exponent)
    turned = pairs * torch.complex(angle.cos(), angle.sin()).to(pairs.dtype)
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
                (block.wqkv @ x[i])
                .view(-1, c.head_dim)
                .split((c.num_heads, c.num_kv_heads, c.num_kv_heads))
            )
            if block.qk_bias is not None:
                q, k = q + block.qk_bias[: c.num_heads], k + block.qk_bias[c.num_heads :]
            rotation = (position, c.rope_base, c.block.rotation)
            rows.append(rotate(q, *rotation))
            self.cache[layer, slot, position] = (rotate(k, *rotation), v)
        out = []
        for q, slot, position in zip(rows, slots, positions, strict=True):
            cells = [self.cache[layer, slot, p] for p in range(position + 1)]
            keys, values = (torch.stack(part) for part in zip(*cells, strict=True))
            heads = []
            for h in range(c.num_heads):
                g = h // (c.num_heads // c.num_kv_heads)
                weights = torch.softmax(keys[:, g] @ q[h] / math.sqrt(c.head_dim), dim=0)
                heads.append(weights @ values[:, g])
            out.append(block.attn_proj @ torch.cat(heads))
        return torch.stack(out)

    def blocks(
        self, part: str, x: torch.Tensor, slots: list[int], positions: list[int]
    ) -> torch.Tensor:
        eps, placement = self.config.norm_eps, self.config.block.placement

        def mlp(b: Block, x: torch.Tensor) -> torch.Tensor:
            gate, up = (x @ b.mlp_fc.T).chunk(2, dim=-1)
            return (silu(gate) * up) @ b.mlp_proj.T

        for i, b in enumerate(getattr(self.weights, part)):
            attend = partial(
                self.attention, b, layer=f"{part}{i}", slots=slots, positions=positions
            )
            if placement == "sandwich":
                x = rms(attend(rms(x, b.norm_1, eps)) + x, b.norm_2, eps)
                x = rms(mlp(b, rms(x, b.norm_3, eps)) + x, b.norm_4, eps)
            elif placement == "pre":
                x = x + attend(rms(x, b.norm_1, eps))
                x = x + mlp(b, rms(x, b.norm_3, eps))
            else:
                x = x + rms(attend(x), b.norm_2, eps)
                x = x + rms(mlp(b, x), b.norm_4, eps)
        return x

    def embed(self, tokens: list[int], positions: list[int]) -> torch.Tensor:
        hidden = self.weights.embedding[tokens] * math.sqrt(self.config.hidden_size)
        return self.blocks("prelude", hidden, [0] * len(tokens), positions)

    def iterate(
        self, state: torch.Tensor, embed: torch.Tensor, slots: list[int], positions: list[int]
    ) -> torch.Tensor:
        x = torch.cat((state, embed), dim=1) @ self.weights.adapter.T
        return self.blocks("core", x, slots, positions)

    def decode(self, state: torch.Tensor, positions: list[int]) -> torch.Tensor:
        norm, eps = self.weights.final_norm, self.config.norm_eps
        before = rms(state, norm, eps) if self.config.loop.norm_before_coda else state
        x = self.blocks("coda", before, [0] * len(positions), positions)
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
    delta: float = math.inf
    converged: bool = False
    kept: dict[str, torch.Tensor] = field(default_factory=dict)  # by the exit criterion


@dataclass
class ReferenceStep:
    """An outer step: position, input token, depth afterwards and delta of every row."""

    positions: list[int]
    tokens: list[int]
    depths: list[int]
    deltas: list[float]


@dataclass
class ReferenceRun:
    """Generated tokens with their depths, and the outer steps that led to them."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    steps: list[ReferenceStep] = field(default_factory=list)


class ReferenceSampler:
    """Any sampler's policy on one prompt, a position at a time."""

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
        self.line: dict[int, int] = {}  # tokens by position, drafts among them

    def normal(self, position: int, step: int, stream: int, scale: float) -> torch.Tensor:
        key = torch.tensor([[self.id, position, step]], dtype=torch.int32)
        std = scale * self.config.state_std
        draw = philox.truncated_normal(key, self.config.hidden_size, std, self.seed, stream)
        return draw[0].to(self.dtype)

    def fresh(self, position: int, token: int) -> Row:
        scale = self.policy.initial_state_scale
        state = self.normal(position, 0, philox.STREAM_INITIAL_STATE, scale)
        return Row(position, token, state)

    def adjusted(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """Logits of one row after the repetition penalty and the bias."""
        s, logits = self.sampling, logits.clone()
        for token in {self.line[p] for p in range(position + 1)}:
            factor = 1 / s.repetition_penalty if logits[token] > 0 else s.repetition_penalty
            logits[token] *= factor
        for token, bias in s.logit_bias.items():
            logits[token] += bias
        return logits

    def pick(self, logits: torch.Tensor, position: int) -> int:
        s = self.sampling
        keys = torch.tensor([[self.id, position, 0]], dtype=torch.int32)
        options = {"top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p, "seed": self.seed}
        picked = ops.sample_tokens(logits[None], keys, temperature=s.temperature, **options)
        return int(picked)

    def prompt(self, tokens: list[int]) -> Row:
        """Compute the prompt; the first fresh row, whose token the prompt predicts."""
        self.line = dict(enumerate(tokens))
        positions, slots = list(range(len(tokens))), self.policy.slots
        embed = self.dense.embed(tokens, positions)
        state = torch.stack([self.fresh(p, t).state for p, t in enumerate(tokens)])
        for k in range(self.policy.num_steps):
            state = self.dense.iterate(state, embed, [k % slots] * len(tokens), positions)
        logits = self.dense.decode(state, positions)[-1]
        last = len(tokens) - 1
        row = self.fresh(last + 1, self.pick(self.adjusted(logits, last), last))
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

    def begin(self, rows: list[Row]) -> None:
        """Noise on the states, and input embeddings with momentum."""
        embeds = self.dense.embed([row.token for row in rows], [row.position for row in rows])
        for row, embed in zip(rows, embeds, strict=True):
            eta = self.policy.momentum if row.depth else 0.0
            row.embed = embed if eta == 0.0 else eta * row.embed + (1 - eta) * embed
            keep, beta = self.noise_shares(row.depth)
            if beta > 0.0:
                z = self.normal(row.position, row.depth, philox.STREAM_STATE_NOISE, 1.0)
                row.state = keep * row.state + beta * z

    def iterate(self, rows: list[Row], phase: Phase) -> None:
        """The spans of a phase, each on the rows that it applies to."""
        for span in phase.spans:
            going = [row for row in rows if span.below is None or row.depth < span.below]
            for _ in range(span.iterations):
                if going:
                    going = self.iterate_once(going)

    def iterate_once(self, rows: list[Row]) -> list[Row]:
        """One iteration; returns the rows that go on in this outer step."""
        state, embed = (torch.stack([getattr(row, n) for row in rows]) for n in ("state", "embed"))
        slots = [row.depth % self.policy.slots for row in rows]
        after = self.dense.iterate(state, embed, slots, [row.position for row in rows])
        going, threshold = [], self.policy.inner_exit_threshold
        for row, new in zip(rows, after, strict=True):
            if threshold is None or float((new - row.state).norm() / new.norm()) >= threshold:
                going.append(row)
            row.state, row.depth = new, row.depth + 1
        return going

    def outer_step(self, rows: list[Row], phase: Phase) -> ReferenceStep:
        before, depths = [row.state for row in rows], [row.depth for row in rows]
        self.begin(rows)
        self.iterate(rows, phase)
        positions = [row.position for row in rows]
        logits = self.dense.decode(torch.stack([row.state for row in rows]), positions)
        self.line |= {row.position: row.token for row in rows}
        for i, row in enumerate(rows):
            adjusted = self.adjusted(logits[i], row.position)
            token = self.pick(adjusted, row.position)
            row.same_token = row.same_token + 1 if row.sampled == token else 0
            row.sampled = token
            change = (row.state, before[i], row.depth, depths[i] == 0, adjusted)
            row.delta, row.converged = measure(self.policy, row.kept, *change)
        tokens, deltas = [row.token for row in rows], [row.delta for row in rows]
        return ReferenceStep(positions, tokens, [row.depth for row in rows], deltas)

    def settled(self, rows: list[Row], phase: Phase) -> list[bool]:
        policy, rule = self.policy, self.policy.freeze_rule
        if not phase.commits:
            return [False] * len(rows)
        exhausted = [row.depth >= policy.depth_limit for row in rows]
        if isinstance(rule, TokenStable):
            own = [row.same_token >= rule.outer_steps for row in rows]
        elif isinstance(rule, FixedDepth):
            own = [row.depth >= rule.num_steps for row in rows]
        else:
            own = [row.converged for row in rows]
        if isinstance(rule, LastConverged):
            ends = [i for i in range(len(rows)) if own[i] or exhausted[i]]
            own = [i <= max(ends, default=-1) for i in range(len(rows))]
        ripe = [ok and row.depth >= policy.min_depth for ok, row in zip(own, rows, strict=True)]
        return [e or ok for e, ok in zip(exhausted, ripe, strict=True)]

    def run(self, prompt: list[int], limit: int, stops: tuple[int, ...] = ()) -> ReferenceRun:
        out, rows = ReferenceRun(), []
        if self.policy.full_prefill:
            rows.append(self.prompt(prompt))
            out.tokens.append(rows[0].token)
            out.depths.append(self.policy.num_steps)
            if rows[0].token in stops or len(prompt) + 1 >= limit:
                return out
            self.extend(rows, rows[0], len(prompt), limit, already=1)
        else:
            rows += [self.fresh(p, token) for p, token in enumerate(prompt)]
        while True:
            phase = self.policy.phases[len(out.steps) % len(self.policy.phases)]
            out.steps.append(self.outer_step(rows, phase))
            predicted = [prompt[r.position + 1 :][:1] or [r.sampled] for r in rows]
            predicted = [token for (token,) in predicted]
            count = 0
            for i, (row, settled) in enumerate(zip(rows, self.settled(rows, phase), strict=True)):
                if not settled or (i > 0 and row.token != predicted[i - 1]):
                    break
                count += 1
                self.fill(row)
                if row.position + 1 >= len(prompt):
                    out.tokens.append(predicted[i])
                    out.depths.append(row.depth)
                    stopped = predicted[i] in stops
                    if stopped or len(prompt) + len(out.tokens) >= limit:
                        return out
            rows = self.next_rows(rows, count, predicted, len(prompt), limit)

    def next_rows(
        self, rows: list[Row], count: int, predicted: list[int], known: int, limit: int
    ) -> list[Row]:
        """The rows after ``count`` have been committed: new tokens, or a new start, and growth."""
        stay, last = rows[count:], rows[-1]
        if self.policy.restart:
            if count and stay and stay[0].token != predicted[count - 1]:
                stay, last = [], rows[count - 1]
        else:
            for row, token in zip(rows[1:], predicted, strict=False):
                row.token = token
        ahead = Row(last.position + 1, predicted[rows.index(last)], last.state)
        self.extend(stay, ahead, known, limit)
        return stay

    def extend(self, rows: list[Row], ahead: Row, known: int, limit: int, already: int = 0) -> None:
        """Fresh rows from where ``ahead`` is: as many as headway, wavefront and limit allow."""
        for position in range(ahead.position + already, ahead.position + self.policy.headway):
            counted = sum(row.position >= known - 1 for row in rows)
            if counted >= self.policy.max_wavefront or position > limit - 2:
                break
            rows.append(self.fresh(position, ahead.token))
            if self.policy.continuous_compute:
                rows[-1].state = ahead.state

    def fill(self, row: Row) -> None:
        """A committed row stands in with its last K/V where later rows go deeper than it went."""
        for i in range(self.config.core_layers):
            for slot in range(row.depth, self.policy.slots):
                cell = self.dense.cache[f"core{i}", row.depth - 1, row.position]
                self.dense.cache[f"core{i}", slot, row.position] = cell
