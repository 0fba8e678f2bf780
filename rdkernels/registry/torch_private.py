"""All that rdkernels uses of torch and torch does not promise, each with a public way beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])

_CONSTANT_MARK = "_dynamo_marked_constant"


def constant_while_traced(function: Function) -> Function:
    """``function``, which torch.compile calls rather than traces; its result is a constant.

    That is ``torch.compiler.assume_constant_result``, which imports all of torch._dynamo (a second
    and more of every ``import rdkernels``) to set one attribute. Where this torch knows that
    attribute it is set here, elsewhere by torch.
    """
    if not _knows_the_constant_mark():
        return torch.compiler.assume_constant_result(function)
    setattr(function, _CONSTANT_MARK, True)
    return function


@cache
def _knows_the_constant_mark() -> bool:
    """Whether the source of ``assume_constant_result`` sets the attribute; imports nothing."""
    source = Path(torch.__file__).parent / "_dynamo" / "decorators.py"
    return source.is_file() and _CONSTANT_MARK in source.read_text(encoding="utf-8")


def has_kernel(operator: str, key: str) -> bool:
    """Whether a kernel of ``operator`` ("rdkernels::swiglu") is registered for a dispatch key.

    Its schema must be known. ``torch.library.get_kernel`` is public, and new: an older torch is
    asked by what its own library module uses.
    """
    get_kernel = getattr(torch.library, "get_kernel", None)
    if get_kernel is None:
        return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)
    try:
        get_kernel(operator, key)
    except RuntimeError:
        return False
    return True
