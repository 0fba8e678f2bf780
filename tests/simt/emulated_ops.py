"""All ops served by the CUDA kernels in the emulator, as the native provider would serve them.

``EmulatedOps.serve()`` takes the place of the provider ``native``: a model that is loaded with
``backend="native"`` then runs every op through its kernel. Arguments and results are those of the
schemas.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from cases import OpCase
from rdkernels.backends import eager
from rdkernels.ops import OPS
from rdkernels.registry import Provider, Serving, choice, copying, forget_choices
from tests.support.checking import as_tuple, poisoned_like

from . import launches
from .attention_case import Case, Result
from .build import load_module
from .tensors import DTYPES

_STYLES = {"huginn": 0, "llama": 1, "olmo": 2}
_HERE = Path(__file__).parent


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """With contiguous rows, as the binding passes tensors on."""
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) <= 1 else tensor.contiguous()


def _array(tensor: torch.Tensor | None) -> tuple[int, int]:
    if tensor is None:
        return 0, 0
    return tensor.data_ptr(), tensor.stride(0) if tensor.dim() == 2 else 0


class EmulatedOps:
    """The ops; ``calls`` counts them by name.

    Args:
        options: of every emulated launch; see ``simt_pybind.h``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = {"count_memory": False} | options
        self.calls: Counter[str] = Counter()
        self._modules: dict[str, ModuleType] = {
            op: load_module(f"tests/simt/{op}_emulated.cpp")
            for op in OPS
            if (_HERE / f"{op}_emulated.cpp").is_file()
        }
        self._row_kernels = load_module("tests/simt/row_kernels.cpp")

    def __call__(self, op: str, *args: Any) -> Any:
        self.calls[op] += 1
        own = getattr(self, f"_{op}", None)  # where a launch takes more than its fields
        return self._run(op, args) if own is None else own(*args)

    def _run(self, op: str, args: tuple[Any, ...]) -> Any:
        """A kernel that its fields describe; outputs are garbage until it writes them."""
        outputs = tuple(map(poisoned_like, as_tuple(OPS[op].fake(*args))))
        call = launches.call_of(op, args, outputs)
        code = () if OPS[op].computes_in else (DTYPES[OpCase(op, "", args, 0).dtype],)
        self._launch(op, launches.fields(op, call), *code)
        return outputs if len(outputs) > 1 else outputs[0]

    @contextmanager
    def serve(self) -> Iterator[None]:
        """In this block, the provider ``native`` is the emulator."""

        with mock.patch.object(choice, "_PROVIDERS", self._providers()):
            forget_choices()
            try:
                yield
            finally:
                forget_choices()

    def _providers(self) -> dict[str, Provider]:
        """This emulator as the provider ``native``, and eager; nobody else."""

        def reason(op: str, device: str, dtype: torch.dtype) -> str | None:
            return None if OPS[op].cpu_only is None else f"{op} has no CUDA kernel"

        def function(op: str) -> Serving:
            return copying(OPS[op], partial(self, op))

        native = SimpleNamespace(reason=reason, only_by_name=eager.only_by_name, function=function)
        return {"native": native, "triton": eager, "eager": eager}

    def _launch(self, op: str, fields: dict[str, Any], *dtype: int) -> None:
        self._modules[op].run(fields, *dtype, **self.options)

    # ---- launches of other forms, with the positional arguments of the schema ----

    def _rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        x, out = _rows(x), x.new_full(x.shape, math.nan)
        arrays = map(_array, (x, weight, out))
        self._row_kernels.rms_norm(DTYPES[x.dtype], *x.shape, *arrays, eps, **self.options)
        return out

    def _residual_norm(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        post_weight: torch.Tensor | None,
        pre_weight: torch.Tensor | None,
        eps: float,
        style: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        delta, residual = _rows(delta), _rows(residual)
        hidden = residual.new_full(residual.shape, math.nan)
        normed = residual.new_empty(0) if pre_weight is None else torch.full_like(hidden, math.nan)
        target = None if pre_weight is None else normed
        arrays = map(_array, (delta, residual, post_weight, pre_weight, hidden, target))
        sizes = (DTYPES[delta.dtype], *delta.shape)
        self._row_kernels.residual_norm(*sizes, *arrays, eps, _STYLES[style], **self.options)
        return hidden, normed

    def _swiglu(self, x: torch.Tensor) -> torch.Tensor:
        x, width = _rows(x), x.size(1) // 2
        out = x.new_full((x.size(0), width), math.nan)
        sizes = (DTYPES[x.dtype], x.size(0), width)
        self._row_kernels.swiglu(*sizes, _array(x), _array(out), **self.options)
        return out

    def _recurrent_attention(
        self,
        qkv: torch.Tensor,
        qk_bias: torch.Tensor | None,
        cos_sin: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        page_table: torch.Tensor,
        cu_rows: torch.Tensor,
        start: torch.Tensor,
        active: torch.Tensor | None,
        scale: float,
        interleaved: bool,
    ) -> torch.Tensor:
        layout = (_rows(page_table), cu_rows, start, active, scale, interleaved)
        case = Case(_rows(qkv), qk_bias, cos_sin, key_cache, value_cache, *layout, seed=0)
        result = Result(
            qkv.new_full((qkv.size(0), case.num_heads * key_cache.size(3)), math.nan),
            key_cache,
            value_cache,
        )
        module, code = self._modules["recurrent_attention"], DTYPES[qkv.dtype]
        fields = case.fields(result)
        size = module.plan(fields, code)["workspace_bytes"]
        workspace = torch.full((size // 4,), math.nan)
        fields["workspace"] = workspace.data_ptr() if size else 0
        self._launch("recurrent_attention", fields, code)
        return result.out
