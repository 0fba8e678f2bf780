"""The fields of a kernel's parameter struct, from the arguments and outputs of its op.

A call is any object whose attributes are named as in the schema, outputs included. Tensors become
addresses, numbers stay; what the struct has beside them, and what it has not, is said per op. The
emulator refuses a field that is missing and one that nobody asked for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from rdkernels.backends.eager.state import CRITERIA
from rdkernels.ops import OPS

from .tensors import address

Fields = dict[str, Any]


def call_of(op: str, args: tuple[Any, ...], outputs: tuple[torch.Tensor, ...]) -> SimpleNamespace:
    """A call with positional arguments; rows as the binding passes them on, side by side."""
    return SimpleNamespace(**dict(zip(_names(op), map(_rows, (*args, *outputs)), strict=True)))


def fields(op: str, call: Any) -> Fields:
    """The fields of one launch of ``op``."""
    return _OF[op](call)


def _names(op: str) -> tuple[str, ...]:
    return (*inspect.signature(OPS[op].meaning).parameters, *OPS[op].out_names)


def _rows(value: Any) -> Any:
    """Matrices with rows side by side; what ops write to besides is never of another form."""
    if not isinstance(value, torch.Tensor) or value.dim() != 2:
        return value
    return value if value.stride(-1) == 1 or value.size(-1) <= 1 else value.contiguous()


def _fields(op: str, call: Any, *absent: str, **others: Any) -> Fields:
    names = _names(op)
    values = {name: getattr(call, name) for name in names if name not in absent}
    fields = {
        name: address(value) if value is None or isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }
    if "seed" in fields:
        fields["seed"] %= 2**64
    return fields | others


def _stride(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)


def _inject_state(call: Any) -> Fields:
    keys = call.row_keys if call.noise_weight is not None else None
    return _fields(
        "inject_state",
        call,
        rows=call.state.size(0),
        width=call.state.size(1),
        state_stride=_stride(call.state),
        embed_stride=_stride(call.embed),
        depth=address(call.depth if call.previous_embed is not None else None),
        row_keys=address(keys),
        previous_stride=_stride(call.previous_embed),
        key_stride=_stride(keys),
        adapter_stride=_stride(call.adapter_input),
        mixed_stride=_stride(call.mixed_embed),
        one_minus_momentum=1.0 - call.momentum,
    )


def _exit_update(call: Any) -> Fields:
    return _fields(
        "exit_update",
        call,
        rows=call.state.size(0),
        width=call.state.size(1),
        state_stride=_stride(call.state),
        previous_stride=_stride(call.previous_state),
        criterion=CRITERIA.index(call.criterion),
    )


def _truncated_normal(call: Any) -> Fields:
    return _fields(
        "truncated_normal",
        call,
        "dtype",
        rows=len(call.row_keys),
        key_stride=_stride(call.row_keys),
        out_stride=_stride(call.out),
    )


def _sample_tokens(call: Any) -> Fields:
    offset = call.temperature * math.log(call.min_p) if call.min_p > 0.0 else -math.inf
    return _fields(
        "sample_tokens",
        call,
        "min_p",
        rows=call.logits.size(0),
        vocabulary=call.logits.size(1),
        logits_stride=_stride(call.logits),
        key_stride=_stride(call.row_keys),
        min_p_offset=offset,
    )


def _advance_wavefront(call: Any) -> Fields:
    return _fields(
        "advance_wavefront",
        call,
        num_rows=call.sampled.numel(),
        capacity=call.source_row.numel(),
        max_length=call.tokens.size(1),
        tokens_stride=_stride(call.tokens),
        committed_depth_stride=_stride(call.committed_depth),
        key_stride=_stride(call.row_keys),
        num_stop_tokens=call.stop_tokens.numel(),
        num_sequences=call.start.numel(),
    )


def _carry_rows(call: Any) -> Fields:
    return _fields(
        "carry_rows",
        call,
        "cu_rows",
        row_count=address(call.cu_rows[-1:]),
        num_rows=call.state.size(0),
        rows=call.source_row.numel(),
        width=call.state.size(1),
        state_stride=_stride(call.state),
        embed_stride=_stride(call.embed),
        key_stride=_stride(call.row_keys),
        next_state_stride=_stride(call.next_state),
        next_embed_stride=_stride(call.next_embed),
    )


_OF: dict[str, Callable[[Any], Fields]] = {
    "advance_wavefront": _advance_wavefront,
    "carry_rows": _carry_rows,
    "exit_update": _exit_update,
    "inject_state": _inject_state,
    "sample_tokens": _sample_tokens,
    "truncated_normal": _truncated_normal,
}
