"""Parameter structs of the C API from Python, laid out as the headers of csrc/include declare them.

kernels.swiglu(parameters("swiglu", x=x, out=out, rows=3, width=8), dtype)
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from typing import Any

import torch

from .build import PROJECT_ROOT

_NUMBERS = {
    "bool": ctypes.c_bool,
    "int": ctypes.c_int,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}
_FIELD = re.compile(r"(?P<type>[\w ]+?)(?P<pointer>\*?) (?P<name>\w+);")


def parameters(op: str, **fields: Any) -> bytes:
    """The bytes of the op's parameter struct.

    Args:
        fields: the struct's, by name. A tensor stands for its address, None for the null pointer.
            ``<name>_stride`` need not be given: it is that of the rows of the tensor ``<name>``.

    Raises:
        ValueError: a field is missing, or the struct has none of this name.
    """
    names = field_names(op)
    strides = {
        f"{name}_stride": value.stride(0) if isinstance(value, torch.Tensor) else 0
        for name, value in fields.items()
        if f"{name}_stride" in names
    }
    given = strides | {name: _value(value) for name, value in fields.items()}
    if set(given) != set(names):
        raise ValueError(f"{op}: missing or unknown fields {sorted(set(given) ^ set(names))}")
    return bytes(parameter_struct(op)(**given))


def _value(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


def field_names(op: str) -> list[str]:
    """The fields of the op's parameter struct."""
    return [name for name, _ in parameter_struct(op)._fields_]


@cache
def parameter_struct(op: str) -> type[ctypes.Structure]:
    """``<Op>Params`` of ``rdkernels/<op>.h``."""
    header = (PROJECT_ROOT / "csrc" / "include" / "rdkernels" / f"{op}.h").read_text()
    name = "".join(part.capitalize() for part in op.split("_")) + "Params"
    body = re.search(rf"struct {name} {{\n(.*?)\n}};", header, re.DOTALL).group(1)
    lines = [line.partition("//")[0].strip() for line in body.splitlines()]
    fields = [_field(line) for line in lines if line]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def _field(declaration: str) -> tuple[str, type]:
    match = _FIELD.fullmatch(declaration)
    if match is None:
        raise ValueError(f"cannot read the declaration {declaration!r}")
    kind = ctypes.c_void_p if match["pointer"] else _NUMBERS[match["type"]]
    return match["name"], kind
