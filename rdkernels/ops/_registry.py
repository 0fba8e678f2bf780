"""Schemas, fakes and the choice of provider: the machinery that every op module uses.

An op is defined once with :func:`define`: its schema (the torch operator
``torch.ops.rdkernels.<name>``), its eager meaning, and its fake. The native extension registers
kernels for the dispatch keys ``CPU`` and ``CUDA`` of the same operator when it is loaded, so
``torch.ops`` alone is already fast. The public functions of ``rdkernels.ops`` go through
:meth:`Op.provider`, which adds the choice by name and the reason when a choice cannot serve.

Every op has two overloads: ``default`` allocates its outputs, ``out`` writes into given ones and
returns nothing (an operator may not return what it mutates).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from rdkernels.backends import triton
from rdkernels.errors import ArgumentError, BackendError

NAMESPACE = "rdkernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
BACKENDS = ("native", "triton", "eager")  # in order of preference
OPS: dict[str, Op] = {}


class Op:
    """One operator: its torch overloads and, per provider, the function that serves it."""

    def __init__(
        self,
        name: str,
        eager: Callable[..., Any],
        eager_out: Callable[..., None] | None,
        check: Callable[..., None] | None,
    ) -> None:
        self.name = name
        self.eager = eager
        self.eager_out = eager_out
        packet = getattr(getattr(torch.ops, NAMESPACE), name)
        self.default = packet.default
        self.out = packet.out if "out" in packet.overloads() else None
        self._check = check
        names = [argument.name for argument in self.default._schema.arguments]
        wanted = inspect.signature(check).parameters if check else ()
        self._checked = [names.index(name) for name in wanted]

    def check(self, *args: Any) -> None:
        """Raise :class:`ArgumentError` unless the schema's positional arguments ``args`` fit."""
        if self._check is not None:
            self._check(*(args[i] for i in self._checked))

    def provider(
        self,
        tensor: torch.Tensor,
        backend: str | None = None,
        differentiable: tuple[torch.Tensor | None, ...] = (),
        dtype: torch.dtype | None = None,
    ) -> Callable[..., Any]:
        """The function that serves this op for tensors like ``tensor``.

        ``dtype`` is that of the computation, for ops whose tensors are all integers.
        ``backend`` (or the environment variable ``RDKERNELS_BACKEND``) forces a provider; one that
        cannot serve raises :class:`BackendError` with the reason. Otherwise the first of
        ``native``, ``triton``, ``eager`` that can. The kernels are forward only: when autograd
        would record the call, eager serves.
        """
        backend = backend or os.environ.get("RDKERNELS_BACKEND") or None
        recorded = (t is not None and t.requires_grad for t in differentiable)
        if torch.is_grad_enabled() and any(recorded):
            if backend not in (None, "eager"):
                raise BackendError(
                    f"{self.name}: backend {backend!r} is forward only and an input requires grad; "
                    "use torch.no_grad() or backend='eager'"
                )
            return self.eager
        return _select(self.name, backend, tensor.device.type, dtype or tensor.dtype)


