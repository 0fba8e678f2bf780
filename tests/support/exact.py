"""Settings in which a sampler must give exactly what autoregressive decoding gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

import rdkernels as rdk
from tests.support.samplers import CHOICES, PENALISED
from tests.support.tiny import CONFIG, GROUPED, random_prompts, tiny_model

SAMPLINGS = [*CHOICES.values(), PENALISED, rdk.Sampling(repetition_penalty=1.5)]


@dataclass(frozen=True)
class Setting:
    """A tiny model, prompts, and a sampler that is to equal :meth:`plain`."""

    sampler: rdk.Sampler
    weights: int
    grouped: bool
    lengths: list[int]
    sampling: rdk.Sampling
    max_new_tokens: int
    stop_tokens: list[int]

    def plain(self) -> rdk.Autoregressive:
        steps = self.sampler.num_steps
        scale = self.sampler.initial_state_scale
        return rdk.Autoregressive(steps, initial_state_scale=scale, slots=steps)

    def run(self, sampler: rdk.Sampler, dtype: torch.dtype, backend: str | None = None):
        model = tiny_model(self.weights, GROUPED if self.grouped else CONFIG, dtype, backend)
        return rdk.generate(
            model,
            random_prompts(self.weights, self.lengths),
            sampler=sampler,
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            seed=self.weights,
        )


@st.composite
def lossless(draw: st.DrawFn) -> rdk.LosslessWavefront:
    steps = draw(st.integers(1, 9))
    scale = draw(st.sampled_from([1.0, 0.0]))
    return rdk.LosslessWavefront(steps, draw(st.integers(1, steps)), initial_state_scale=scale)


@st.composite
def speculative(draw: st.DrawFn) -> rdk.SelfSpeculative:
    steps = draw(st.integers(2, 9))
    drafts = draw(st.integers(1, steps - 1)), draw(st.integers(1, 6))
    scale = draw(st.sampled_from([1.0, 0.0]))
    return rdk.SelfSpeculative(steps, *drafts, initial_state_scale=scale, slots=steps)


def exact_settings() -> st.SearchStrategy[Setting]:
    return st.builds(
        Setting,
        sampler=st.one_of(lossless(), speculative()),
        weights=st.integers(0, 1 << 30),
        grouped=st.booleans(),
        lengths=st.lists(st.sampled_from([1, 2, 5, 20, 63, 64, 65]), min_size=1, max_size=4),
        sampling=st.sampled_from(SAMPLINGS),
        max_new_tokens=st.integers(1, 14),
        stop_tokens=st.lists(st.integers(0, CONFIG.vocab_size - 1), max_size=3),
    )
