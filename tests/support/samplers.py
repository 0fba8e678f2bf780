"""Samplers and sampling options that stand for all others, and a spy on the ops of the loop."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import rdkernels as rdk
from rdkernels.samplers.noise import NOISE_SCHEDULES

CHOICES = {
    "greedy": rdk.Sampling(),
    "temperature": rdk.Sampling(temperature=1.0),
    "filtered": rdk.Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.01),
}
PENALISED = rdk.Sampling(
    temperature=0.7, repetition_penalty=1.4, logit_bias={3: 1.5, 9: -2.0, 60: -float("inf")}
)
every_choice = pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(sampling, id=name, marks=[pytest.mark.slow] * (name == "filtered"))
        for name, sampling in CHOICES.items()
    ],
)
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
    "token-stable": replace(EAGER, freeze_rule=rdk.TokenStable(1), criterion="cosine"),
    "constant-noise": replace(EAGER, noise=0.2, noise_schedule="constant", exit_threshold=0.4),
    "variance-preserving-noise": replace(
        EAGER, noise=0.6, noise_schedule="variance-preserving", exit_threshold=0.4
    ),
    "entropy": replace(
        EAGER, noise=0.5, noise_schedule="hyperbolic", criterion="entropy-diff", exit_threshold=0.1
    ),
    "variance": replace(EAGER, noise=0.5, noise_schedule="variance-preserving"),
    "inner-exit": replace(EAGER, inner_recurrence=3, inner_exit_threshold=0.25),
    "refined": replace(EAGER, full_prefill=False),
    "refined-unshared": replace(
        EAGER, full_prefill=False, slots=6, headway=2, noise=0.3, exit_threshold=0.4
    ),
    "adaptive": rdk.AdaptiveDepth(6, threshold=0.2),
    "adaptive-kl": rdk.AdaptiveDepth(6, "kl", 0.05, min_steps=2, continuous_compute=True),
    "adaptive-argmax": rdk.AdaptiveDepth(6, "argmax-stability", 2, slots=3),
    "adaptive-interval": rdk.AdaptiveDepth(7, "latent-acceleration", 0.3, check_interval=3),
    "adaptive-user": rdk.AdaptiveDepth(5, lambda check: check.logits.argmax(dim=1) % 2 == 0),
    "speculative": rdk.SelfSpeculative(5, 2, 3, slots=5),
    "speculative-shared": rdk.SelfSpeculative(5, 2, 3),
    "lossless": rdk.LosslessWavefront(5, 2),
    "lossless-shared": rdk.LosslessWavefront(6, 2, slots=1),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


THRESHOLDS = {  # of the size at which rows of tiny models converge sooner or later
    "latent-diff": (0.0, 0.1, 0.3, 0.6),
    "latent-acceleration": (0.1, 0.5),
    "cosine": (0.01, 0.1),
    "entropy-diff": (0.02, 0.2),
    "kl": (0.01, 0.1),
    "minp-kl": (0.01, 0.1),
    "argmax-stability": (0, 1, 3),
}


def random_criterion(rng: random.Random) -> tuple[str, float]:
    """A criterion with a threshold; the paper's half the time."""
    name = rng.choice([*THRESHOLDS, *["latent-diff"] * 7])
    return name, rng.choice(THRESHOLDS[name])


def random_diffusion(rng: random.Random) -> rdk.DiffusionForcing:
    """Any options at all, the depths small enough that rows commit for every reason."""
    num_steps, full = rng.randint(2, 6), rng.random() < 0.7
    inner = rng.choice([None, None, 0.2, 0.5])
    criterion, threshold = random_criterion(rng)
    rules = [rdk.ConvergedPrefix(), rdk.LastConverged(), rdk.FixedDepth(rng.randint(1, 6))]
    return rdk.DiffusionForcing(
        num_steps,
        inner_recurrence=rng.randint(1, 4),
        exit_threshold=threshold,
        noise=rng.choice([0.0, 0.5]),
        momentum=rng.choice([0.0, 0.1, 0.7]),
        headway=rng.randint(1, 3),
        max_wavefront=rng.choice([1, 3, 6]),
        depth_limit=rng.choice([None, rng.randint(1, 8)]),
        freeze_rule=rng.choice([*rules, rdk.TokenStable(rng.randint(1, 2))]),
        criterion=criterion,
        noise_schedule=rng.choice(NOISE_SCHEDULES),
        inner_exit_threshold=inner,
        full_prefill=full,
        initial_state_scale=rng.choice([1.0, 0.0]),
        slots=1 if inner is not None else rng.choice([1, 2, num_steps]),
        continuous_compute=full and rng.random() < 0.3,
    )


def random_sampler(rng: random.Random) -> rdk.Sampler:
    """Any sampler at all; diffusion forcing, which has most to choose, half the time."""
    num_steps = rng.randint(2, 7)
    common = {
        "initial_state_scale": rng.choice([1.0, 0.0]),
        "slots": rng.choice([1, 2, num_steps]),
    }
    continuous = rng.random() < 0.3
    kind = rng.choice(["adaptive", "speculative", "lossless", *["diffusion"] * 3])
    if kind == "adaptive":
        name, threshold = random_criterion(rng)
        return rdk.AdaptiveDepth(
            num_steps,
            name,
            threshold,
            min_steps=rng.randint(1, num_steps),
            check_interval=rng.randint(1, num_steps),
            continuous_compute=continuous,
            **common,
        )
    if kind == "speculative":
        drafts = rng.randint(1, num_steps - 1), rng.randint(1, 5)
        return rdk.SelfSpeculative(num_steps, *drafts, **common)
    if kind == "lossless":
        return rdk.LosslessWavefront(num_steps, rng.randint(1, num_steps), **common)
    return random_diffusion(rng)


class _Listening:
    """A binding that lets ``listen(name, arguments, outputs)`` know of calls with ``out``."""

    def __init__(self, bound, listen) -> None:
        self._bound, self._listen = bound, listen

    def __getattr__(self, name):
        real = getattr(self._bound, name)
        if name not in rdk.ops.OPS:
            return real

        def call(*args, out=None):
            if out is None:
                return real(*args)
            kept = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
            real(*args, out=out)
            self._listen(name, kept, [r.clone() for r in out])
            return None

        return call


def spy(monkeypatch, name):
    """Record what the loop gives to an op and gets from it: ``(arguments, outputs)`` per call."""
    real, calls = rdk.ops.bind, []

    def listen(op, arguments, outputs):
        if op == name:
            calls.append((arguments, outputs))

    monkeypatch.setattr(rdk.ops, "bind", lambda *args: _Listening(real(*args), listen))
    return calls
