"""The sampling loop: one outer step after another, for every sampler and any batch.

The host's part: which sequences are in the batch, where their rows lie, what has been committed.
It reads one small tensor per outer step (the next bounds, commit counts, sampled tokens). The
device's part is :mod:`rdkernels.runtime.step`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch

from rdkernels.models.prefill import prefill_states
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.buffers import NextRows, RowBuffers, RowTensors, SequenceTensors
from rdkernels.runtime.graphs import StaticSteps
from rdkernels.runtime.step import OuterStepProgram
from rdkernels.runtime.trace import Completion, OuterStep
from rdkernels.samplers.sampling import Sampling, TokenSampler
from rdkernels.samplers.schedule import WavefrontPolicy
from rdkernels.wavefront import Wavefront


@dataclass(frozen=True)
class Prompt:
    """A sequence to start: its tokens, the most it may have in all, and its random key."""

    tokens: list[int]
    limit: int
    sequence_id: int


@dataclass
class SequenceProgress:
    """How far the sequence at a place of the batch has come, as the host knows it.

    Attributes:
        start: position of the first row in flight.
        rows: rows in flight in the coming outer step.
        known: tokens of the prompt.
        generated: tokens committed after the prompt.
        iterations: core iterations from the sequence's prefill until it finished, or so far.
    """

    start: int = 0
    rows: int = 0
    known: int = 0
    generated: list[int] = field(default_factory=list)
    iterations: int = 0


class WavefrontLoop:
    """Sequences in flight: :meth:`admit` prompts, :meth:`step` while rows remain, :meth:`release`.

    Between steps :meth:`generated`, :meth:`finish_reason` and :meth:`completion` tell how far the
    sequence at a place of the batch has come.

    Args:
        max_sequences: places of the batch.
        max_tokens: longest sequence, prompt included.
        cache_tokens: tokens that the cache holds in all; default every sequence at its longest.
        stop_tokens: end a sequence after one of these is committed.
        seed: of initial states, noise and sampling.
        log_probs: keep the log-probability of every token.
        buckets: pad the rows of an outer step to one of these counts, and on CUDA replay it as a
            graph. Empty computes the rows there are. Ignored by samplers that are not static (see
            :attr:`WavefrontPolicy.is_static`).

    Attributes:
        outer_steps, core_iterations, rows_computed: counters after the prefills.
    """

    def __init__(
        self,
        model: RecurrentDepthModel,
        policy: WavefrontPolicy,
        sampling: Sampling,
        *,
        max_sequences: int,
        max_tokens: int,
        cache_tokens: int | None = None,
        stop_tokens: tuple[int, ...] = (),
        seed: int = 0,
        log_probs: bool = False,
        buckets: tuple[int, ...] = (),
    ) -> None:
        self.model, self.policy, self.seed = model, policy, seed
        self.max_sequences, self.stop_tokens = max_sequences, frozenset(stop_tokens)
        self.cache = model.new_cache(
            max_sequences, max_tokens, total_tokens=cache_tokens, slots=policy.slots
        )
        self.sequences = SequenceTensors.empty(
            max_sequences, max_tokens, stop_tokens, log_probs, model.device
        )
        self._progress = [SequenceProgress() for _ in range(max_sequences)]
        self.buffers = RowBuffers(model, max_sequences, policy.headway)
        sampler = TokenSampler(sampling, model.config.vocab_size, seed, model.device, model.backend)
        self.program = OuterStepProgram(
            model, policy, sampler, self.cache, self.sequences, self.buffers, seed
        )
        is_padded = buckets and policy.is_static
        self.static_steps = StaticSteps(self.program, buckets) if is_padded else None
        self.outer_steps = self.core_iterations = self.rows_computed = 0
        self._phase = 0  # of the coming outer step
        self._has_fresh_rows = True
        self._last_rows = 0  # rows of the last outer step, which the coming one may continue

    @property
    def num_rows(self) -> int:
        """Rows of the coming outer step."""
        return sum(progress.rows for progress in self._progress)

    @property
    def running(self) -> bool:
        return any(progress.rows for progress in self._progress)

    @property
    def between_rounds(self) -> bool:
        """Whether the policy's phases begin anew: a sequence that joins then has all of them."""
        return self._phase == 0 or not self.running

    def could_fit(self, limit: int) -> bool:
        """Whether a sequence of ``limit`` tokens would find enough pages in the empty cache."""
        return self.cache.could_fit(limit)

    def fits(self, *limits: int) -> bool:
        """Whether new sequences of these lengths would find enough free pages, all together."""
        return self.cache.fits(*limits)

    def generated(self, b: int) -> list[int]:
        """Tokens committed after the prompt at a place, so far; the loop's own list."""
        return self._progress[b].generated

    def finish_reason(self, b: int) -> str | None:
        """Why the sequence at a place has ended: ``stop`` (token) or ``length``; None: not yet."""
        progress = self._progress[b]
        if progress.rows:
            return None
        return "stop" if progress.generated[-1] in self.stop_tokens else "length"

    def completion(self, b: int, finish_reason: str, count: int | None = None) -> Completion:
        """What has become of the sequence at a place: of its first ``count`` tokens, or of all."""
        progress, s = self._progress[b], self.sequences
        tokens = progress.generated[:count]
        here = slice(progress.known, progress.known + len(tokens))
        return Completion(
            tokens=tokens,
            text=None,
            finish_reason=finish_reason,
            depths=s.committed_depth[b, here].tolist(),
            log_probs=None if s.log_probs is None else s.log_probs[b, here].tolist(),
            core_iterations=progress.iterations,
        )

    def admit(self, prompts: dict[int, Prompt]) -> None:
        """Start a sequence at each of the given places, which must be free, between rounds.

        Computes the prompts, all together, and commits their first new token; or, without
        ``full_prefill``, puts their positions in flight.

        Raises:
            CacheFullError: not enough free pages; nothing has changed then.
        """
        reserved: list[int] = []
        try:
            for b, prompt in prompts.items():
                self.cache.reserve(b, prompt.limit)
                reserved.append(b)
        except Exception:
            for b in reserved:
                self.cache.truncate(b)
            raise
        prompts = dict(sorted(prompts.items()))
        if not self.running:  # nothing is left of a round, nor rows that one would continue
            self._phase = self._last_rows = 0
        self._write_prompts(prompts)
        begin = self._prefill if self.policy.full_prefill else self._all_in_flight
        self._join(*begin(prompts))

    def step(self, record: bool = False) -> OuterStep | None:
        """One outer step over all rows in flight; returns what it did if ``record``."""
        phase = self.policy.phases[self._phase]
        self._phase = (self._phase + 1) % len(self.policy.phases)
        runner = self.static_steps or self.program
        starts = [progress.start for progress in self._progress]
        lengths = [progress.rows for progress in self._progress]
        num_rows = runner.rows(sum(lengths))
        self.buffers.reserve(num_rows)
        rows, _, report = self.buffers.views(num_rows)
        consumed = rows.token.tolist() if record else []
        runner.run(num_rows, phase, has_fresh_rows=self._has_fresh_rows)
        self.outer_steps += 1
        self.core_iterations += self.program.iterations
        self.rows_computed += sum(lengths) * self.program.iterations
        for progress in self._progress:
            progress.iterations += self.program.iterations if progress.rows else 0
        self._last_rows = num_rows
        counts = self._read_report(report.tolist(), rows)  # the one host read
        if not record:
            return None
        bounds = list(accumulate(lengths, initial=0))

        def split(flat: list) -> list[list]:
            return [flat[a:b] for a, b in pairwise(bounds)]

        return OuterStep(
            start=starts,
            tokens=split(consumed),
            sampled=split(rows.sampled.tolist() if self.program.decoded else [-1] * num_rows),
            depths=split(rows.depth.tolist()),
            delta=split(rows.delta.tolist()),
            committed=counts,
        )

    def release(self, b: int) -> None:
        """End the sequence at a place, finished or not, and free its pages."""
        parts = self._parts()
        self.sequences.done[b] = True
        self.cache.truncate(b)
        had_rows = self._progress[b].rows > 0
        self._progress[b] = SequenceProgress()
        if had_rows:
            parts[b] = range(0)
            self._lay_out(self.buffers.coming, parts)

    # -- between outer steps ---------------------------------------------------------------------

    def _parts(self) -> list[range]:
        """Rows of every place in the coming outer step."""
        lengths = (progress.rows for progress in self._progress)
        return [range(*bounds) for bounds in pairwise(accumulate(lengths, initial=0))]

    def _write_prompts(self, prompts: dict[int, Prompt]) -> None:
        s, device = self.sequences, self.model.device
        full = self.policy.full_prefill
        for b, prompt in prompts.items():
            length = len(prompt.tokens)
            s.tokens[b, :length] = torch.tensor(prompt.tokens, device=device)
            s.start[b] = length - 1 if full else 0
            s.limit[b], s.known[b], s.ids[b] = prompt.limit, length, prompt.sequence_id
            s.done[b] = False
            self._progress[b] = SequenceProgress(start=length - 1 if full else 0, known=length)

    def _prefill(self, prompts: dict[int, Prompt]) -> tuple[NextRows, dict[int, int]]:
        """All positions of the prompts at once; commits the token after each.

        Returns:
            The rows that come next, and how many of them each place has.
        """
        policy, s, device = self.policy, self.sequences, self.model.device
        lengths = [len(prompt.tokens) for prompt in prompts.values()]
        wavefront = Wavefront.from_lengths([0] * len(lengths), lengths, device)
        at = torch.tensor(list(prompts), device=device)
        flat = [token for prompt in prompts.values() for token in prompt.tokens]
        state = prefill_states(
            self.model,
            torch.tensor(flat, device=device),
            wavefront,
            self.cache,
            num_steps=policy.num_steps,
            sequences=at,
            sequence_ids=s.ids[at],
            seed=self.seed,
            initial_state_scale=policy.initial_state_scale,
        )
        last = wavefront.cu_rows[1:].long() - 1
        outer = self.model.rows(wavefront, self.cache.page_table()[at])
        logits = self.model.decode(state, outer, self.cache, select=last)
        first = self._last_rows
        coming, report = self.program.commit_prompts(state[last], logits, list(prompts), first)
        self._last_rows = first + len(prompts)
        bounds, _, sampled = self._split(report.tolist())
        for b, token in zip(prompts, sampled, strict=True):
            self._progress[b].start += 1
            self._progress[b].generated.append(token)
        return coming, {b: bounds[b + 1] - bounds[b] for b in prompts}

    def _all_in_flight(self, prompts: dict[int, Prompt]) -> tuple[NextRows, dict[int, int]]:
        """Every position of the prompts as a fresh row; returns what :meth:`_prefill` does."""
        tokens = [token for prompt in prompts.values() for token in prompt.tokens]
        keys = [(p.sequence_id, i, 0) for p in prompts.values() for i in range(len(p.tokens))]
        device = self.model.device
        coming = NextRows(
            source_row=torch.full((len(tokens),), -1, dtype=torch.int32, device=device),
            token=torch.tensor(tokens, device=device),
            key=torch.tensor(keys, dtype=torch.int32, device=device),
        )
        return coming, {b: len(prompt.tokens) for b, prompt in prompts.items()}

    def _join(self, coming: NextRows, lengths: dict[int, int]) -> None:
        """Lay out ``lengths[b]`` rows of new sequences beside those that wait for the next step."""
        parts, waiting = self._parts(), self.num_rows
        if waiting:
            pairs = zip(self.buffers.coming, coming, strict=True)
            coming = NextRows(*(torch.cat((rows[:waiting], new)) for rows, new in pairs))
        first = waiting
        for b, length in lengths.items():
            parts[b] = range(first, first + length)
            first += length
        self._lay_out(coming, parts)
        for b, length in lengths.items():
            self._progress[b].rows = length
        self._has_fresh_rows = True

    def _lay_out(self, rows: NextRows, parts: list[range]) -> None:
        """Make the coming outer step of these rows: a part for every place."""
        bounds = list(accumulate(map(len, parts), initial=0))
        index = torch.tensor([row for part in parts for row in part], dtype=torch.int64)
        chosen = NextRows(*(tensor[index.to(tensor.device)] for tensor in rows))
        self.buffers.reserve(bounds[-1])
        for tensor, values in zip(self.buffers.coming, chosen, strict=True):
            tensor[: bounds[-1]] = values
        self.sequences.cu_rows.copy_(torch.tensor(bounds, dtype=torch.int32))

    # -- after an outer step ---------------------------------------------------------------------

    def _split(self, report: list[int]) -> tuple[list[int], list[int], list[int]]:
        """The parts of :attr:`RowBuffers.report`: bounds, commit counts, sampled tokens."""
        batch = len(self._progress)
        return report[: batch + 1], report[batch + 1 : 2 * batch + 1], report[2 * batch + 1 :]

    def _read_report(self, report: list[int], rows: RowTensors) -> list[int]:
        """What an outer step of these rows has done; returns rows committed per place."""
        bounds, counts, sampled = self._split(report)
        if self.cache.slots > 1:
            self._fill_slots(rows.depth.tolist(), counts)
        self._has_fresh_rows = False
        first = 0
        for b, progress in enumerate(self._progress):
            had, progress.rows = progress.rows, bounds[b + 1] - bounds[b]
            given = max(progress.known - 1 - progress.start, 0)  # rows that predict the prompt
            progress.generated += sampled[first + min(given, counts[b]) : first + counts[b]]
            progress.start += counts[b]
            # Rows that committed may have corrected a draft: as many rows, but new ones.
            may_restart = self.policy.restart and counts[b] > 0
            new = progress.rows != had - counts[b] or may_restart
            self._has_fresh_rows |= progress.rows > 0 and new
            first += had
        return counts

    def _fill_slots(self, depths: list[int], counts: list[int]) -> None:
        """Rows that were committed early leave their last K/V in the slots they never reached."""
        first = 0
        for b, (progress, count) in enumerate(zip(self._progress, counts, strict=True)):
            for j in range(count):
                self.cache.fill_slots(b, progress.start + j, depths[first + j])
            first += progress.rows
