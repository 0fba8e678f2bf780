"""Loads the compiled extension ``rdkernels._C`` and says why it could not.

Loading registers the native kernels with the ops' dispatch keys ``CPU`` and ``CUDA``; which ops
have one is asked of torch's dispatcher when they are defined, not read from a list. Importing this
module never fails and never initialises CUDA.
"""

from __future__ import annotations

import importlib
import json
import re
from functools import cache
from typing import Any

import torch

from rdkernels.dtypes import KERNEL_FLOAT_NAMES, KERNEL_FLOATS, name_of
from rdkernels.errors import ArgumentError
from rdkernels.registry import OPS, Serving, runs_a_kernel

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


def has_kernel(op: str, device: str) -> bool:
    """Whether ``torch.ops.rdkernels.<op>`` runs a native kernel on a device type, not eager."""
    return runs_a_kernel(op, device)


def only_by_name(device: str) -> bool:
    """False: native kernels serve first wherever there are any."""
    return False


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
    if not has_kernel(op, device):
        return f"{op} has no native {_KEYS[device]} kernel"
    if dtype not in KERNEL_FLOATS:
        return f"native kernels compute {KERNEL_FLOAT_NAMES}, not {name_of(dtype)}"
    return None


def function(op: str) -> Serving:
    """The native kernel of ``op``, raising what the eager provider would have raised."""
    operator = OPS[op].operator

    def call(*args: Any, out: tuple[torch.Tensor, ...] | None = None) -> Any:
        try:
            return operator(*args, out=out)
        except ValueError as error:
            refused = _argument_error(str(error))
            if refused is None:
                raise
            raise refused from None

    return call


# What the C++ checks of arguments say.
_REFUSAL = re.compile(r"(\w+): ([^:]+): expected (.*), got (.*)", re.DOTALL)


def _argument_error(message: str) -> ArgumentError | None:
    """The error that ``message`` of a native kernel stands for; None if it has another form."""
    found = _REFUSAL.fullmatch(message)
    return ArgumentError(*found.groups()) if found else None


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
