"""All ops served by the CUDA kernels in the emulator, as the native provider would serve them.

``EmulatedOps.serve()`` takes the place of the provider ``native``: a model that is loaded with
``backend="native"`` then runs every op through its kernel. Arguments and results are those of the
schemas.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from rdkernels.backends import eager
from rdkernels.ops import OPS
from rdkernels.registry import Provider, Serving, choice, copying, forget_choices
from tests.support.checking import as_tuple, poisoned_like

from .attention_case import Case
from .build import load_module
from .parameters import field_names, parameters
from .tensors import DTYPES

_CRITERIA = {"latent-diff": 0, "cosine": 1}  # RdkCriterion
_STYLES = {"huginn": 0, "llama": 1, "olmo": 2}  # RdkNormStyle
_ROW_KERNELS = ("rms_norm", "residual_norm", "swiglu")  # of one module

Fields = dict[str, Any]


def _sizes(rows: torch.Tensor, **more: Any) -> Fields:
    return {"rows": rows.size(0), "width": rows.size(1)} | more


# What the parameter struct of an op has beside the arguments and outputs of its schema, or in place
# of one. Each function takes by name what it uses.
_DERIVED: dict[str, Callable[..., Fields]] = {
    "rms_norm": lambda x, **_: _sizes(x),
    "residual_norm": lambda residual, style, pre_weight, normed, **_: _sizes(
        residual, style=_STYLES[style], normed=None if pre_weight is None else normed
    ),
    "swiglu": lambda out, **_: _sizes(out),
    "inject_state": lambda state, momentum, **_: _sizes(state, one_minus_momentum=1.0 - momentum),
    "exit_update": lambda state, criterion, **_: _sizes(state, criterion=_CRITERIA[criterion]),
    "truncated_normal": lambda out, **_: _sizes(out),
    "sample_tokens": lambda logits, temperature, min_p, **_: {
        "rows": logits.size(0),
        "vocabulary": logits.size(1),
        "min_p_offset": temperature * math.log(min_p) if min_p > 0.0 else -math.inf,
    },
    "advance_wavefront": lambda tokens, sampled, stop_tokens, source_row, **_: {
        "num_rows": sampled.numel(),
        "capacity": source_row.numel(),
        "max_length": tokens.size(1),
        "num_stop_tokens": stop_tokens.numel(),
        "num_sequences": tokens.size(0),
    },
    "carry_rows": lambda state, cu_rows, next_state, **_: _sizes(
        next_state, num_rows=state.size(0), row_count=cu_rows[-1:]
    ),
}


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """With contiguous rows, as the binding passes tensors on."""
    return tensor if tensor.stride(-1) == 1 or tensor.size(-1) <= 1 else tensor.contiguous()


class EmulatedOps:
    """The ops; ``calls`` counts them by name.

    Args:
        options: of every emulated launch; see ``simt_pybind.h``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = {"count_memory": False} | options
        self.calls: Counter[str] = Counter()
        self._attention = load_module("tests/simt/recurrent_attention_emulated.cpp")
        rows = load_module("tests/simt/row_kernels.cpp")
        self._run: dict[str, Callable[..., Any]] = {
            op: getattr(rows, op)
            if op in _ROW_KERNELS
            else load_module(f"tests/simt/{op}_emulated.cpp").run
            for op in _DERIVED
        }

    def __call__(self, op: str, *args: Any) -> Any:
        self.calls[op] += 1
        if op == "recurrent_attention":
            return self._recurrent_attention(*args)
        schema = getattr(torch.ops.rdkernels, op).default._schema
        arguments = {a.name: value for a, value in zip(schema.arguments, args, strict=True)}
        written = {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write}
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and name not in written:
                arguments[name] = _rows(value)
        outputs = self._outputs(op, args)
        self._launch(op, arguments | outputs)
        results = tuple(outputs.values())
        return results[0] if len(results) == 1 else results

    @staticmethod
    def _outputs(op: str, args: Sequence[Any]) -> dict[str, torch.Tensor]:
        """By their names in the overload ``out``; shapes and dtypes are those of the fake."""
        overloads = getattr(torch.ops.rdkernels, op)
        on_meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in args]
        shapes = as_tuple(overloads(*on_meta))
        names = [a.name for a in overloads.out._schema.arguments[len(args) :]]
        outputs = [poisoned_like(torch.zeros_like(like, device="cpu")) for like in shapes]
        return dict(zip(names, outputs, strict=True))

    def _launch(self, op: str, named: dict[str, Any]) -> None:
        fields = {field: named[field] for field in field_names(op) if field in named}
        params = parameters(op, **(fields | _DERIVED[op](**named)))
        tensors = (value for value in named.values() if isinstance(value, torch.Tensor))
        codes = [DTYPES[tensor.dtype] for tensor in tensors if tensor.is_floating_point()]
        self._run[op](params, *codes[:1], **self.options)

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

    def _recurrent_attention(self, qkv: torch.Tensor, *rest: Any) -> torch.Tensor:
        case = Case(_rows(qkv), *rest, seed=0)
        return case.run_in_place(self._attention, **self.options).out
