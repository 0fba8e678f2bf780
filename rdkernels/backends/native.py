"""Loads the compiled extension ``rdkernels._C`` and says why it could not.

Loading registers the native kernels with the ops' dispatch keys ``CPU`` and ``CUDA``; which ops
have one is read from torch's dispatcher, not from a list. Importing this module never fails and
never initialises CUDA.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from rdkernels.errors import ArgumentError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_EXTENSION = "rdkernels._C"
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


def _load() -> tuple[Any, str | None]:
    """The extension module or None, and the reason why it is None."""
    try:
        return importlib.import_module(_EXTENSION), None
    except ModuleNotFoundError as error:
        if error.name == _EXTENSION:
            return None, "not built: this is a pure Python install without rdkernels._C"
        return None, f"rdkernels._C does not load: {error}"
    except ImportError as error:  # the dynamic linker's words: a missing library or symbol
        return None, f"rdkernels._C does not load: {error}"


_extension, _error = _load()


def _registered(key: str) -> frozenset[str]:
    """Names of our ops that have a kernel for a dispatch key now, before Python adds any."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    ours = (name.split("::", 1)[1] for name in names if name.startswith("rdkernels::"))
    return frozenset(ours)


_KERNELS = {device: _registered(key) for device, key in _KEYS.items()}


def has_kernel(op: str, device: str) -> bool:
    """Whether ``torch.ops.rdkernels.<op>`` runs a native kernel on a device type, not eager."""
    return op in _KERNELS.get(device, ())


def load_error() -> str | None:
    """None if the extension is loaded, else why it is not, in the loader's own words."""
    return _error


def build_info() -> dict[str, Any]:
    """How the loaded extension was built; empty if none is loaded.

    Keys: ``version``, ``torch`` (built against), ``compiler``, ``cuda_toolkit`` (None: CPU only),
    ``cuda_archs`` and ``cpu_capability`` (the instruction set in use in this process).
    """
    if _extension is None:
        return {}
    return {**json.loads(_extension.build_info), "cpu_capability": _extension.cpu_capability}


def reason(op: str, device: str, dtype: torch.dtype) -> str | None:
    """None if a native kernel serves ``op`` for ``dtype`` on a device type, else why not."""
    if _error is not None:
        return _error
    if device not in _KEYS:
        return f"no native kernels for device type {device!r}"
    if device == "cuda" and (why := _cuda_reason()):
        return why
    if op not in _KERNELS[device]:
        return f"{op} has no native {_KEYS[device]} kernel"
    if dtype not in DTYPES:
        name = str(dtype).removeprefix("torch.")
        return f"native kernels compute float32, bfloat16 and float16, not {name}"
    return None


def function(op: str) -> Callable[..., Any]:
    """The native kernel of ``op`` with the schema's positional arguments."""
    return _with_argument_errors(getattr(torch.ops.rdkernels, op).default)


def out_function(op: str) -> Callable[..., None]:
    """The native kernel of ``op`` that writes into the schema's outputs, given by name."""
    return _with_argument_errors(getattr(torch.ops.rdkernels, op).out)


def _with_argument_errors(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, raising what the eager provider would have raised.

    The C++ argument checks raise ``ValueError("op: argument: expected ..., got ...")``.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return kernel(*args, **kwargs)
        except ValueError as error:
            where, argument, problem = str(error).split(": ", 2)
            expected, got = problem.removeprefix("expected ").rsplit(", got ", 1)
            raise ArgumentError(where, argument, expected, got) from None

    return call


@cache
def _cuda_reason() -> str | None:
    """Why CUDA kernels cannot run in this process; asks the driver, so only when it matters."""
    archs = build_info()["cuda_archs"]
    if not archs:
        return "rdkernels._C was built without CUDA"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no usable CUDA device or driver"
    major, minor = torch.cuda.get_device_capability()
    if not any(_runs_on(arch, major, minor) for arch in archs):
        return f"rdkernels._C was built for {', '.join(archs)}, not for this GPU ({major}.{minor})"
    return None


def _runs_on(arch: str, major: int, minor: int) -> bool:
    """Whether code for ``arch`` ("sm_90a", "compute_100", "sm_80+compute_80") runs on a GPU.

    Machine code runs on later minors of its major; PTX on everything later; both only on exactly
    their GPU when architecture-specific ("a").
    """
    for part in arch.split("+"):
        kind, number = part.split("_")
        specific = not number.isdigit()
        built = divmod(int(number.rstrip("af")), 10)
        if specific and built != (major, minor):
            continue
        if built <= (major, minor) and (kind == "compute" or built[0] == major):
            return True
    return False
