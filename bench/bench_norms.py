"""``rms_norm``, ``residual_norm`` and ``swiglu`` at the widths of Huginn-0125."""

from __future__ import annotations

import pytest
import torch

from bench.support import assert_close, providers, run, wide
from rdkernels import ops

SMALL = {"rows": [1, 128], "width": [5280]}
FULL = {"rows": [1, 8, 32, 128], "width": [5280, 35840]}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

# Per op: the tensors [rows, width] that it reads and writes. The halves of swiglu's input count.
TRAFFIC = {"rms_norm": 2, "residual_norm": 4, "swiglu": 3}


def inputs(op: str, rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x, y = torch.randn(2, rows, width).to(dtype).unbind()
    weight = torch.rand(width).to(dtype)
    if op == "rms_norm":
        return x, weight
    return (x, y, weight, weight) if op == "residual_norm" else (torch.cat((x, y), dim=1),)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", TRAFFIC)
@pytest.mark.parametrize("provider", providers("rms_norm", torch.bfloat16))
def bench_norms(benchmark, op, rows, width, dtype, provider):
    torch.manual_seed(rows * width)
    function, args = getattr(ops, op), inputs(op, rows, width, DTYPES[dtype])
    exact, same = function(*wide(args), backend="eager"), function(*args, backend="eager")
    assert_close(function(*args, backend=provider), same, exact)
    run(
        benchmark,
        lambda *args: function(*args, backend=provider),
        args,
        group=f"{op} [{rows}, {width}] {dtype}",
        provider=provider,
        traffic=TRAFFIC[op] * rows * width * DTYPES[dtype].itemsize,
        shape={"op": op, "rows": rows, "width": width, "dtype": dtype},
    )
