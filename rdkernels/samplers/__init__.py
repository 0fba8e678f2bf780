"""Samplers: one loop, small policies."""

from rdkernels.samplers.policies import (
    Autoregressive,
    ConvergedPrefix,
    DiffusionForcing,
    FixedDepth,
    FreezeRule,
    LastConverged,
    RowStatus,
    Sampler,
    Sampling,
)
from rdkernels.samplers.trace import GenerationStats, OuterStep, Trace

__all__ = [
    "Autoregressive",
    "ConvergedPrefix",
    "DiffusionForcing",
    "FixedDepth",
    "FreezeRule",
    "GenerationStats",
    "LastConverged",
    "OuterStep",
    "RowStatus",
    "Sampler",
    "Sampling",
    "Trace",
]
