"""Writes ``rdkernels/registry/bound.pyi``: what ``bind(x).<op>`` takes, for editors and mypy.

python -m tools.bound_stub
"""

from __future__ import annotations

import inspect

from rdkernels.ops import OPS
from rdkernels.registry.op import Op
from tools.native_build import ROOT

STUB = ROOT / "rdkernels" / "registry" / "bound.pyi"

HEAD = '''\
"""Written by ``python -m tools.bound_stub`` from the eager meanings of the ops."""

from collections.abc import Sequence

import torch

class Bound:
    def __init__(self, backend: str | None, device: str, dtype: torch.dtype) -> None: ...
    def chosen(self, name: str) -> str | None: ...
'''

TAIL = "\ndef bind(tensor: torch.Tensor, backend: str | None = None) -> Bound: ...\n"


def stub() -> str:
    """The file's text, formatted as ruff formats it."""
    return HEAD + "".join(_method(OPS[name]) for name in sorted(OPS)) + TAIL


def _method(op: Op) -> str:
    signature = inspect.signature(op.meaning)
    arguments = ["self", *map(str, signature.parameters.values())]
    if op.out_names:
        arguments += ["*", "out: tuple[torch.Tensor, ...] | None = None"]
    lines = "".join(f"        {argument},\n" for argument in arguments).replace("'", "")
    return f"    def {op.name}(\n{lines}    ) -> {signature.return_annotation}: ...\n"


if __name__ == "__main__":
    STUB.write_text(stub())
