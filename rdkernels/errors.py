"""The errors that rdkernels raises on purpose. Every one names the thing that is wrong."""

from __future__ import annotations

from numbers import Integral, Real


class RdkernelsError(ValueError):
    """Base of all errors caused by what the caller passed in."""


class ArgumentError(RdkernelsError):
    """An argument of an op or function is not what it must be."""

    def __init__(self, where: str, argument: str, expected: str, got: object) -> None:
        super().__init__(f"{where}: {argument}: expected {expected}, got {got}")


def is_whole(value: object) -> bool:
    """An integer of Python or numpy; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A real number of Python or numpy, NaN and infinities included; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


class CheckpointError(RdkernelsError):
    """A model folder cannot be loaded: names the file, tensor or config key."""


class BackendError(RdkernelsError):
    """A provider that was asked for by name cannot serve; the message says why."""


class CacheFullError(RdkernelsError):
    """The KV cache has fewer free pages than a sequence needs."""