def define(
    schema: str,
    *,
    eager: Callable[..., Any],
    fake: Callable[..., Any],
    out: str = "",
    eager_out: Callable[..., None] | None = None,
    check: Callable[..., None] | None = None,
) -> Op:
    """Define ``rdkernels::<schema>`` and, if ``out`` names output arguments, its ``out`` overload.

    ``schema`` is a torch schema without namespace; ``out`` is the argument text of the outputs,
    e.g. ``"Tensor(a!) out"``. ``eager_out`` is the eager meaning of the ``out`` overload where it
    is more than ``eager`` and a copy, for outputs whose sizes the caller may choose. ``check``
    takes some of the schema's arguments, under their names, and raises :class:`ArgumentError`;
    providers that do not check for themselves call it.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    eager_out = eager_out or (_write_out(eager, out) if out else None)
    if out:
        arguments = schema[schema.index("(") + 1 : schema.rindex(") ->")]
        LIBRARY.define(f"{name}.out({arguments}, *, {out}) -> ()")
        LIBRARY.impl(f"{name}.out", eager_out, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}.out", lambda *a, **k: None, lib=LIBRARY)
    OPS[name] = Op(name, eager, eager_out, check)
    if name in triton.KERNELS:
        triton.define(schema, OPS[name].check, fake)
    return OPS[name]


def _write_out(eager: Callable[..., Any], out: str) -> Callable[..., None]:
    names = [argument.split()[-1] for argument in out.split(",")]

    def eager_out(*args: Any, **kwargs: Any) -> None:
        targets = [kwargs.pop(name) for name in names]
        results = eager(*args, **kwargs)
        results = results if isinstance(results, tuple) else (results,)
        for target, result in zip(targets, results, strict=True):
            target.copy_(result)

    return eager_out


class Bound:
    """The functions that :func:`bind` chose, by name; each is chosen when it is first asked for."""

    def __init__(self, *choice: Any) -> None:
        self._choice = choice

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in OPS:
            raise AttributeError(name)
        function = _select(name, *self._choice)
        setattr(self, name, function)
        return function


@cache
def _bind(backend: str | None, device: str, dtype: torch.dtype) -> Bound:
    return Bound(backend, device, dtype)


def bind(tensor: torch.Tensor, backend: str | None = None) -> Bound:
    """Every op's serving function for tensors like ``tensor``, chosen once: ``bind(x).swiglu(x)``.

    For code that calls many ops in a row with arguments it has built itself: the functions take
    the positional arguments of the schemas, and the public functions' checks are not repeated.
    Where autograd would record ``tensor``, all are eager. A function whose forced provider cannot
    serve raises as :meth:`Op.provider` when it is asked for.
    """
    backend = backend or os.environ.get("RDKERNELS_BACKEND") or None
    if torch.is_grad_enabled() and tensor.requires_grad:
        if backend not in (None, "eager"):
            raise BackendError(f"backend {backend!r} is forward only and an input requires grad")
        backend = "eager"
    return _bind(backend, tensor.device.type, tensor.dtype)


def reasons(op: str, device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """For each provider: None when it can serve ``op`` there, else why it cannot."""
    from rdkernels import backends

    return {name: backends.reason(name, op, device, dtype) for name in BACKENDS}


@cache
def _select(op: str, backend: str | None, device: str, dtype: torch.dtype) -> Callable[..., Any]:
    from rdkernels import backends

    if backend is not None and backend not in BACKENDS:
        raise ArgumentError(op, "backend", f"one of {', '.join(BACKENDS)}", repr(backend))
    why = {}
    for name in BACKENDS if backend is None else (backend,):
        if backend is None and backends.only_by_name(name, device):
            continue
        why[name] = backends.reason(name, op, device, dtype)
        if why[name] is None:
            return backends.function(name, op)
    raise BackendError(
        f"{op}: no provider for {dtype} on {device}: "
        + "; ".join(f"{name}: {reason}" for name, reason in why.items())
    )


def expect(condition: bool, op: str, argument: str, expected: str, got: object) -> None:
    """Raise :class:`ArgumentError` naming the op and argument unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(op, argument, expected, got)


def describe(tensor: torch.Tensor | None) -> str:
    """A tensor as error messages show it: ``float32[4, 8] on cpu``."""
    if tensor is None:
        return "None"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def expect_tensor(
    op: str,
    argument: str,
    tensor: torch.Tensor,
    shape: tuple[int | None, ...],
    dtype: torch.dtype | tuple[torch.dtype, ...],
    like: torch.Tensor | None = None,
) -> None:
    """Check rank, sizes (None = any), dtype and, with ``like``, the device of one argument."""
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    ok = tensor.dim() == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=False)
    )
    ok = ok and tensor.dtype in dtypes and (like is None or tensor.device == like.device)
    if not ok:
        sizes = ", ".join("*" if size is None else str(size) for size in shape)
        names = "|".join(str(d).removeprefix("torch.") for d in dtypes)
        where = "" if like is None else f" on {like.device}"
        raise ArgumentError(op, argument, f"{names}[{sizes}]{where}", describe(tensor))
