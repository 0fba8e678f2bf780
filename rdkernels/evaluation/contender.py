"""A sampler that takes part in a comparison."""

from __future__ import annotations

from dataclasses import dataclass

from rdkernels.samplers import DiffusionForcing, Sampler


@dataclass(frozen=True)
class Contender:
    """One sampler in a comparison and how it is named in tables and JSON."""

    name: str
    sampler: Sampler

    @property
    def label(self) -> str:
        """Short and unique within a sweep: ``autoregressive r=32``, ``diffusion forcing r'=4``."""
        name = self.name.replace("-", " ")
        if isinstance(self.sampler, DiffusionForcing):
            return f"{name} r'={self.sampler.inner_recurrence}"
        return f"{name} r={self.sampler.num_steps}"
