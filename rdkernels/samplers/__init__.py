"""Samplers: one loop, small policies."""

from rdkernels.samplers.criteria import CRITERIA, ExitCheck, ExitCriterion
from rdkernels.samplers.freeze import (
    ConvergedPrefix,
    FixedDepth,
    FreezeRule,
    LastConverged,
    RowStatus,
    TokenStable,
)
from rdkernels.samplers.noise import NOISE_SCHEDULES, NoiseSchedule
from rdkernels.samplers.policies import (
    SAMPLERS,
    AdaptiveDepth,
    Autoregressive,
    DiffusionForcing,
    LosslessWavefront,
    Sampler,
    SelfSpeculative,
)
from rdkernels.samplers.sampling import Sampling

__all__ = [
    "CRITERIA",
    "NOISE_SCHEDULES",
    "SAMPLERS",
    "AdaptiveDepth",
    "Autoregressive",
    "ConvergedPrefix",
    "DiffusionForcing",
    "ExitCheck",
    "ExitCriterion",
    "FixedDepth",
    "FreezeRule",
    "LastConverged",
    "LosslessWavefront",
    "NoiseSchedule",
    "RowStatus",
    "Sampler",
    "Sampling",
    "SelfSpeculative",
    "TokenStable",
]
