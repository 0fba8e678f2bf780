"""``swiglu``: the gated activation of the MLP."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import norms
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define


def _check(x: torch.Tensor) -> None:
    expect_tensor("swiglu", "x", x, (None, None), FLOATS)
    expect(x.size(1) % 2 == 0, "swiglu", "x", "an even second size (gate | up)", list(x.shape))


def _fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.size(0), x.size(1) // 2)


OP = define(norms.swiglu, check=_check, fake=_fake, out=("out",))


def swiglu(x: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """``silu(gate) * up`` where ``x = [gate | up]``; computed in fp32 and rounded once.

    Args:
        x: ``[N, 2F]`` (fp32, bf16, fp16; fp64: eager only), gate in the first half.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N, F]``, dtype of ``x``. Zero rows give an empty result.

    Raises:
        ArgumentError: not two-dimensional, or an odd second size.
        BackendError: the forced provider cannot serve; says why.
    """
    return OP.provider(x, backend, (x,))(x)
