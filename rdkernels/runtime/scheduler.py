"""Which sequences are in flight: requests wait for a place, are told what they get, and end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rdkernels.models.tokenizer import Tokenizer
from rdkernels.runtime.loop import Prompt, WavefrontLoop
from rdkernels.runtime.trace import Completion, OuterStep


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


@dataclass(eq=False)
class Request:
    """A prompt that waits, or that is in flight at a place of the batch."""

    number: int
    prompt: Prompt
    stop_strings: tuple[str, ...]
    on_update: Callable[[Update], None] | None
    reported: int = 0  # generated tokens that updates have named
    end: int | None = None  # generated tokens up to the one that completed a stop string


class Scheduler:
    """Requests on a loop. What they ask for has been checked: see :class:`rdkernels.Engine`.

    Args:
        loop: nothing is in flight in it.
        drafts: report drafts with every update.
    """

    def __init__(self, loop: WavefrontLoop, *, drafts: bool = False) -> None:
        self.loop, self.drafts = loop, drafts
        self._next = 0
        self._waiting: deque[Request] = deque()
        self._places: list[Request | None] = [None] * loop.max_sequences
        self._results: dict[int, Completion] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight and nothing waits."""
        return not self._waiting and not any(self._places)

    def enqueue(
        self,
        prompt: Prompt,
        stop_strings: tuple[str, ...] = (),
        on_update: Callable[[Update], None] | None = None,
    ) -> int:
        """Queue a prompt; returns the request's number."""
        number, self._next = self._next, self._next + 1
        self._waiting.append(Request(number, prompt, stop_strings, on_update))
        return number

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

    # -- inside ----------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Waiting requests to free places, in order, as long as the cache has pages for them."""
        if not self.loop.between_rounds:
            return
        chosen: dict[int, Request] = {}
        for b, occupant in enumerate(self._places):
            if occupant is not None or not self._waiting:
                continue
            limits = (request.prompt.limit for request in chosen.values())
            if not self.loop.fits(*limits, self._waiting[0].prompt.limit):
                break
            chosen[b] = self._places[b] = self._waiting.popleft()
        if not chosen:
            return
        try:
            self.loop.admit({b: request.prompt for b, request in chosen.items()})
        except BaseException:  # out of memory, interrupted: they wait for the next step
            for b, request in reversed(chosen.items()):
                self.loop.release(b)
                self._waiting.appendleft(request)
                self._places[b] = None
            raise
        self._update(None)

    def _update(self, step: OuterStep | None) -> None:
        """Report what was committed, and end what has ended."""
        for b, request in enumerate(self._places):
            if request is None:
                continue
            generated = self.loop.generated(b)
            if request.stop_strings and len(generated) > request.reported:
                request.end = self._stop_string(request, generated)
            reason = self.loop.finish_reason(b) if request.end is None else "stop_string"
            fresh = generated[request.reported : request.end]
            request.reported += len(fresh)
            try:
                if fresh and request.on_update is not None:
                    drafts: list[int] = []
                    if step is not None and reason is None:  # else no rows have drafts
                        drafts = step.sampled[b][step.committed[b] :]
                    request.on_update(Update(request.number, fresh, drafts))
            finally:  # whatever the callback raises; it may also have cancelled the request
                if reason is not None and self._places[b] is request:
                    self._finish(b, request, reason)

    def _stop_string(self, request: Request, generated: list[int]) -> int | None:
        """Tokens up to the one that completes a stop string, if there is one."""

        def stops(count: int) -> bool:
            text = decoded(self.loop.model.tokenizer, generated[:count])
            return text is not None and any(s in text for s in request.stop_strings)

        if not stops(len(generated)):
            return None
        counts = range(request.reported + 1, len(generated) + 1)
        return next((count for count in counts if stops(count)), len(generated))

    def _finish(self, b: int, request: Request, reason: str) -> None:
        """End the request at a place."""
        completion = self.loop.completion(b, reason, request.end)
        text = decoded(self.loop.model.tokenizer, completion.tokens)
        if text is not None:
            found = [text.find(s) for s in request.stop_strings if s in text]
            text = text[: min(found)] if found else text
        self._results[request.number] = replace(completion, text=text)
        self.loop.release(b)
        self._places[b] = None


def decoded(tokenizer: Tokenizer | None, tokens: list[int]) -> str | None:
    """The text of tokens; None where the model has no tokenizer."""
    return None if tokenizer is None else tokenizer.decode(tokens)
