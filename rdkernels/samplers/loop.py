"""The sampling loop: one outer step after another, for every sampler and any batch.

    tokens -> embed -> inject_state -> inner_recurrence x iterate -> exit_update
           -> decode -> sample_tokens -> advance_wavefront -> (gather the surviving rows)

The rows in flight are kept compact: only rows that are computed exist. One small tensor (bounds,
commit counts, done flags) is read by the host per outer step, to size the next one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch

from rdkernels import ops
from rdkernels.models.recurrent_depth import RecurrentDepthModel, Rows
from rdkernels.samplers.policies import DiffusionForcing, RowStatus, Sampling
from rdkernels.samplers.prefill import initial_states, prefill_states
from rdkernels.samplers.trace import OuterStep
from rdkernels.wavefront import Wavefront


@dataclass(frozen=True)
class Request:
    """Prompts of one batch and what bounds them, checked by the caller."""

    prompts: list[list[int]]
    limits: list[int]  # most tokens per sequence, prompt included
    sequence_ids: list[int]
    stop_tokens: tuple[int, ...]
    seed: int


@dataclass
class RowState:
    """What the loop carries from one outer step to the next, a row each."""

    wavefront: Wavefront
    state: torch.Tensor  # [N, D]
    embed: torch.Tensor  # [N, D] embedding of the last outer step, after momentum
    depth: torch.Tensor  # [N] int32


class WavefrontLoop:
    """Drives a batch of sequences; call :meth:`prefill` once, then :meth:`step` while rows remain.

    Attributes:
        tokens: ``[B, T]`` int64 prompt, committed tokens and drafts.
        committed: tokens final per sequence, prompt included (host).
        outer_steps, core_iterations, rows_computed: counters after the prefill.
        sequence_iterations: core iterations until each sequence finished.
    """

    def __init__(
        self,
        model: RecurrentDepthModel,
        policy: DiffusionForcing,
        sampling: Sampling,
        request: Request,
    ) -> None:
        self.model, self.policy, self.sampling, self.request = model, policy, sampling, request
        batch, longest = len(request.prompts), max(request.limits)
        device = model.device
        self.cache = model.new_cache(batch, longest, slots=policy.slots)
        for b, limit in enumerate(request.limits):
            self.cache.reserve(b, limit)
        self.tokens = torch.zeros(batch, longest, dtype=torch.int64, device=device)
        for b, prompt in enumerate(request.prompts):
            self.tokens[b, : len(prompt)] = torch.tensor(prompt)
        self.start = torch.tensor([len(p) - 1 for p in request.prompts], dtype=torch.int32).to(
            device
        )
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.committed_depth = torch.zeros(batch, longest, dtype=torch.int32, device=device)
        self.known = self.start + 1
        self.limit = torch.tensor(request.limits, dtype=torch.int32, device=device)
        self.stop_tokens = torch.tensor(request.stop_tokens, dtype=torch.int64, device=device)
        self.sequence_ids = torch.tensor(request.sequence_ids, dtype=torch.int32, device=device)
        self.committed = [len(p) for p in request.prompts]
        self.outer_steps = self.core_iterations = self.rows_computed = 0
        self.sequence_iterations = [0] * batch
        self.rows: RowState | None = None

    @property
    def running(self) -> bool:
        return self.rows is not None and self.rows.wavefront.num_rows > 0

    def prefill(self) -> None:
        """Compute all prompts, commit their first new token, and open the wavefronts."""
        policy, request = self.policy, self.request
        lengths = [len(prompt) for prompt in request.prompts]
        wavefront = Wavefront.from_lengths([0] * len(lengths), lengths, self.model.device)
        state = prefill_states(
            self.model,
            self.tokens[wavefront.row_sequence, wavefront.row_position],
            wavefront,
            self.cache,
            num_steps=policy.num_steps,
            sequence_ids=self.sequence_ids,
            seed=request.seed,
            initial_state_scale=policy.initial_state_scale,
        )
        rows = self.model.rows(wavefront, self.cache.page_table())
        last = wavefront.cu_rows[1:].long() - 1
        logits = self.model.decode(state, rows, self.cache, select=last)
        front = Wavefront.from_lengths([n - 1 for n in lengths], [1] * len(lengths), state.device)
        depth = torch.full(
            (len(lengths),), policy.num_steps, dtype=torch.int32, device=state.device
        )
        settled = torch.ones(len(lengths), dtype=torch.bool, device=state.device)
        last_rows = RowState(front, state[last], state[last], depth)
        self._advance(last_rows, self._sample(logits, front), settled)

    def step(self, record: bool = False) -> OuterStep | None:
        """One outer step over all rows in flight; returns what it did if ``record``."""
        policy, rows = self.policy, self.rows
        wavefront, previous = rows.wavefront, rows.state
        table = self.cache.page_table()
        outer = self.model.rows(wavefront, table)
        inputs = self.tokens[wavefront.row_sequence, wavefront.row_position]
        embed = self.model.embed(inputs, outer, self.cache)
        noise = policy.noise_weight(rows.depth)
        adapter_input, embed = ops.inject_state(
            previous,
            embed,
            rows.embed if policy.momentum > 0.0 else None,
            rows.depth,
            policy.momentum,
            noise,
            None if noise is None else wavefront.row_keys(self.sequence_ids, rows.depth),
            self.request.seed,
            self.model.config.state_std,
            backend=self.model.backend,
        )
        for iteration in range(policy.inner_recurrence):
            core = self._core_rows(wavefront, rows.depth, iteration)
            state = self.model.iterate(adapter_input, core, self.cache)
            if iteration + 1 < policy.inner_recurrence:
                adapter_input[:, : state.size(1)] = state
        depth = rows.depth.clone()
        delta, converged = ops.exit_update(
            state,
            previous,
            depth,
            wavefront.active,
            iterations=policy.inner_recurrence,
            threshold=policy.exit_threshold,
            backend=self.model.backend,
        )
        sampled = self._sample(self.model.decode(state, outer, self.cache), wavefront)
        status = RowStatus(wavefront, delta, converged, depth, policy.depth_limit)
        self.outer_steps += 1
        self.core_iterations += policy.inner_recurrence
        self.rows_computed += wavefront.num_rows * policy.inner_recurrence
        start = wavefront.start.tolist() if record else []  # advance moves the tensor on
        settled = policy.freeze_rule.settled(status) | status.exhausted  # so that it ends
        committed = self._advance(RowState(wavefront, state, embed, depth), sampled, settled)
        if not record:
            return None
        bounds = wavefront.cu_rows.tolist()

        def split(values: torch.Tensor) -> list[list]:
            flat = values.tolist()
            return [flat[a:b] for a, b in pairwise(bounds)]

        parts = (split(values) for values in (inputs, sampled, depth, delta))
        return OuterStep(start, *parts, committed)

    def _sample(self, logits: torch.Tensor, wavefront: Wavefront) -> torch.Tensor:
        s = self.sampling
        keys = wavefront.row_keys(self.sequence_ids, None) if s.temperature > 0.0 else None
        return ops.sample_tokens(
            logits,
            keys,
            temperature=s.temperature,
            top_k=s.top_k,
            top_p=s.top_p,
            min_p=s.min_p,
            seed=self.request.seed,
            backend=self.model.backend,
        )

    def _core_rows(self, wavefront: Wavefront, depth: torch.Tensor, iteration: int) -> Rows:
        """Rows on the page tables of the slots that their next iteration works on."""
        slots = self.cache.slots
        if slots == 1:
            return self.model.rows(wavefront, self.cache.core_page_table(0))
        # Rows of one sequence at one depth stay together: they attend to each other's new K/V.
        sequence = wavefront.row_sequence
        slot = (depth.long() + iteration) % slots
        same = (sequence[1:] == sequence[:-1]) & (slot[1:] == slot[:-1])
        first = torch.nn.functional.pad(~same, (1, 0), value=True).nonzero().flatten()
        bounds = torch.nn.functional.pad(first, (0, 1), value=wavefront.num_rows)
        table = self.cache.core_page_tables()[sequence[first], slot[first]]
        start = wavefront.row_position[first]
        masks = self._launches(sequence[first], slot[first], bounds, wavefront.num_rows)
        return Rows(table, bounds.int(), start.int(), *masks)

    def _launches(
        self, sequence: torch.Tensor, slot: torch.Tensor, bounds: torch.Tensor, num_rows: int
    ) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """Active rows of each launch, such that none holds two groups on one page table."""
        seen: Counter[tuple[int, int]] = Counter()
        launches = []
        for key in zip(sequence.tolist(), slot.tolist(), strict=True):
            launches.append(seen[key])
            seen[key] += 1
        if max(launches) == 0:
            return None, ()
        launch = torch.tensor(launches, device=bounds.device)
        launch = launch.repeat_interleave(bounds.diff(), output_size=num_rows)
        first, *later = (launch == i for i in range(max(launches) + 1))
        return first, tuple(later)

    def _advance(self, rows: RowState, sampled: torch.Tensor, settled: torch.Tensor) -> list[int]:
        """Commit, stop and extend; gathers the next rows. Returns rows committed per sequence."""
        policy, wavefront = self.policy, rows.wavefront
        start = wavefront.start.clone()
        next_cu_rows, source, committed, _, _ = ops.advance_wavefront(
            self.tokens,
            start,
            self.done,
            self.committed_depth,
            sampled,
            settled,
            rows.depth,
            wavefront.cu_rows,
            self.limit,
            self.known,
            self.sequence_ids,
            self.stop_tokens,
            headway=policy.headway,
            max_wavefront=policy.max_wavefront,
            backend=self.model.backend,
        )
        batch = wavefront.batch_size
        report = torch.cat((next_cu_rows, wavefront.cu_rows, committed, wavefront.start)).tolist()
        bounds, old = report[: batch + 1], report[batch + 1 : 2 * batch + 2]
        counts, starts = report[2 * batch + 2 : 3 * batch + 2], report[3 * batch + 2 :]
        if self.cache.slots > 1:
            self._fill_slots(rows, old, counts, starts)
        fresh = []
        for b in range(batch):
            self.committed[b] += counts[b]
            length, kept = bounds[b + 1] - bounds[b], old[b + 1] - old[b] - counts[b]
            if length == 0 and old[b + 1] > old[b]:
                self.sequence_iterations[b] = self.core_iterations
            fresh += range(bounds[b] + min(kept, length), bounds[b + 1])
        self.rows = self._gather(rows, Wavefront(next_cu_rows, start, bounds[-1]), source, fresh)
        return counts

    def _gather(
        self, rows: RowState, wavefront: Wavefront, source: torch.Tensor, fresh: list[int]
    ) -> RowState:
        """The rows of the next outer step: survivors of this one, and fresh ones."""
        index = source[: wavefront.num_rows].long().clamp_(min=0)
        depth = torch.where(source[: wavefront.num_rows] >= 0, rows.depth[index], 0)
        state, embed = rows.state[index], rows.embed[index]
        if fresh:
            at = torch.tensor(fresh, device=state.device)
            if self.policy.continuous_compute:
                last = rows.wavefront.cu_rows[1:].long() - 1
                state[at] = rows.state[last[wavefront.row_sequence[at]]]
            else:
                keys = wavefront.row_keys(self.sequence_ids, None)[at]
                scale = self.policy.initial_state_scale
                state[at] = initial_states(self.model, keys, self.request.seed, scale)
        return RowState(wavefront, state, embed, depth)

    def _fill_slots(
        self, rows: RowState, bounds: list[int], counts: list[int], starts: list[int]
    ) -> None:
        """Rows that were committed early leave their last K/V in the slots they never reached."""
        depths = rows.depth.tolist()
        for b, count in enumerate(counts):
            for j in range(count):
                self.cache.fill_slots(b, starts[b] + j, depths[bounds[b] + j])
