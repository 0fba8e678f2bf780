"""Triton kernels of the ops, one module per op: for GPUs without the native extension.

A kernel's module is imported when the op first runs, so ``import rdkernels`` needs no Triton. Each
op is also the torch operator ``torch.ops.rdkernels_triton.<op>``, with the schema and the fake of
``torch.ops.rdkernels.<op>``: for torch.compile a call is one opaque node, whatever it launches.

On the CPU Triton only runs in its interpreter (``TRITON_INTERPRET=1``, set before triton is
imported), which is for tests: it serves there when it is asked for by name, and never by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from rdkernels.dtypes import KERNEL_FLOAT_NAMES, KERNEL_FLOATS, name_of
from rdkernels.registry import OPS, Op, Serving, copying, on_definition

NAMESPACE = "rdkernels_triton"
_OLDEST_GPU = (8, 0)  # the first with bf16 tensor cores

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_SERVING: dict[str, Serving] = {}


def interpreted() -> bool:
    """Whether this process asks for Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def reason(op: str, device: str, dtype: torch.dtype) -> str | None:
    """None if a Triton kernel serves ``op`` for ``dtype`` on a device type, else why not."""
    if op not in OPS:
        return f"{op} has no Triton kernel"
    if OPS[op].cpu_only is not None:
        return f"{op} has no Triton kernel: {OPS[op].cpu_only}"
    if dtype not in KERNEL_FLOATS:
        return f"Triton kernels compute {KERNEL_FLOAT_NAMES}, not {name_of(dtype)}"
    if not _is_installed():
        return "triton is not installed"
    if device == "cpu" and interpreted():
        return _interpreter_reason()
    if device != "cuda":
        return "Triton kernels need a CUDA device (or TRITON_INTERPRET=1 for tests)"
    return "TRITON_INTERPRET is set: kernels run on the CPU" if interpreted() else _cuda_reason()


def only_by_name(device: str) -> bool:
    """On the CPU: Triton's interpreter, for tests."""
    return device == "cpu"


def function(op: str) -> Serving:
    """The Triton kernel of ``op``."""
    return _SERVING[op]


def define(op: Op, library: torch.library.Library = _LIBRARY) -> None:
    """Define ``rdkernels_triton::<op>``: the arguments' check, then the kernel."""
    if op.cpu_only is not None:
        return

    def serve(*args: Any) -> Any:
        op.check(*args)
        return _load(op.name)(*args)

    library.define(op.schema)
    library.impl(op.name, serve, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.fake, lib=library)
    operator = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    _SERVING[op.name] = copying(op, operator)


@cache
def _load(op: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"{__name__}.{op}"), op)


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _interpreter_reason() -> str | None:
    """Triton decides once, when it is imported, whether its functions are interpreted."""
    language = importlib.import_module("triton.language")
    if type(language.philox).__name__ != "InterpretedFunction":
        return "TRITON_INTERPRET was set after triton had been imported"
    return None


@cache
def _cuda_reason() -> str | None:
    """Why Triton's machine code cannot run in this process; asks the driver."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no usable CUDA device or driver"
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST_GPU:
        have, need = (".".join(map(str, version)) for version in (capability, _OLDEST_GPU))
        return f"Triton kernels need a GPU of compute capability {need}, this one has {have}"
    return None


on_definition(define)
