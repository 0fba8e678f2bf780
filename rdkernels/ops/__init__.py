"""The ops of rdkernels: one name each, everywhere.

Every op is a function here, a torch operator ``torch.ops.rdkernels.<name>`` (with an ``out``
overload), an eager definition in ``rdkernels/backends/eager/`` and kernels of the same name in
``csrc/``.
"""

from rdkernels.ops.advance_wavefront import advance_wavefront
from rdkernels.ops.carry_rows import carry_rows
from rdkernels.ops.core_iterations import core_iterations
from rdkernels.ops.exit_update import exit_update
from rdkernels.ops.inject_state import inject_state
from rdkernels.ops.recurrent_attention import recurrent_attention
from rdkernels.ops.residual_norm import residual_norm
from rdkernels.ops.rms_norm import rms_norm
from rdkernels.ops.row_linear import row_linear
from rdkernels.ops.sample_tokens import sample_tokens
from rdkernels.ops.swiglu import swiglu
from rdkernels.ops.transformer_blocks import (
    BLOCK_MATRICES,
    BLOCK_TENSORS,
    PLACEMENTS,
    RESIDUAL_STYLES,
    transformer_blocks,
)
from rdkernels.ops.truncated_normal import truncated_normal
from rdkernels.registry import BACKENDS, OPS, Bound, bind, reasons

__all__ = [
    "BACKENDS",
    "BLOCK_MATRICES",
    "BLOCK_TENSORS",
    "OPS",
    "PLACEMENTS",
    "RESIDUAL_STYLES",
    "Bound",
    "advance_wavefront",
    "bind",
    "carry_rows",
    "core_iterations",
    "exit_update",
    "inject_state",
    "reasons",
    "recurrent_attention",
    "residual_norm",
    "rms_norm",
    "row_linear",
    "sample_tokens",
    "swiglu",
    "transformer_blocks",
    "truncated_normal",
]
