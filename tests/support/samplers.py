"""Samplers and sampling options that stand for all others, and a spy on the ops of the loop."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import rdkernels as rdk

CHOICES = {
    "greedy": rdk.Sampling(),
    "temperature": rdk.Sampling(temperature=1.0),
    "filtered": rdk.Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.01),
}
every_choice = pytest.mark.parametrize("sampling", CHOICES.values(), ids=CHOICES.keys())
EAGER = rdk.DiffusionForcing(6, inner_recurrence=2, exit_threshold=0.2, max_wavefront=8)
SAMPLERS = {
    "autoregressive": rdk.Autoregressive(4),
    "continuous": rdk.Autoregressive(4, continuous_compute=True),
    "unshared": rdk.Autoregressive(4, slots=4),
    "diffusion": EAGER,
    "noise": replace(EAGER, noise=0.4, headway=3),
    "fixed-depth": replace(EAGER, freeze_rule=rdk.FixedDepth(6), momentum=0.0),
    "last-converged": replace(EAGER, freeze_rule=rdk.LastConverged(), slots=2),
    "unshared-diffusion": replace(EAGER, slots=6, continuous_compute=True),
    "unfilled-slots": replace(EAGER, slots=6, inner_recurrence=1, exit_threshold=0.5),
    "zero-states": replace(EAGER, initial_state_scale=0.0),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def random_policy(rng: random.Random) -> rdk.DiffusionForcing:
    """Any policy at all, its depths small enough that rows commit for every reason."""
    num_steps = rng.randint(2, 6)
    return rdk.DiffusionForcing(
        num_steps,
        inner_recurrence=rng.randint(1, 4),
        exit_threshold=rng.choice([0.0, 0.1, 0.3, 0.6]),
        noise=rng.choice([0.0, 0.5]),
        momentum=rng.choice([0.0, 0.1, 0.7]),
        headway=rng.randint(1, 3),
        max_wavefront=rng.choice([1, 3, 6]),
        depth_limit=rng.choice([None, rng.randint(1, 8)]),
        freeze_rule=rng.choice(
            [rdk.ConvergedPrefix(), rdk.LastConverged(), rdk.FixedDepth(rng.randint(1, 6))]
        ),
        initial_state_scale=rng.choice([1.0, 0.0]),
        slots=rng.choice([1, 2, num_steps]),
        continuous_compute=rng.random() < 0.3,
    )


class _Listening:
    """A :class:`rdkernels.ops` binding that lets ``listen(name, arguments, outputs)`` know."""

    def __init__(self, bound, listen) -> None:
        self._bound, self._listen = bound, listen

    def __getattr__(self, name):
        real = getattr(self._bound, name)
        if not name.endswith("_out"):
            return real

        def call(*args, out):
            kept = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
            real(*args, out=out)
            self._listen(name.removesuffix("_out"), kept, [r.clone() for r in out])

        return call


def spy(monkeypatch, name):
    """Record what the loop gives to an op and gets from it: ``(arguments, outputs)`` per call."""
    real, calls = rdk.ops.bind, []

    def listen(op, arguments, outputs):
        if op == name:
            calls.append((arguments, outputs))

    monkeypatch.setattr(rdk.ops, "bind", lambda *args: _Listening(real(*args), listen))
    return calls
