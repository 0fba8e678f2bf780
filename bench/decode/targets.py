"""What the project wants of its speed on a CPU, held against the rows of ``bench.end_to_end``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

NATIVE_OVER_EAGER = 6.0
PYTHON_SHARE = 0.30
HUGINN_SPEEDUP = 5.8  # of diffusion forcing r'=4 at batch 1, where bytes allow 6.41
BATCH_GAINS = {"demo": (16, 8.0), "huginn": (4, 3.3)}  # sequences, tokens/s over one sequence's


@dataclass(frozen=True)
class Target:
    """``value`` is to be at least ``target``, or else below it.

    ``met`` is None where the measurement does not decide it.
    """

    what: str
    value: float
    target: float
    at_least: bool
    met: bool | None


def find(rows: Sequence[dict[str, Any]], *, decided: bool) -> list[Target]:
    """The targets that these rows measure; ``decided=False``: as figures, without a verdict."""

    def target(what: str, value: float, goal: float, at_least: bool, met: bool | None) -> Target:
        return Target(what, value, goal, at_least, met if decided else None)

    def of(model: str, sampler: str, inner: int, backend: str = "best") -> dict[int, dict]:
        wanted = (model, sampler, inner, backend)
        keys = ("model", "sampler", "inner_recurrence", "backend")
        return {row["batch"]: row for row in rows if tuple(row[key] for key in keys) == wanted}

    def found() -> Iterator[Target]:
        for batch, slow in of("demo", "autoregressive", 32, "eager").items():
            what = f"demo, autoregressive r=32, batch {batch}: native over eager"
            ratio = 1 / slow["speedup"]
            yield target(what, ratio, NATIVE_OVER_EAGER, True, ratio >= NATIVE_OVER_EAGER)
        for sampler, inner in (("autoregressive", 32), ("diffusion-forcing", 4)):
            for row in (row for b, row in of("demo", sampler, inner).items() if b == 1):
                bounds = row["python_share_least"], row["python_share_most"]
                least, most = sorted(bounds)  # on a loaded machine they may cross
                met = True if most < PYTHON_SHARE else False if least >= PYTHON_SHARE else None
                what = f"demo, {row['label']}, batch 1: share of Python, at most"
                yield target(what, most, PYTHON_SHARE, False, met)
        huginn = of("huginn", "diffusion-forcing", 4)
        if 1 in huginn:
            gain = huginn[1]["speedup"]
            what = "huginn, diffusion forcing r'=4, batch 1: over autoregressive decoding"
            yield target(what, gain, HUGINN_SPEEDUP, True, gain >= HUGINN_SPEEDUP)
        for model, (batch, goal) in BATCH_GAINS.items():
            scaled = of(model, "diffusion-forcing", 4)
            if 1 in scaled and batch in scaled:
                gain = scaled[batch]["tokens_per_second"] / scaled[1]["tokens_per_second"]
                what = f"{model}, diffusion forcing r'=4: tokens/s of {batch} sequences over one's"
                yield target(what, gain, goal, True, gain >= goal)

    return list(found())
