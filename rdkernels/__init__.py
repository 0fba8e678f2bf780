"""rdkernels: run recurrent-depth language models fast, on fused kernels that are checked.

model = rdkernels.load_model("demo")
out = rdkernels.generate(model, ["<bos> Dan has 1 4 . ..."], sampler=rdkernels.DiffusionForcing())
"""

from rdkernels import ops
from rdkernels._version import __version__
from rdkernels.cache import SharedKVCache
from rdkernels.engine import Completion, Engine, Update
from rdkernels.errors import RdkernelsError
from rdkernels.evaluation.score import Score, score
from rdkernels.generate import GenerationOutput, generate
from rdkernels.models import ModelConfig, RecurrentDepthModel, load_model, save_model
from rdkernels.samplers import (
    AdaptiveDepth,
    Autoregressive,
    ConvergedPrefix,
    DiffusionForcing,
    FixedDepth,
    LastConverged,
    LosslessWavefront,
    Sampling,
    SelfSpeculative,
    TokenStable,
)
from rdkernels.wavefront import Wavefront

__all__ = [
    "AdaptiveDepth",
    "Autoregressive",
    "Completion",
    "ConvergedPrefix",
    "DiffusionForcing",
    "Engine",
    "FixedDepth",
    "GenerationOutput",
    "LastConverged",
    "LosslessWavefront",
    "ModelConfig",
    "RdkernelsError",
    "RecurrentDepthModel",
    "Sampling",
    "Score",
    "SelfSpeculative",
    "SharedKVCache",
    "TokenStable",
    "Update",
    "Wavefront",
    "__version__",
    "generate",
    "load_model",
    "ops",
    "save_model",
    "score",
]
