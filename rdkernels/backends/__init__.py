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


def out_function(backend: str, op: str) -> Callable[..., None]:
    """The callable with the op's positional arguments and ``out``, a tuple of its outputs."""
    from rdkernels.ops._registry import OPS

    names = OPS[op].out_names
    if backend == "triton":
        return copied_out(function(backend, op))
    write = native.out_function(op) if backend == "native" else OPS[op].eager_out

    def call(*arguments: Any, out: tuple[torch.Tensor, ...]) -> None:
        write(*arguments, **dict(zip(names, out, strict=True)))

    return call


def copied_out(allocating: Callable[..., Any]) -> Callable[..., None]:
    """An ``out`` form made of one that allocates, and a copy of its outputs."""

    def call(*arguments: Any, out: tuple[torch.Tensor, ...]) -> None:
        results = allocating(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        for target, result in zip(out, results, strict=True):
            target[: len(result)].copy_(result)

    return call
