"""Providers of the ops: who can serve what, and why not.

``eager`` is the meaning of every op, ``native`` the compiled extension, ``triton`` the Triton
kernels. A provider answers with a reason (a sentence) when it cannot serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rdkernels.backends import native, triton


def reason(backend: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    """None if ``backend`` serves ``op`` for ``dtype`` on ``device``, else why it cannot."""
    if backend == "eager":
        return None
    provider = native if backend == "native" else triton
    return provider.reason(op, device, dtype)


def only_by_name(backend: str, device: str) -> bool:
    """Whether ``backend`` serves no call that does not name it: Triton's interpreter, for tests."""
    return backend == "triton" and device == "cpu"


def function(backend: str, op: str) -> Callable[..., Any]:
    """The callable with the op's positional schema arguments."""
    from rdkernels.ops._registry import OPS

    if backend == "eager":
        return OPS[op].eager
    return (native if backend == "native" else triton).function(op)
