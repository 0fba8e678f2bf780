"""Which provider serves an op, and why the others cannot.

A provider is a module of ``rdkernels.backends`` that registers itself here. It answers with a
reason (a sentence) when it cannot serve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch

from rdkernels.errors import ArgumentError, BackendError
from rdkernels.registry.torch_private import constant_while_traced

BACKENDS = ("native", "triton", "eager")  # in order of preference
# Takes the positional arguments of the op's schema and ``out``, None or a tuple of its outputs.
Serving = Callable[..., Any]


class Provider(Protocol):
    """What a module that serves ops has."""

    def reason(self, op: str, device: str, dtype: torch.dtype) -> str | None:
        """None if this provider serves ``op`` for ``dtype`` on a device type, else why not."""

    def only_by_name(self, device: str) -> bool:
        """Whether it serves no call on a device type that does not name it."""

    def function(self, op: str) -> Serving:
        """What serves ``op``."""


_PROVIDERS: dict[str, Provider] = {}
_CACHES: list[Callable[[], None]] = []  # what remembers a choice: how to make it forget


def register(name: str, provider: Provider) -> None:
    """Let ``provider`` serve under ``name``, one of ``BACKENDS``."""
    if name not in BACKENDS:
        raise ArgumentError("register", "name", f"one of {', '.join(BACKENDS)}", repr(name))
    _PROVIDERS[name] = provider
    forget_choices()


def reason(backend: str, op: str, device: str, dtype: torch.dtype) -> str | None:
    """None if ``backend`` serves ``op`` for ``dtype`` on a device type, else why it cannot."""
    return _PROVIDERS[backend].reason(op, device, dtype)


def only_by_name(backend: str, device: str) -> bool:
    """Whether ``backend`` serves no call on a device type that does not name it."""
    return _PROVIDERS[backend].only_by_name(device)


def function(backend: str, op: str) -> Serving:
    """What ``backend`` serves ``op`` with."""
    return _PROVIDERS[backend].function(op)


def reasons(op: str, device: str, dtype: torch.dtype) -> dict[str, str | None]:
    """For each provider: None when it can serve ``op`` there, else why it cannot."""
    return {name: reason(name, op, device, dtype) for name in BACKENDS}


@constant_while_traced
def choose(op: str, backend: str | None, device: str, dtype: torch.dtype) -> str | None:
    """The name of the provider that serves; None where the forced one, ``backend``, cannot.

    Raises:
        ArgumentError: ``backend`` is not the name of a provider.
    """
    if backend is not None and backend not in BACKENDS:
        raise ArgumentError(op, "backend", f"one of {', '.join(BACKENDS)}", repr(backend))
    candidates = [name for name in BACKENDS if not only_by_name(name, device)]
    if backend is not None:
        candidates = [backend]
    able = (name for name in candidates if reason(name, op, device, dtype) is None)
    return next(able, None)


@constant_while_traced
def refusal(op: str, backend: str | None, device: str, dtype: torch.dtype) -> str:
    """The message of the :class:`BackendError` where :func:`choose` finds nobody."""
    why = reasons(op, device, dtype)
    asked = why if backend is None else (backend,)
    because = "; ".join(f"{name}: {why[name]}" for name in asked)
    return f"{op}: no provider for {dtype} on {device}: {because}"


@cache
def select(op: str, backend: str | None, device: str, dtype: torch.dtype) -> Serving:
    """What serves, chosen once; raises :class:`BackendError` where nobody can."""
    name = choose(op, backend, device, dtype)
    if name is None:
        raise BackendError(refusal(op, backend, device, dtype))
    return function(name, op)


def remembers(forget: Callable[[], None]) -> None:
    """``forget`` is called when choices have to be made again."""
    _CACHES.append(forget)


def forget_choices() -> None:
    """Choose again from here on: providers have changed."""
    for forget in _CACHES:
        forget()


remembers(select.cache_clear)
