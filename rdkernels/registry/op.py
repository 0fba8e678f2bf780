"""Definitions: the machinery that every op module uses.

An op is defined once with :func:`define`. Its eager meaning is a function whose signature is the
op's schema; the checks of the arguments, the fake and the ``out`` form are composed with it here.
The native extension registers kernels for the dispatch keys ``CPU`` and ``CUDA`` of the same
operator when it is loaded, so ``torch.ops`` alone is already fast. The public functions of
``rdkernels.ops`` go through :meth:`Op.provider`, which adds the choice by name and the reason when
a choice cannot serve.

Every op has two overloads: ``default`` allocates its outputs, ``out`` writes into given ones and
returns nothing (an operator may not return what it mutates).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rdkernels.errors import BackendError
from rdkernels.registry import choice
from rdkernels.registry.choice import Serving
from rdkernels.registry.torch_private import constant_while_traced, has_kernel

NAMESPACE = "rdkernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPS: dict[str, Op] = {}
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_LISTENERS: list[Callable[[Op], None]] = []

Outputs = tuple[torch.Tensor, ...]
Write = Callable[[Outputs, Outputs], None]


@dataclass(eq=False)
class Op:
    """One operator: its overloads, what it means, and what is particular about it.

    Attributes:
        name, schema: of ``torch.ops.rdkernels.<name>``.
        out_names: the outputs of the ``out`` overload; none if the op only writes to arguments.
        meaning: the specification, without checks.
        eager: the same, arguments checked; takes ``out`` as every serving function does.
        check: raises :class:`ArgumentError` unless the positional arguments fit.
        fake: outputs of the right shapes for arguments without values.
        write: copies results (the first tuple) into given outputs (the second).
        kernel_devices: types of devices on which the operator runs a native kernel.
        computes_in, cpu_only, composed, reads_back: see :func:`define`.
    """

    name: str
    schema: str
    out_names: tuple[str, ...]
    meaning: Callable[..., Any]
    eager: Serving
    check: Callable[..., None]
    fake: Callable[..., Any]
    write: Write
    kernel_devices: frozenset[str]
    computes_in: torch.dtype | None = None
    cpu_only: str | None = None
    composed: bool = False
    reads_back: bool = False

    def __post_init__(self) -> None:
        packet = getattr(getattr(torch.ops, NAMESPACE), self.name)
        self.default = packet.default
        self.out: Any = packet.out if self.out_names else None

    def eager_out(self, *args: Any, **outputs: torch.Tensor) -> None:
        """``eager`` as the ``out`` overload calls it."""
        self.eager(*args, out=tuple(outputs[name] for name in self.out_names))

    def operator(self, *args: Any, out: Outputs | None = None) -> Any:
        """The torch operator, with the outputs as every serving function takes them."""
        if out is None:
            return self.default(*args)
        return self.out(*args, **dict(zip(self.out_names, out, strict=True)))

    def provider(
        self,
        tensor: torch.Tensor,
        backend: str | None = None,
        differentiable: Sequence[torch.Tensor | None] = (),
        dtype: torch.dtype | None = None,
    ) -> Serving:
        """The function that serves this op for tensors like ``tensor``.

        ``dtype`` is that of the computation, where it is not that of ``tensor``.
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

    def looked_up_by(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that decides who serves a call with floating tensors of ``dtype``."""
        return self.computes_in or dtype

    def serving(self, backend: str | None, device: str, dtype: torch.dtype) -> Serving:
        """The function of the provider that :func:`choose` names; raises as :meth:`provider`.

        It takes the positional arguments of the schema, and ``out``: a tuple of outputs to write
        into, or None to allocate them.

        While ``torch.compile`` traces, the choice becomes a constant of the graph, and what the
        graph calls is the operator itself. Without a native kernel the operator is its eager
        meaning; it stays opaque, because ``recurrent_attention`` reads sizes from its tensors.
        """
        key = (self.name, backend, device, self.looked_up_by(dtype))
        if not torch.compiler.is_compiling():
            return choice.select(*key)
        name = choice.choose(*key)
        if name is None:
            raise BackendError(choice.refusal(*key))
        if name == "native" or (name == "eager" and not runs_a_kernel(self.name, device)):
            return self.operator
        return choice.function(name, self.name)


@constant_while_traced
def runs_a_kernel(op: str, device: str) -> bool:
    """Whether ``torch.ops.rdkernels.<op>`` runs a native kernel on a device type, not eager."""
    return op in OPS and device in OPS[op].kernel_devices


def on_definition(listener: Callable[[Op], None]) -> None:
    """Call ``listener`` with every op that is defined, those that are already included."""
    for op in OPS.values():
        listener(op)
    _LISTENERS.append(listener)


def define(
    meaning: Callable[..., Any],
    *,
    fake: Callable[..., Any],
    check: Callable[..., None] | None = None,
    mutates: Sequence[str] = (),
    out: Sequence[str] = (),
    check_out: Callable[..., None] | None = None,
    write: Write | None = None,
    computes_in: torch.dtype | None = None,
    cpu_only: str | None = None,
    composed: bool = False,
    reads_back: bool = False,
) -> Op:
    """Define the operator that ``meaning`` is the specification of, under its name.

    The signature of ``meaning`` is the schema: positional arguments with the types that
    ``torch.library.infer_schema`` knows. ``check``, ``check_out`` and ``fake`` take some of these
    arguments, under their names.

    Args:
        meaning: what the op means, in plain PyTorch.
        fake: outputs without values, of the right shapes.
        check: raises :class:`ArgumentError` unless the arguments fit; eager and every provider
            that does not check for itself call it.
        mutates: arguments that are written.
        out: names of the outputs; with any, the op has an ``out`` overload.
        check_out: the same for the outputs of that overload, which it may name too.
        write: how results get into the given outputs where that is more than a copy: for outputs
            whose sizes the caller may choose.
        computes_in: the dtype that providers are asked for, where all tensors are integers.
        cpu_only: why there is no kernel but the CPU's native one; None where every device has one.
        composed: the op is made of calls of other ops.
        reads_back: the eager meaning takes values to the host.
    """
    name = meaning.__name__
    schema = torch.library.infer_schema(meaning, mutates_args=list(mutates), op_name=name)
    schema = schema.replace("SymInt", "int")  # counts and seeds are numbers, also in a graph
    signature = inspect.signature(meaning)
    of_arguments = _Naming(tuple(signature.parameters), _defaults(signature))
    LIBRARY.define(schema)
    arguments = schema[schema.index("(") + 1 : schema.rindex(") ->")]
    outputs = ", ".join(f"Tensor(o{i}!) {output}" for i, output in enumerate(out))
    if out:
        LIBRARY.define(f"{name}.out({arguments}, *, {outputs}) -> ()")
    op = Op(
        name=name,
        schema=schema,
        out_names=tuple(out),
        meaning=meaning,
        eager=_eager(meaning, of_arguments, tuple(out), check, check_out, write or _copy),
        check=of_arguments.passed_to(check),
        fake=of_arguments.passed_to(fake),
        write=write or _copy,
        # Asked before the eager meaning is registered, which would serve every key.
        kernel_devices=frozenset(
            device for device, key in _KEYS.items() if has_kernel(f"{NAMESPACE}::{name}", key)
        ),
        computes_in=computes_in,
        cpu_only=cpu_only,
        composed=composed,
        reads_back=reads_back,
    )
    _publish(op)
    return op


def _publish(op: Op) -> None:
    """Give the operator its eager meaning and its fake, and tell those who asked."""
    name = op.name
    LIBRARY.impl(name, op.eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", op.fake, lib=LIBRARY)
    if op.out_names:
        LIBRARY.impl(f"{name}.out", op.eager_out, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}.out", lambda *a, **k: None, lib=LIBRARY)
    OPS[name] = op
    for listener in _LISTENERS:
        listener(op)


def _defaults(signature: inspect.Signature) -> tuple[Any, ...]:
    values = (parameter.default for parameter in signature.parameters.values())
    return tuple(value for value in values if value is not inspect.Parameter.empty)


@dataclass(frozen=True)
class _Naming:
    """The names of an op's arguments, and the defaults of the last ones."""

    names: tuple[str, ...]
    defaults: tuple[Any, ...]

    def complete(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """``args`` with the defaults that torch's dispatcher leaves out."""
        missing = len(self.names) - len(args)
        return args if missing == 0 else (*args, *self.defaults[-missing:])

    def passed_to(self, function: Callable[..., Any] | None) -> Callable[..., Any]:
        """``function`` of the arguments that it names, to be called with all of them."""
        if function is None:
            return lambda *args: None
        wanted = [self.names.index(name) for name in inspect.signature(function).parameters]

        def call(*args: Any) -> Any:
            args = self.complete(args)
            return function(*[args[i] for i in wanted])

        return call


def _eager(
    meaning: Callable[..., Any],
    of_arguments: _Naming,
    out_names: tuple[str, ...],
    check: Callable[..., None] | None,
    check_out: Callable[..., None] | None,
    write: Write,
) -> Serving:
    """``meaning`` of checked arguments, and its results in given outputs."""
    checked = of_arguments.passed_to(check)
    with_outputs = _Naming((*of_arguments.names, *out_names), ())
    checked_out = with_outputs.passed_to(check_out)

    def eager(*args: Any, out: Outputs | None = None) -> Any:
        checked(*args)
        if out is None:
            return meaning(*args)
        checked_out(*of_arguments.complete(args), *out)
        write(as_tuple(meaning(*args)), out)
        return None

    return eager


def as_tuple(results: Any) -> Outputs:
    """What an op returned, as a tuple of tensors."""
    return results if isinstance(results, tuple) else (results,)


def _copy(results: Outputs, outputs: Outputs) -> None:
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)


def copying(op: Op, allocating: Callable[..., Any]) -> Serving:
    """A serving function made of one that allocates: given outputs get copies of its own."""

    def serve(*args: Any, out: Outputs | None = None) -> Any:
        results = allocating(*args)
        if out is None:
            return results
        op.write(as_tuple(results), out)
        return None

    return serve
