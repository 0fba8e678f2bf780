"""One outer step on the device: a fixed list of op calls on buffers that stay where they are.

    carry rows over -> embed -> inject_state -> core iterations -> exit criterion
        -> decode -> sample_tokens -> freeze rule -> advance_wavefront -> report

Nothing here depends on values that only the device knows, so on a GPU the list can be captured as a
graph; the two shortcuts that look at values are taken on CPUs only, where looking is cheap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch

from rdkernels import ops
from rdkernels.cache import SharedKVCache
from rdkernels.models.blocks import DecodeScratch, RowLayout
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.buffers import (
    NextRows,
    RowBuffers,
    RowTensors,
    SequenceTensors,
    StepViews,
    number,
)
from rdkernels.samplers.criteria import ExitCheck, Memory
from rdkernels.samplers.freeze import RowStatus
from rdkernels.samplers.sampling import TokenSampler
from rdkernels.samplers.schedule import Phase, Span, WavefrontPolicy
from rdkernels.wavefront import Wavefront


@dataclass
class OuterStepProgram:
    """The device's part of an outer step; :meth:`run` leaves the layout of the next one.

    Attributes:
        iterations: core iterations of the last run.
        decoded: whether the last run decoded its rows.
        may_look: whether a run may leave out what the values of its rows make unnecessary.
    """

    model: RecurrentDepthModel
    policy: WavefrontPolicy
    sampler: TokenSampler
    cache: SharedKVCache
    sequences: SequenceTensors
    buffers: RowBuffers
    seed: int
    iterations: int = 0
    decoded: bool = True
    may_look: bool = False
    memory: Memory = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.may_look = self.model.device.type == "cpu"
        model, cache = self.model, self.cache
        self._ops = model.inference_ops
        # Tables, bounds and starts stay where they are: so do the rows' layouts.
        at = (self.sequences.cu_rows, self.sequences.start, None)
        self._outer = RowLayout(cache.page_table(), *at)
        self._core = RowLayout(cache.core_page_table(0), *at) if cache.slots == 1 else None

    def rows(self, num_rows: int) -> int:
        """Rows that a step of ``num_rows`` real ones computes: no others."""
        return num_rows

    def run(self, num_rows: int, phase: Phase, *, has_fresh_rows: bool) -> None:
        """Compute ``num_rows`` rows (those past ``cu_rows[B]`` are padding) and commit."""
        views, policy = self.buffers.views(num_rows), self.policy
        rows = views.rows
        wavefront = Wavefront(self.sequences.cu_rows, self.sequences.start, num_rows)
        outer = self._outer
        self._carry(rows)
        if has_fresh_rows or not policy.inputs_stay:
            self._embed(rows, outer)
        else:
            rows.embed.copy_(rows.previous_embed)
        self._inject(rows)
        self._iterate(rows, wavefront, phase)
        watches_predictions = policy.criterion.needs_logits or policy.freeze_rule.watches_tokens
        may_skip = self.may_look and not policy.needs_every_sample
        if watches_predictions or not may_skip:
            self._decode(rows, outer, wavefront)
            self._settle(rows, wavefront, phase)
        else:
            self._settle(rows, wavefront, phase)
            self.decoded = bool(rows.settled.any())
            if self.decoded:
                self._decode(rows, outer, wavefront)
        self._advance(views)

    def commit_prompts(
        self, state: torch.Tensor, logits: torch.Tensor, places: list[int], behind: int
    ) -> tuple[NextRows, torch.Tensor]:
        """The outer step that a prefill ends with: commit the token after each prompt.

        It touches nothing of other sequences. Its rows, the last of each prompt, lie in the
        buffers behind the ``behind`` rows of the last step, which those sequences go on from.

        Args:
            state: ``[P, D]`` of those rows after ``num_steps`` iterations.
            logits: ``[P, V]`` fp32.
            places: of the ``P`` sequences in the batch, ascending.
            behind: rows of the last outer step.

        Returns:
            The rows that come next, and a report as :attr:`RowBuffers.report`, of these sequences.
        """
        s, batch, count, device = self.sequences, self.buffers.batch, len(places), state.device
        self.buffers.reserve(behind + count)
        self.buffers.whole.state[behind : behind + count] = state
        bounds = list(accumulate((int(b in places) for b in range(batch)), initial=0))
        cu_rows = torch.tensor(bounds, dtype=torch.int32, device=device)
        wavefront = Wavefront(cu_rows, s.start, count)
        report = torch.empty(2 * batch + 1 + count, dtype=torch.int32, device=device)
        sampled = torch.empty(count, dtype=torch.int64, device=device)
        settled = torch.ones(count, dtype=torch.bool, device=device)
        depth = torch.full_like(sampled, self.policy.num_steps, dtype=torch.int32)
        self._sample(logits, wavefront.row_keys(s.ids, None), wavefront, sampled)
        coming = self.buffers.new_next_rows(count)
        self._commit(cu_rows, sampled, settled, depth, coming, report)
        coming.source_row.sub_(behind)  # all are fresh, and name the row before them
        return coming, report

    def _carry(self, rows: RowTensors) -> None:
        """Rows of the last step in the order of this one, and initial states for fresh ones."""
        policy, width = self.policy, self.model.config.hidden_size
        last = self.buffers.whole
        self._ops.carry_rows(
            last.state,
            last.adapter_input[:, width:],
            rows.source_row,
            rows.key,
            self.sequences.cu_rows,
            self.seed,
            policy.initial_state_scale * self.model.config.state_std,
            policy.continuous_compute,
            out=(rows.previous_state, rows.previous_embed),
        )
        rows.depth.copy_(rows.key[:, 2])
        if self.memory:
            source = rows.source_row.long().clamp_(min=0)
            self.memory = {name: kept[source] for name, kept in self.memory.items()}

    def _embed(self, rows: RowTensors, outer: RowLayout) -> None:
        self.model.embed(rows.token, outer, self.cache, out=rows.embed)

    def _inject(self, rows: RowTensors) -> None:
        policy = self.policy
        schedule = policy.noise
        noise = None if schedule is None else schedule.weight(rows.depth)
        self._ops.inject_state(
            rows.previous_state,
            rows.embed,
            rows.previous_embed if policy.momentum > 0.0 else None,
            rows.depth,
            policy.momentum,
            noise,
            None if noise is None else rows.key,
            self.seed,
            self.model.config.state_std,
            schedule is not None and schedule.preserves_variance,
            out=(rows.adapter_input, rows.mixed_embed),
        )

    def _iterate(self, rows: RowTensors, wavefront: Wavefront, phase: Phase) -> None:
        self.iterations = 0
        for span in phase.spans:
            active = None if span.below is None else rows.depth < span.below
            if (threshold := self.policy.inner_exit_threshold) is None:
                self._iterate_span(rows, wavefront, span, active)
            else:
                self._iterate_while_moving(rows, wavefront, span, active, threshold)

    def _iterate_span(
        self, rows: RowTensors, wavefront: Wavefront, span: Span, active: torch.Tensor | None
    ) -> None:
        # On shared K/V all iterations address the same pages: one call computes them.
        count = span.iterations if self.cache.slots == 1 else 1
        for _ in range(span.iterations // count):
            core = self.core_rows(wavefront, rows.depth, active)
            self.model.iterate(rows.adapter_input, core, self.cache, iterations=count)
            if active is None:
                rows.depth.add_(number(count))
            else:
                rows.depth.add_(active, alpha=count)
        self.iterations += span.iterations

    def _iterate_while_moving(
        self,
        rows: RowTensors,
        wavefront: Wavefront,
        span: Span,
        active: torch.Tensor | None,
        threshold: float,
    ) -> None:
        """An iteration at a time; a row that has moved less than the threshold is held."""
        if active is None:
            active = torch.ones_like(rows.settled)
        for _ in range(span.iterations):
            before = rows.state.clone()
            self._iterate_span(rows, wavefront, Span(1), active)
            _, arrived = ops.exit_update(
                rows.state,
                before,
                rows.depth,
                active,
                iterations=0,
                threshold=threshold,
                backend=self.model.backend,
            )
            active = active & ~arrived
            if self.may_look and not active.any():
                break

    def core_rows(
        self, wavefront: Wavefront, depth: torch.Tensor, active: torch.Tensor | None
    ) -> RowLayout:
        """Rows on the page tables of the slots that their next iteration works on."""
        if self._core is not None:
            return self._core if active is None else self._core._replace(active=active)
        slot = depth.long() % self.cache.slots
        if self.policy.rows_stand_alone:
            tables = self.cache.core_page_tables()[wavefront.row_sequence, slot]
            bounds = torch.arange(len(slot) + 1, dtype=torch.int32, device=slot.device)
            return RowLayout(tables, bounds, wavefront.row_position.int(), active)
        return _rows_by_slot(replace(wavefront, active=active), slot, self.cache.core_page_tables())

    def _decode(self, rows: RowTensors, outer: RowLayout, wavefront: Wavefront) -> None:
        """Coda, head and a token per row."""
        self.decoded = True
        scratch = DecodeScratch(rows.decoded, rows.head)
        self.model.decode(rows.state, outer, self.cache, out=rows.logits, scratch=scratch)
        self._sample(rows.logits, rows.key, wavefront, rows.sampled)

    def _sample(
        self, logits: torch.Tensor, key: torch.Tensor, wavefront: Wavefront, sampled: torch.Tensor
    ) -> None:
        """A token for every row from its logits; notes the log-probability of each."""
        s = self.sequences
        if self.sampler.sampling.changes_logits:
            logits = self.sampler.adjust(logits, s.tokens, wavefront)
        self.sampler.draw(logits, key, out=sampled)
        if s.log_probs is not None:
            chosen = logits.gather(1, sampled[:, None])[:, 0] - logits.logsumexp(dim=1)
            real = torch.arange(len(chosen), device=chosen.device) < wavefront.cu_rows[-1]
            # Padding rows write to position 0, which nothing predicts.
            position = torch.where(real, wavefront.row_position + 1, 0)
            s.log_probs[wavefront.row_sequence, position] = chosen

    def _settle(self, rows: RowTensors, wavefront: Wavefront, phase: Phase) -> None:
        """Which rows may commit: measured, and judged by the freeze rule."""
        policy = self.policy
        self._measure(rows)
        same = self._same_token(rows) if policy.freeze_rule.watches_tokens else None
        status = RowStatus(
            wavefront=wavefront,
            delta=rows.delta,
            converged=rows.converged,
            depth=rows.depth,
            depth_limit=policy.depth_limit,
            same_token=same,
            scratch=rows.settled,
        )
        if not phase.commits:
            rows.settled.zero_()
            return
        by_rule = policy.freeze_rule.settled(status)
        if policy.min_depth > 1:
            by_rule = by_rule & (rows.depth >= policy.min_depth)
        torch.ge(rows.depth, number(policy.depth_limit), out=rows.exhausted)
        torch.logical_or(by_rule, rows.exhausted, out=rows.settled)  # so that it ends

    def _measure(self, rows: RowTensors) -> None:
        criterion, threshold = self.policy.criterion, self.policy.exit_threshold
        if criterion.op_criterion is not None:
            self._ops.exit_update(
                rows.state,
                rows.previous_state,
                rows.depth,
                None,
                0,  # the depth has been counted, span by span
                threshold,
                criterion.op_criterion,
                out=(rows.delta, rows.converged),
            )
            return
        check = ExitCheck(
            state=rows.state,
            previous_state=rows.previous_state,
            depth=rows.depth,
            fresh=rows.key[:, 2] == 0,
            logits=rows.logits if criterion.needs_logits else None,
            memory=self.memory,
            backend=self.model.backend,
        )
        measured, kept = criterion.measure(check)
        self.memory = {**self.memory, **kept}
        rows.delta.copy_(measured)
        rows.converged.copy_(criterion.converged(measured, threshold))

    def _same_token(self, rows: RowTensors) -> torch.Tensor:
        """Outer steps in a row that each row has ended with the token of now."""
        last, count = self.memory.get("sampled"), self.memory.get("same_token")
        fresh = rows.key[:, 2] == 0
        if last is None or count is None:
            count = torch.zeros_like(rows.depth)
        else:
            count = torch.where(fresh | (rows.sampled != last), 0, count + 1)
        self.memory = {**self.memory, "sampled": rows.sampled.clone(), "same_token": count}
        return count

    def _advance(self, views: StepViews) -> None:
        """Leave the layout of the next step and the report."""
        rows, coming, report = views
        bounds = self.sequences.cu_rows
        if not self.decoded:
            rows.sampled.zero_()  # nothing is settled, and nobody consumes the prediction
        self._commit(bounds, rows.sampled, rows.settled, rows.depth, coming, report)
        bounds.copy_(report[: len(bounds)])

    def _commit(
        self,
        cu_rows: torch.Tensor,
        sampled: torch.Tensor,
        settled: torch.Tensor,
        depth: torch.Tensor,
        coming: NextRows,
        report: torch.Tensor,
    ) -> None:
        """Commit, stop, extend; writes the ``coming`` rows and the report."""
        s, policy, batch = self.sequences, self.policy, self.buffers.batch
        counts = report[batch + 1 : 2 * batch + 1]
        self._ops.advance_wavefront(
            s.tokens,
            s.start,
            s.done,
            s.committed_depth,
            sampled,
            settled,
            depth,
            cu_rows,
            s.limit,
            s.known,
            s.ids,
            s.stop_tokens,
            policy.headway,
            policy.max_wavefront,
            policy.restart,
            out=(report[: batch + 1], coming.source_row, counts, coming.token, coming.key),
        )
        report[2 * batch + 1 :].copy_(sampled)


def _rows_by_slot(wavefront: Wavefront, slot: torch.Tensor, tables: torch.Tensor) -> RowLayout:
    """Rows as sequences of their own, each on the page table of its slot.

    Rows of one sequence at one depth stay together: they attend to each other's new K/V.
    """
    sequence = wavefront.row_sequence
    same = (sequence[1:] == sequence[:-1]) & (slot[1:] == slot[:-1])
    first = torch.nn.functional.pad(~same, (1, 0), value=True).nonzero().flatten()
    bounds = torch.nn.functional.pad(first, (0, 1), value=wavefront.num_rows)
    first_rows = sequence[first], slot[first]
    start = wavefront.row_position[first]
    masks = _launches(*first_rows, bounds, wavefront)
    return RowLayout(tables[first_rows], bounds.int(), start.int(), *masks)


def _launches(
    sequence: torch.Tensor, slot: torch.Tensor, bounds: torch.Tensor, wavefront: Wavefront
) -> tuple[torch.Tensor | None, tuple[torch.Tensor, ...]]:
    """Active rows of each launch, such that none holds two groups on one page table."""
    seen: Counter[tuple[int, int]] = Counter()
    launches = []
    for key in zip(sequence.tolist(), slot.tolist(), strict=True):
        launches.append(seen[key])
        seen[key] += 1
    active = wavefront.active
    if max(launches) == 0:
        return active, ()
    launch = torch.tensor(launches, device=bounds.device)
    launch = launch.repeat_interleave(bounds.diff(), output_size=wavefront.num_rows)
    masks = [launch == i for i in range(max(launches) + 1)]
    if active is not None:
        masks = [mask & active for mask in masks]
    return masks[0], tuple(masks[1:])
