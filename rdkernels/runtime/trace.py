"""What a generation did: a record per outer step, and totals."""

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


@dataclass
class GenerationStats:
    """Totals of a generation.

    Attributes:
        outer_steps: passes of the loop after the prefill.
        core_iterations: sequential passes of the core block after the prefill.
        rows_computed: rows that went through the core block after the prefill, counted once per
            iteration.
        depths: per sequence, the iterations behind each generated token.
        sequence_core_iterations: per sequence, core iterations until it finished.
        prefill_seconds, decode_seconds: wall time of the two phases.
    """

    outer_steps: int = 0
    core_iterations: int = 0
    rows_computed: int = 0
    depths: list[list[int]] = field(default_factory=list)
    sequence_core_iterations: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

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
