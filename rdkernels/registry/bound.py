"""Functions that are chosen once, for code that calls many ops in a row.

``bound.pyi`` gives every op its signature here; ``python -m tools.bound_stub`` writes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from rdkernels.errors import BackendError
from rdkernels.registry.choice import choose, remembers
from rdkernels.registry.op import OPS


class Bound:
    """The functions that :func:`bind` chose, by name; each is chosen when it is first asked for."""

    def __init__(self, backend: str | None, device: str, dtype: torch.dtype) -> None:
        self._choice = (backend, device, dtype)

    def chosen(self, name: str) -> str | None:
        """The provider that serves op ``name``; None where the forced one cannot."""
        backend, device, dtype = self._choice
        return choose(name, backend, device, OPS[name].looked_up_by(dtype))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in OPS:
            raise AttributeError(name)
        function = OPS[name].serving(*self._choice)
        setattr(self, name, function)
        return function


@cache
def _bind(backend: str | None, device: str, dtype: torch.dtype) -> Bound:
    return Bound(backend, device, dtype)


remembers(_bind.cache_clear)


def bind(tensor: torch.Tensor, backend: str | None = None) -> Bound:
    """Every op's serving function for tensors like ``tensor``, chosen once: ``bind(x).swiglu(x)``.

    For code that calls many ops in a row with arguments it has built itself: the functions take
    the positional arguments of the schemas, and the public functions' checks are not repeated.
    ``bind(x).<op>(*arguments, out=(...))`` writes the op's outputs into given tensors.
    Where autograd would record ``tensor``, all are eager. A function whose forced provider cannot
    serve raises as :meth:`Op.provider` when it is asked for.
    """
    backend = backend or os.environ.get("RDKERNELS_BACKEND") or None
    if torch.is_grad_enabled() and tensor.requires_grad:
        if backend not in (None, "eager"):
            raise BackendError(f"backend {backend!r} is forward only and an input requires grad")
        backend = "eager"
    choice = (backend, tensor.device.type, tensor.dtype)
    return Bound(*choice) if torch.compiler.is_compiling() else _bind(*choice)
