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

from rdkernels import backends
from rdkernels.backends import native, triton
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
        out: str,
        check: Callable[..., None] | None,
    ) -> None:
        self.name = name
        self.eager, self.eager_out = eager, eager_out
        self.out_names = _argument_names(out)
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
        return self.serving(backend, tensor.device.type, dtype or tensor.dtype)

    def serving(
        self, backend: str | None, device: str, dtype: torch.dtype, *, into: bool = False
    ) -> Callable[..., Any]:
        """The function of the provider that :func:`choose` names; raises as :meth:`provider`.

        With ``into`` it is the form that writes into given outputs, ``out``.

        While ``torch.compile`` traces, the choice becomes a constant of the graph, and what the
        graph calls is the operator itself. Without a native kernel the operator is its eager
        meaning; it stays opaque, because ``recurrent_attention`` reads sizes from its tensors.
        """
        choice = (self.name, backend, device, dtype)
        if not torch.compiler.is_compiling():
            return _select(*choice, into)
        name = choose(*choice)
        if name is None:
            raise BackendError(refusal(*choice))
        if name == "native" or (name == "eager" and not native.has_kernel(self.name, device)):
            return self.default
        return backends.function(name, self.name)


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
    OPS[name] = Op(name, eager, eager_out, out, check)
    if name in triton.KERNELS:
        triton.define(schema, OPS[name].check, fake)
    return OPS[name]


def _argument_names(arguments: str) -> tuple[str, ...]:
    """The names in a list of schema arguments."""
    return tuple(argument.split()[-1] for argument in arguments.split(",") if argument.strip())


def _write_out(eager: Callable[..., Any], out: str) -> Callable[..., None]:
    names = _argument_names(out)

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

    def chosen(self, name: str) -> str | None:
        """The provider that serves op ``name``; None where the forced one cannot."""
        return choose(name, *self._choice)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = OPS.get(name.removesuffix("_out"))
        if op is None:
            raise AttributeError(name)
        function = op.serving(*self._choice, into=name.endswith("_out"))
        setattr(self, name, function)
        return function


@cache
def _bind(backend: str | None, device: str, dtype: torch.dtype) -> Bound:
    return Bound(backend, device, dtype)


def bind(tensor: torch.Tensor, backend: str | None = None) -> Bound:
    """Every op's serving function for tensors like ``tensor``, chosen once: ``bind(x).swiglu(x)``.

    For code that calls many ops in a row with arguments it has built itself: the functions take
    the positional arguments of the schemas, and the public functions' checks are not repeated.
    ``bind(x).<op>_out(*arguments, out=(...))`` writes the op's outputs into given tensors.
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


def reasons(op: str, device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """For each provider: None when it can serve ``op`` there, else why it cannot."""
    return {name: backends.reason(name, op, device, dtype) for name in BACKENDS}


def choose(op: str, backend: str | None, device: str, dtype: torch.dtype) -> str | None:
    """The name of the provider that serves; None where the forced one, ``backend``, cannot.

    Raises:
        ArgumentError: ``backend`` is not the name of a provider.
    """
    if backend is not None and backend not in BACKENDS:
        raise ArgumentError(op, "backend", f"one of {', '.join(BACKENDS)}", repr(backend))
    candidates = [name for name in BACKENDS if not backends.only_by_name(name, device)]
    if backend is not None:
        candidates = [backend]
    able = (name for name in candidates if backends.reason(name, op, device, dtype) is None)
    return next(able, None)


def refusal(op: str, backend: str | None, device: str, dtype: torch.dtype) -> str:
    """The message of the :class:`BackendError` where :func:`choose` finds nobody."""
    why = reasons(op, device, dtype)
    asked = why if backend is None else (backend,)
    because = "; ".join(f"{name}: {why[name]}" for name in asked)
    return f"{op}: no provider for {dtype} on {device}: {because}"


@cache
def _select(
    op: str, backend: str | None, device: str, dtype: torch.dtype, into: bool = False
) -> Callable[..., Any]:
    name = choose(op, backend, device, dtype)
    if name is None:
        raise BackendError(refusal(op, backend, device, dtype))
    return (backends.out_function if into else backends.function)(name, op)


# While a graph is traced these are called rather than traced, and what they return is a constant of
# the graph: torch.compiler.assume_constant_result, without its import of all of torch._dynamo.
for _asked in (choose, refusal, native.has_kernel):
    _asked._dynamo_marked_constant = True


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
