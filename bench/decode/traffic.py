"""What decoding reads of the weights: passes over each part, counted, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.weights import Block, LinearWeight, QuantizedWeight, tensors_of


class Passes(NamedTuple):
    """Passes over each part of a model; ``head`` is the coda and the head."""

    prelude: int = 0
    core: int = 0
    head: int = 0

    def since(self, before: Passes) -> Passes:
        return Passes(*(now - then for now, then in zip(self, before, strict=True)))

    def and_also(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(self, other, strict=True)))


class PassCounter:
    """Counts what a model is asked for while :func:`counted` watches it."""

    def __init__(self) -> None:
        self.passes = Passes()


@contextmanager
def counted(model: RecurrentDepthModel) -> Iterator[PassCounter]:
    """Count the passes of ``model``.

    Not every outer step reads every weight: a row whose token stays is embedded once, and a step
    that can settle nothing is not decoded. So passes are counted where they happen.
    """
    counter = PassCounter()

    def watched(method: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            more = options.get("iterations", 1) if part == "core" else 1
            had = getattr(counter.passes, part)
            counter.passes = counter.passes._replace(**{part: had + more})
            return method(*arguments, **options)

        return call

    parts = {"embed": "prelude", "iterate": "core", "decode": "head"}
    for name, part in parts.items():
        setattr(model, name, watched(getattr(model, name), part))
    try:
        yield counter
    finally:
        for name in parts:
            delattr(model, name)  # the class's own shows again


@dataclass(frozen=True)
class Traffic:
    """Bytes of weights in one pass over each part: what no implementation at this precision avoids.

    Of an embedding that is not the head only the rows of the tokens are read, which is nothing.
    """

    prelude: int
    core: int
    head: int

    @staticmethod
    def of(model: RecurrentDepthModel) -> Traffic:
        w = model.weights
        head = _nbytes(w.final_norm) + _nbytes(w.head) + _blocks_nbytes(w.coda)
        return Traffic(_blocks_nbytes(w.prelude), model.parameter_bytes("core"), head)

    def outer_step(self, inner_recurrence: int) -> int:
        """Bytes of an outer step that embeds and decodes its rows."""
        return self.bytes(Passes(1, inner_recurrence, 1))

    def bytes(self, passes: Passes) -> int:
        return passes.prelude * self.prelude + passes.core * self.core + passes.head * self.head


def _nbytes(weight: LinearWeight) -> int:
    if isinstance(weight, QuantizedWeight):
        return weight.values.nbytes + weight.scale.nbytes
    return weight.nbytes


def _blocks_nbytes(blocks: tuple[Block, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors_of(blocks))
