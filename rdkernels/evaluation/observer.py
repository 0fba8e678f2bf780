"""Whoever watches a generation, or a comparison or sweep made of many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

if TYPE_CHECKING:
    from rdkernels.engine import Update
    from rdkernels.evaluation.contender import Contender
    from rdkernels.generate import GenerationOutput
    from rdkernels.models.demo import Problem
    from rdkernels.runtime import OuterStep

_Self = TypeVar("_Self", bound="Observer")


class Observer:
    """Watches nothing; subclasses override what they want to see. Use as a context manager.

    :attr:`step` and :attr:`update` are ``generate``'s ``on_step`` and ``on_update``. Committed
    tokens come through ``update``; what is in flight comes through ``step``, which ``generate``
    calls after it. The time that a comparison's observer takes in them is not counted.

    Attributes:
        step: called with every outer step, or None, which spares ``generate`` its record.
        update: called with newly committed tokens, or None.
        prints_text: whether it has printed the generated text itself.
    """

    step: Callable[[OuterStep], None] | None = None
    update: Callable[[Update], None] | None = None
    prints_text: ClassVar[bool] = False

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, contender: Contender, problems: Sequence[Problem]) -> None:
        """A comparison starts a batch of problems."""

    def end(
        self, contender: Contender, correct: Sequence[bool], tokens: Sequence[Sequence[int]]
    ) -> None:
        """The batch is scored: whether each answer is right, and its generated tokens."""

    def finish(self, output: GenerationOutput) -> None:
        """A single generation is over."""
