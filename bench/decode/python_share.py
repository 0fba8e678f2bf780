"""How much of an outer step is Python: the time that no op accounts for.

An op is anything that torch's dispatcher runs, the package's kernels and torch's own alike; the
rest of an outer step is the interpreter, the samplers' host code, and torch's parsing of arguments.
torch.profiler tells when each outermost op began and ended. It takes time itself, inside of ops
that call others and between them, so the same steps are also timed without it, in turn, and the
share of Python is bounded from both sides:

    least   1 - (time in ops, profiled) / (time of the steps, not profiled)
    most    1 - (time in ops, profiled) / (time of the steps, profiled)

Steps run through :class:`rdkernels.Engine` without a record, as ``generate`` runs them for a user.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile

from bench.timing import seconds_of
from rdkernels import Engine
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.samplers import Sampler

WARM_STEPS, STEPS, TURNS = 3, 24, 5
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or every profile prints two lines


class PythonShare(NamedTuple):
    """Bounds of the share, and the times per outer step that they come from.

    The times are those of the quietest turn, so that a neighbour's work is nobody's share.
    """

    least: float
    most: float
    step_seconds: float
    profiled_step_seconds: float
    op_seconds: float


def measure(
    model: RecurrentDepthModel,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    steps: int = STEPS,
    turns: int = TURNS,
) -> PythonShare:
    """``turns`` times ``steps`` outer steps behind ``prompts``, with the profiler and without."""
    plain: list[float] = []
    profiled: list[tuple[float, float]] = []  # of the steps, and in ops
    for _ in range(turns):
        plain.append(_timed(_started(model, prompts, sampler, steps), steps))
        engine = _started(model, prompts, sampler, steps)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            seconds = _timed(engine, steps)
        outermost = (event for event in profiler.events() if event.cpu_parent is None)
        in_ops = sum(event.time_range.elapsed_us() for event in outermost) * 1e-6
        profiled.append((seconds, in_ops))
    step, slow, inside = (seconds / steps for seconds in (min(plain), *min(profiled)))
    return PythonShare(
        least=max(0.0, 1 - inside / step),
        most=max(0.0, 1 - inside / slow),
        step_seconds=step,
        profiled_step_seconds=slow,
        op_seconds=inside,
    )


def _started(
    model: RecurrentDepthModel, prompts: Sequence[Sequence[int]], sampler: Sampler, steps: int
) -> Engine:
    """An engine in the middle of its work: prompts computed, the wavefront no longer fresh."""
    # A step commits what is in flight at most, and opens `headway` rows: nothing ends too early.
    policy = sampler.wavefront_policy()
    most = policy.headway * (WARM_STEPS + steps) + policy.max_wavefront + 1
    longest = max(map(len, prompts)) + most
    engine = Engine(model, sampler=sampler, max_sequences=len(prompts), max_tokens=longest)
    for prompt in prompts:
        engine.submit(prompt, max_new_tokens=most)
    engine.start()
    for _ in range(WARM_STEPS):
        engine.step()
    return engine


def _timed(engine: Engine, steps: int) -> float:
    seconds = seconds_of(lambda: [engine.step() for _ in range(steps)])
    assert not engine.idle
    return seconds
