"""``Engine``: sequences come and go while the batch runs, an outer step at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from rdkernels import _validation as validation
from rdkernels.errors import ArgumentError
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.loop import Prompt, WavefrontLoop
from rdkernels.runtime.scheduler import Scheduler, Update, decoded
from rdkernels.runtime.trace import Completion
from rdkernels.samplers.policies import Sampler
from rdkernels.samplers.sampling import Sampling

__all__ = ["Completion", "Engine", "Update"]
_WHERE = "Engine.submit"


class Engine(Scheduler):
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
        chosen = validation.run_options(
            "Engine", model, sampler, sampling, stop_tokens, seed, buckets
        )
        validation.expect_count("Engine", "max_sequences", max_sequences, least=1)
        context = model.config.context_length
        max_tokens = context if max_tokens is None else max_tokens
        validation.expect_count("Engine", "max_tokens", max_tokens, least=2)
        if max_tokens > context:
            raise ArgumentError("Engine", "max_tokens", f"at most {context}", max_tokens)
        if cache_tokens is not None:
            validation.expect_count("Engine", "cache_tokens", cache_tokens, least=1)
        loop = WavefrontLoop(
            model,
            chosen.sampler.wavefront_policy(),
            chosen.sampling,
            max_sequences=max_sequences,
            max_tokens=max_tokens,
            cache_tokens=cache_tokens,
            stop_tokens=chosen.stop_tokens,
            seed=chosen.seed,
            log_probs=log_probs,
            buckets=chosen.buckets,
        )
        super().__init__(loop, drafts=drafts)
        self.model, self.max_tokens, self._log_probs = model, max_tokens, log_probs
        self._ids = validation.SequenceIds()

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
        if not self.loop.could_fit(limit):
            expected = "a sequence that fits into the cache"
            raise ArgumentError(_WHERE, "prompt, max_new_tokens", expected, f"{limit} tokens")
        return self.enqueue(Prompt(tokens, limit, sequence_id), strings, on_update)

    def cancel(self, request: int) -> None:
        """End a request with what it has; the others of the batch do not notice.

        Raises:
            ArgumentError: no such request is waiting or in flight.
        """
        for waiting in self._waiting:
            if waiting.number == request:
                self._waiting.remove(waiting)
                text = decoded(self.model.tokenizer, [])
                self._results[request] = Completion.empty("cancelled", text, self._log_probs)
                return
        for b, running in enumerate(self._places):
            if running is not None and running.number == request:
                self._finish(b, running, "cancelled")
                return
        expected = "a request that waits or is in flight"
        raise ArgumentError("Engine.cancel", "request", expected, request)

    def stream(self, request: int) -> Iterator[Update]:
        """Step the engine, yielding this request's updates until it ends.

        Raises:
            ArgumentError: no such request is waiting or in flight.
        """
        pending = [*self._waiting, *self._places]
        chosen = next((r for r in pending if r is not None and r.number == request), None)
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
