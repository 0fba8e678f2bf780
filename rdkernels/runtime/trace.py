"""What a generation did: a record per outer step, what became of each sequence, totals."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class OuterStep:
    """One outer step as computed, an entry per sequence of the batch.

    Attributes:
        start: position of the first row in flight.
        tokens: input token of each row.
        sampled: token that each row predicts for the position after it.
        depths: iterations of each row, this step included.
        delta: how far each row's state moved in this step.
        committed: rows committed at the end of the step.
    """

    start: list[int]
    tokens: list[list[int]]
    sampled: list[list[int]]
    depths: list[list[int]]
    delta: list[list[float]]
    committed: list[int]


@dataclass
class Trace:
    """All outer steps of a generation, after the prefill."""

    prompt_lengths: list[int]
    steps: list[OuterStep] = field(default_factory=list)


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

    @staticmethod
    def empty(finish_reason: str, text: str | None, log_probs: bool) -> Completion:
        """Of a request that never started."""
        return Completion([], text, finish_reason, [], [] if log_probs else None, 0)


@dataclass
class GenerationStats:
    """Totals of a generation.

    Attributes:
        outer_steps: passes of the loop after the prefill.
        core_iterations: sequential passes of the core block after the prefill.
        rows_computed: rows that went through the core block after the prefill, counted once per
            iteration.
        prefill_seconds, decode_seconds: wall time of the two phases.
        completions: what became of each sequence.
    """

    outer_steps: int = 0
    core_iterations: int = 0
    rows_computed: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    completions: list[Completion] = field(default_factory=list, repr=False)

    @property
    def depths(self) -> list[list[int]]:
        """Per sequence, the iterations behind each generated token."""
        return [completion.depths for completion in self.completions]

    @property
    def sequence_core_iterations(self) -> list[int]:
        """Per sequence, core iterations until it finished."""
        return [completion.core_iterations for completion in self.completions]

    @property
    def generated_tokens(self) -> int:
        return sum(map(len, self.depths))

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second of decoding; the prefill is not counted."""
        return self.generated_tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def core_iterations_per_token(self) -> float:
        """Sequential core iterations per generated token, as one sequence alone would need."""
        total = sum(self.sequence_core_iterations)
        return total / self.generated_tokens if self.generated_tokens else 0.0

    @property
    def tokens_per_core_iteration(self) -> float:
        """Generated tokens of the whole batch per pass over the core block's weights."""
        return self.generated_tokens / self.core_iterations if self.core_iterations else 0.0
