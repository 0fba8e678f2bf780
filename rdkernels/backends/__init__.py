"""Providers of the ops: who can serve what, and why not.

``eager`` is the meaning of every op, ``native`` the compiled extension, ``triton`` the Triton
kernels. A provider answers with a reason (a sentence) when it cannot serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rdkernels.backends import native


def reason(backend: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    """None if ``backend`` serves ``op`` for ``dtype`` on ``device``, else why it cannot."""
    if backend == "eager":
        return None
    if backend == "native":
        return native.reason(op, device, dtype)
    return "no Triton kernels in this version"


def function(backend: str, op: str) -> Callable[..., Any]:
    """The callable with the op's positional schema arguments."""
    from rdkernels.ops._registry import OPS

    if backend == "native":
        return native.function(op)
    return OPS[op].eager if backend == "eager" else OPS[op].default
