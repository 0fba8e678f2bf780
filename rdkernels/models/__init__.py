"""Recurrent-depth models: shape, weights, checkpoints, the shipped demo models."""

from rdkernels.models.checkpoint import load_model, save_model
from rdkernels.models.config import ModelConfig
from rdkernels.models.recurrent_depth import RecurrentDepthModel

__all__ = ["ModelConfig", "RecurrentDepthModel", "load_model", "save_model"]
