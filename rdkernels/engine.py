"""``Engine``: sequences come and go while the batch runs, an outer step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rdkernels import _validation as validation
from rdkernels.errors import ArgumentError
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.graphs import checked_buckets, default_buckets
from rdkernels.runtime.loop import Place, Prompt, WavefrontLoop
from rdkernels.runtime.trace import OuterStep
from rdkernels.samplers.policies import DiffusionForcing, Sampler
from rdkernels.samplers.sampling import Sampling

_WHERE = "Engine.submit"


@dataclass(frozen=True)
class Update:
    """What an outer step added to one request.

    Attributes:
        request: its number.
        tokens: newly committed ones.
        drafts: predictions of the rows still in flight, where the engine reports them; a later
            step may change any of them.
    """

    request: int
    tokens: list[int]
    drafts: list[int]


@dataclass(frozen=True)
class Completion:
    """A request that has ended.

    Attributes:
        tokens: generated ids only; a stop token, if hit, is the last one, and so is the token that
            completed a stop string.
        text: of the tokens, without the stop string; None where the model has no tokenizer.
        finish_reason: ``stop`` (token), ``stop_string``, ``length`` or ``cancelled``.
        depths: iterations behind each token.
        log_probs: of each token under the logits that it was drawn from (temperature 1, before
            top-k, top-p and min-p), or None unless the engine keeps them.
        core_iterations: core iterations from its prefill until it ended.
    """

    tokens: list[int]
    text: str | None
    finish_reason: str
    depths: list[int]
    log_probs: list[float] | None
    core_iterations: int


@dataclass
class _Request:
    number: int
    prompt: Prompt
    stop_strings: tuple[str, ...]
    on_update: Callable[[Update], None] | None
    place: int | None = None
    reported: int = 0  # generated tokens that updates have named


class Engine:
    """Continuous batching: submit prompts at any time, call :meth:`step`, collect results.

    What a request gives depends on its prompt, its sequence id and the engine's options only, not
    on what else is in the batch, nor on when others come, end or are cancelled.

    Args:
        model: from :func:`rdkernels.load_model`.
        sampler, sampling: of every request; default ``DiffusionForcing()``, greedy.
        max_sequences: most sequences in flight; others wait their turn.
        max_tokens: longest sequence, prompt included; default the model's context.
        cache_tokens: tokens that the K/V cache holds in all; default every sequence at its
            longest. A request waits until its prompt and ``max_new_tokens`` fit.
        stop_tokens: end a sequence after one of these is committed.
        seed: of initial states, noise and sampling.
        log_probs: keep the log-probability of every token.
        drafts: report drafts with every update.
        buckets: row counts that outer steps are padded to; see
            :mod:`rdkernels.runtime.graphs`. None: a default choice on CUDA, where each is
            captured as a graph; no padding elsewhere. Empty: never. Samplers whose outer steps
            depend on values ignore it: more than one slot, criteria other than ``latent-diff``
            and ``cosine``, ``TokenStable``.

    Raises:
        ArgumentError: a malformed option.
    """

    def __init__(
        self,
        model: RecurrentDepthModel,
        *,
        sampler: Sampler | None = None,
        sampling: Sampling | None = None,
        max_sequences: int = 8,
        max_tokens: int | None = None,
        cache_tokens: int | None = None,
        stop_tokens: Sequence[int] = (),
        seed: int = 0,
        log_probs: bool = False,
        drafts: bool = False,
        buckets: Sequence[int] | None = None,
    ) -> None:
        sampler = DiffusionForcing() if sampler is None else sampler
        sampling = Sampling() if sampling is None else sampling
        validation.expect_type("Engine", "sampler", sampler, Sampler)
        validation.expect_type("Engine", "sampling", sampling, Sampling)
        validation.expect_count("Engine", "max_sequences", max_sequences, least=1)
        validation.expect_seed("Engine", seed)
        context = model.config.context_length
        max_tokens = context if max_tokens is None else max_tokens
        validation.expect_count("Engine", "max_tokens", max_tokens, least=2)
        if max_tokens > context:
            raise ArgumentError("Engine", "max_tokens", f"at most {context}", max_tokens)
        if cache_tokens is not None:
            validation.expect_count("Engine", "cache_tokens", cache_tokens, least=1)
        stops = validation.ids("Engine", "stop_tokens", stop_tokens, model.config.vocab_size)
        if buckets is None:
            buckets = default_buckets(model)
        padded = checked_buckets("Engine", buckets)
        self.model, self.max_tokens, self.drafts = model, max_tokens, drafts
        self.stop_tokens = frozenset(stops)
        self.loop = WavefrontLoop(
            model,
            sampler.wavefront_policy(),
            sampling,
            max_sequences=max_sequences,
            max_tokens=max_tokens,
            cache_tokens=cache_tokens,
            stop_tokens=tuple(stops),
            seed=int(seed),
            log_probs=log_probs,
            buckets=padded or None,
        )
        self._ids = validation.SequenceIds()
        self._next = 0
        self._waiting: deque[_Request] = deque()
        self._places: list[_Request | None] = [None] * max_sequences
        self._results: dict[int, Completion] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight and nothing waits."""
        return not self._waiting and not any(self._places)

    def submit(
        self,
        prompt: Sequence[int] | str,
        *,
        max_new_tokens: int = 64,
        stop_strings: Sequence[str] = (),
        sequence_id: int | None = None,
        on_update: Callable[[Update], None] | None = None,
    ) -> int:
        """Queue a prompt; it starts with the next :meth:`step` that has a place for it.

        Args:
            prompt: token ids, or text where the model has a tokenizer.
            max_new_tokens: at least 1; the engine's ``max_tokens`` may end it earlier.
            stop_strings: end after the text contains one of these, across any token boundary.
            sequence_id: 31-bit random key; default a hash of the prompt and of how often this
                engine was given the same one before.
            on_update: called after every outer step that committed tokens of this request.

        Returns:
            The request's number.

        Raises:
            ArgumentError: an empty or too long prompt, or a malformed option; nothing is queued.
        """
        tokens = validation.prompt_ids(self.model, _WHERE, "prompt", prompt)
        if len(tokens) >= self.max_tokens:
            expected = f"fewer tokens than max_tokens = {self.max_tokens}"
            raise ArgumentError(_WHERE, "prompt", expected, len(tokens))
        validation.expect_count(_WHERE, "max_new_tokens", max_new_tokens, least=1)
        strings = validation.stop_string_list(self.model, _WHERE, stop_strings)
        validation.expect_callable(_WHERE, "on_update", on_update)
        if sequence_id is None:
            sequence_id = self._ids.next(tokens)
        (sequence_id,) = validation.ids(_WHERE, "sequence_id", [sequence_id], 1 << 31)
        limit = min(len(tokens) + int(max_new_tokens), self.max_tokens)
        if not self.loop.cache.could_fit(limit):
            expected = "a sequence that fits into the cache"
            raise ArgumentError(_WHERE, "prompt, max_new_tokens", expected, f"{limit} tokens")
        number, self._next = self._next, self._next + 1
        prompt = Prompt(tokens, limit, sequence_id)
        self._waiting.append(_Request(number, prompt, strings, on_update))
        return number

    def cancel(self, request: int) -> None:
        """End a request with what it has; the others of the batch do not notice.

        Raises:
            ArgumentError: no such request is waiting or in flight.
        """
        for waiting in self._waiting:
            if waiting.number == request:
                self._waiting.remove(waiting)
                self._results[request] = self._completion(waiting, Place(), "cancelled")
                return
        for running in self._places:
            if running is not None and running.number == request:
                self._finish(running, "cancelled")
                return
        expected = "a request that waits or is in flight"
        raise ArgumentError("Engine.cancel", "request", expected, request)

    @torch.no_grad()
    def start(self) -> None:
        """Admit what fits: compute prompts, and commit the first token of each."""
        self._admit()

    @torch.no_grad()
    def step(self, record: bool = False) -> OuterStep | None:
        """Admit what fits, then run one outer step; returns its record if ``record``."""
        self._admit()
        step = None
        if self.loop.running:
            step = self.loop.step(record=record or self.drafts)
            self._update(step)
        return step if record else None

    def run(self) -> dict[int, Completion]:
        """Step until idle; returns all results that nobody has taken."""
        while not self.idle:
            self.step()
        return self.results()

    def results(self) -> dict[int, Completion]:
        """What has ended since this was last asked, by request number."""
        ended, self._results = self._results, {}
        return ended

    def stream(self, request: int) -> Iterator[Update]:
        """Step the engine, yielding this request's updates until it ends.

        Raises:
            ArgumentError: no such request is waiting or in flight.
        """
        pending = [*self._waiting, *filter(None, self._places)]
        chosen = next((r for r in pending if r.number == request), None)
        if chosen is None:
            expected = "a request that waits or is in flight"
            raise ArgumentError("Engine.stream", "request", expected, request)
        updates: deque[Update] = deque()
        also = chosen.on_update

        def note(update: Update) -> None:
            updates.append(update)
            if also is not None:
                also(update)

        def steps() -> Iterator[Update]:
            yield from drain()
            while chosen in self._waiting or chosen in self._places:
                self.step()
                yield from drain()

        def drain() -> Iterator[Update]:
            while updates:
                yield updates.popleft()

        chosen.on_update = note
        return steps()

    # -- inside ----------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Waiting requests to free places, in order, as long as the cache has pages for them."""
        if not self.loop.between_rounds:
            return
        chosen: dict[int, Prompt] = {}
        for b, occupant in enumerate(self._places):
            if occupant is not None or not self._waiting:
                continue
            limits = (prompt.limit for prompt in chosen.values())
            if not self.loop.cache.fits(*limits, self._waiting[0].prompt.limit):
                break
            request = self._places[b] = self._waiting.popleft()
            request.place, chosen[b] = b, request.prompt
        if not chosen:
            return
        try:
            self.loop.admit(chosen)
        except BaseException:  # out of memory, interrupted: they wait for the next step
            for b in sorted(chosen, reverse=True):
                self.loop.release(b)
                self._waiting.appendleft(self._places[b])
                self._places[b].place = self._places[b] = None
            raise
        self._update(None)

    def _update(self, step: OuterStep | None) -> None:
        """Report what was committed, and end what has ended."""
        for b, request in enumerate(self._places):
            if request is None:
                continue
            place = self.loop.places[b]
            reason = self._stop_string(request, place)
            if reason is None and place.rows == 0:
                reason = "stop" if place.generated[-1] in self.stop_tokens else "length"
            fresh = place.generated[request.reported :]
            request.reported = len(place.generated)
            try:
                if fresh and request.on_update is not None:
                    waits = step is None or reason is not None  # no rows that have drafts
                    drafts = [] if waits else step.sampled[b][step.committed[b] :]
                    request.on_update(Update(request.number, fresh, drafts))
            finally:  # whatever the callback raises; it may also have cancelled the request
                if reason is not None and self._places[b] is request:
                    self._finish(request, reason)

    def _stop_string(self, request: _Request, place: Place) -> str | None:
        """Cut the tokens after the one that completes a stop string, if there is one."""
        if not request.stop_strings or request.reported == len(place.generated):
            return None
        decode = self.model.tokenizer.decode
        if not any(s in decode(place.generated) for s in request.stop_strings):
            return None
        for end in range(request.reported + 1, len(place.generated) + 1):
            text = decode(place.generated[:end])
            if any(s in text for s in request.stop_strings):
                del place.generated[end:]
                break
        return "stop_string"

    def _finish(self, request: _Request, reason: str) -> None:
        b = request.place
        self._results[request.number] = self._completion(request, self.loop.places[b], reason)
        self.loop.release(b)
        self._places[b] = None

    def _completion(self, request: _Request, place: Place, reason: str) -> Completion:
        tokens, text = place.generated, None
        if self.model.tokenizer is not None:
            text = self.model.tokenizer.decode(tokens)
            found = [text.find(s) for s in request.stop_strings if s in text]
            text = text[: min(found)] if found else text
        depths: list[int] = []
        s = self.loop.sequences
        log_probs: list[float] | None = None if s.log_probs is None else []
        here = slice(place.known, place.known + len(tokens))
        if request.place is not None:
            depths = s.committed_depth[request.place, here].tolist()
            if s.log_probs is not None:
                log_probs = s.log_probs[request.place, here].tolist()
        return Completion(tokens, text, reason, depths, log_probs, place.iterations)
