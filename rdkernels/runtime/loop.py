"""The sampling loop: one outer step after another, for every sampler and any batch.

The host's part: which sequences are in the batch, where their rows lie, what has been committed.
It reads one small tensor per outer step (the next bounds, commit counts, sampled tokens). The
device's part is :mod:`rdkernels.runtime.step`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch

from rdkernels.models.prefill import prefill_states
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.buffers import RowBuffers
from rdkernels.runtime.graphs import StaticSteps
from rdkernels.runtime.step import OuterStepProgram, SequenceTensors
from rdkernels.runtime.trace import OuterStep
from rdkernels.samplers.sampling import Sampling, TokenSampler
from rdkernels.samplers.schedule import WavefrontPolicy
from rdkernels.wavefront import Wavefront


@dataclass(frozen=True)
class Prompt:
    """A sequence to start: its tokens, the most it may have in all, and its random key."""

    tokens: list[int]
    limit: int
    sequence_id: int


class Layout(NamedTuple):
    """Rows of a coming outer step: see :class:`rdkernels.runtime.buffers.RowTensors`."""

    source_row: torch.Tensor
    token: torch.Tensor
    key: torch.Tensor


@dataclass
class Place:
    """One of the batch's places for a sequence, as the host knows it.

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

    Args:
        max_sequences: places of the batch.
        max_tokens: longest sequence, prompt included.
        cache_tokens: tokens that the cache holds in all; default every sequence at its longest.
        stop_tokens: end a sequence after one of these is committed.
        seed: of initial states, noise and sampling.
        log_probs: keep the log-probability of every token.
        buckets: pad the rows of an outer step to one of these counts, and on CUDA replay it as a
            graph. None computes the rows there are. Ignored by samplers that are not static (see
            :attr:`WavefrontPolicy.is_static`).

    Attributes:
        places: what the host knows of each place.
        sequences, cache: tokens and K/V on the device.
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
        buckets: tuple[int, ...] | None = None,
    ) -> None:
        self.model, self.policy, self.seed = model, policy, seed
        self.cache = model.new_cache(
            max_sequences, max_tokens, total_tokens=cache_tokens, slots=policy.slots
        )
        self.sequences = SequenceTensors.empty(
            max_sequences, max_tokens, stop_tokens, log_probs, model.device
        )
        self.places = [Place() for _ in range(max_sequences)]
        self.buffers = RowBuffers(model, max_sequences, policy.headway)
        sampler = TokenSampler(sampling, model.config.vocab_size, seed, model.device, model.backend)
        self.program = OuterStepProgram(
            model, policy, sampler, self.cache, self.sequences, self.buffers, seed
        )
        static = buckets is not None and policy.is_static
        self.static_steps = StaticSteps(self.program, buckets) if static else None
        self.outer_steps = self.core_iterations = self.rows_computed = 0
        self._phase = 0  # of the coming outer step
        self._has_fresh_rows = True
        self._last_rows = 0  # rows of the last outer step, which the coming one may continue

    @property
    def num_rows(self) -> int:
        """Rows of the coming outer step."""
        return sum(place.rows for place in self.places)

    @property
    def running(self) -> bool:
        return any(place.rows for place in self.places)

    @property
    def between_rounds(self) -> bool:
        """Whether the policy's phases begin anew: a sequence that joins then has all of them."""
        return self._phase == 0 or not self.running

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
        waiting, parts = self._copy_layout(), self._parts()
        self._write_prompts(prompts)
        if self.policy.full_prefill:
            self._prefill(prompts)
        else:
            self._put_in_flight(prompts)
        self._merge(waiting, parts, prompts)

    def step(self, record: bool = False) -> OuterStep | None:
        """One outer step over all rows in flight; returns what it did if ``record``."""
        phase = self.policy.phases[self._phase]
        self._phase = (self._phase + 1) % len(self.policy.phases)
        runner = self.static_steps or self.program
        num_rows = runner.rows(self.num_rows)
        self.buffers.reserve(num_rows)
        places = [(place.start, place.rows) for place in self.places]
        rows = self.buffers.rows(num_rows)
        consumed = rows.token.tolist() if record else []
        runner.run(num_rows, phase, has_fresh_rows=self._has_fresh_rows)
        self.outer_steps += 1
        self.core_iterations += self.program.iterations
        self.rows_computed += self.num_rows * self.program.iterations
        for place in self.places:
            place.iterations += self.program.iterations if place.rows else 0
        self._last_rows = num_rows
        counts = self._read_report(num_rows)
        if not record:
            return None
        bounds = [0, *accumulate(count for _, count in places)]

        def split(flat: list) -> list[list]:
            return [flat[a:b] for a, b in pairwise(bounds)]

        return OuterStep(
            start=[start for start, _ in places],
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
        had_rows = self.places[b].rows > 0
        self.places[b] = Place()
        if had_rows:
            parts[b] = (0, 0)
            self._lay_out(self._copy_layout(), parts)

    # -- between outer steps ---------------------------------------------------------------------

    def _parts(self) -> list[tuple[int, int]]:
        """``(first, last)`` row of every place in the coming outer step."""
        return list(pairwise([0, *accumulate(place.rows for place in self.places)]))

    def _copy_layout(self) -> Layout:
        """The layout of the coming outer step; with places that have just gone, theirs too."""
        if self.buffers.capacity == 0:
            self.buffers.reserve(1)
        return Layout(*(tensor.clone() for tensor in self.buffers.laid_out(self._last_rows)))

    def _write_prompts(self, prompts: dict[int, Prompt]) -> None:
        s, device = self.sequences, self.model.device
        full = self.policy.full_prefill
        for b, prompt in prompts.items():
            length = len(prompt.tokens)
            s.tokens[b, :length] = torch.tensor(prompt.tokens, device=device)
            s.start[b] = length - 1 if full else 0
            s.limit[b], s.known[b], s.ids[b] = prompt.limit, length, prompt.sequence_id
            s.done[b] = False
            self.places[b] = Place(start=length - 1 if full else 0, known=length)

    def _prefill(self, prompts: dict[int, Prompt]) -> None:
        """All positions of the prompts at once; commits the token after each."""
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
        self._commit_last_rows(state[last], logits, list(prompts))

    def _commit_last_rows(
        self, state: torch.Tensor, logits: torch.Tensor, places: list[int]
    ) -> None:
        """An outer step's end for the last rows of prompts that have just been computed."""
        # Behind the rows of the last step, which others of the batch will continue.
        first, count = self._last_rows, len(places)
        self.buffers.reserve(first + count)
        width = self.model.config.hidden_size
        self.buffers.whole.adapter_input[first : first + count, :width] = state
        running = [place.rows for place in self.places]
        for b, place in enumerate(self.places):
            place.rows = int(b in places)
        self._write_bounds()
        s, rows = self.sequences, self.buffers.rows(count)
        wavefront = Wavefront(s.cu_rows, s.start, count)
        rows.logits.copy_(logits)
        rows.key.copy_(wavefront.row_keys(s.ids, None))
        rows.depth.fill_(self.policy.num_steps)
        rows.settled.fill_(True)
        self.program.decoded = True
        self.program.sample(rows, wavefront)
        self.program.advance(count)
        self._read_report(count)
        if first:  # fresh rows name the row before them: it lies behind the others
            source = self.buffers.laid_out(count)[0]
            source[: sum(self.places[b].rows for b in places)] -= first
        self._last_rows = first + count
        for b, rows_before in enumerate(running):
            if b not in places:
                self.places[b].rows = rows_before

    def _put_in_flight(self, prompts: dict[int, Prompt]) -> None:
        """Every position of the prompts as a fresh row."""
        device, count = self.model.device, sum(len(p.tokens) for p in prompts.values())
        self.buffers.reserve(max(count, self._last_rows))
        source_row, token, key = self.buffers.laid_out(count)
        self._last_rows = max(count, self._last_rows)
        first = 0
        for b, prompt in prompts.items():
            length = self.places[b].rows = len(prompt.tokens)
            here = slice(first, first + length)
            token[here] = torch.tensor(prompt.tokens, device=device)
            source_row[here] = -1
            key[here, 0] = prompt.sequence_id
            key[here, 1] = torch.arange(length, dtype=torch.int32, device=device)
            key[here, 2] = 0
            first += length

    def _merge(
        self, waiting: Layout, parts: list[tuple[int, int]], prompts: dict[int, Prompt]
    ) -> None:
        """Lay out the rows that waited for the next outer step beside those of new sequences."""
        new = Layout(*self.buffers.laid_out(self._last_rows))
        both = Layout(*(torch.cat(pair) for pair in zip(waiting, new, strict=True)))
        first = len(waiting.token)
        for b in prompts:
            parts[b] = (first, first + self.places[b].rows)
            first += self.places[b].rows
        self._has_fresh_rows = True
        self._lay_out(both, parts)

    def _lay_out(self, layout: Layout, parts: list[tuple[int, int]]) -> None:
        """Make the coming step's rows of parts ``[first, last)`` of a layout, one per place."""
        rows = [row for first, last in parts for row in range(first, last)]
        self.buffers.reserve(len(rows))
        at = torch.tensor(rows, dtype=torch.int64, device=self.model.device)
        whole = self.buffers.whole
        for name, tensor in layout._asdict().items():
            getattr(whole, name)[: len(rows)] = tensor[at]
        self._write_bounds()

    def _write_bounds(self) -> None:
        bounds = [0, *accumulate(place.rows for place in self.places)]
        self.sequences.cu_rows.copy_(torch.tensor(bounds, dtype=torch.int32))

    # -- after an outer step ---------------------------------------------------------------------

    def _read_report(self, num_rows: int) -> list[int]:
        """What an outer step of ``num_rows`` rows has done; returns rows committed per place."""
        batch = len(self.places)
        report = self.buffers.report[: 2 * batch + 1 + num_rows].tolist()  # the one host read
        bounds, counts = report[: batch + 1], report[batch + 1 : 2 * batch + 1]
        sampled = report[2 * batch + 1 :]
        if self.cache.slots > 1:
            self._fill_slots(self.buffers.rows(num_rows).depth.tolist(), counts)
        self._has_fresh_rows = False
        first = 0
        for b, place in enumerate(self.places):
            had, place.rows = place.rows, bounds[b + 1] - bounds[b]
            given = max(place.known - 1 - place.start, 0)  # rows that predict the prompt itself
            place.generated += sampled[first + min(given, counts[b]) : first + counts[b]]
            place.start += counts[b]
            # Rows that committed may have corrected a draft: as many rows, but new ones.
            may_restart = self.policy.restart and counts[b] > 0
            new = place.rows != had - counts[b] or may_restart
            self._has_fresh_rows |= place.rows > 0 and new
            first += had
        return counts

    def _fill_slots(self, depths: list[int], counts: list[int]) -> None:
        """Rows that were committed early leave their last K/V in the slots they never reached."""
        first = 0
        for b, (place, count) in enumerate(zip(self.places, counts, strict=True)):
            for j in range(count):
                self.cache.fill_slots(b, place.start + j, depths[first + j])
            first += place.rows
