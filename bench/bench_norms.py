"""``rms_norm``, ``residual_norm`` and ``swiglu`` at the widths of Huginn-0125."""

from __future__ import annotations

import pytest
import torch

from bench.support import PREALLOCATED, assert_close, providers_and_out, run, wide, with_outputs
from rdkernels import ops

SMALL = {"rows": [128], "width": [5280, 35840]}
FULL = {"rows": [1, 8, 32, 128], "width": [5280, 35840]}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Per op: the tensors [rows, width] that it reads and writes. The halves of swiglu's input count.
TRAFFIC = {"rms_norm": 2, "residual_norm": 4, "swiglu": 3}


def inputs(op: str, rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor | float, ...]:
    x, y = torch.randn(2, rows, width).to(dtype).unbind()
    weight = torch.rand(width).to(dtype)
    if op == "rms_norm":
        return x, weight, 1e-6
    if op == "residual_norm":
        return x, y, weight, weight, 1e-6, "huginn"
    return (torch.cat((x, y), dim=1),)


@pytest.mark.parametrize("cached", [False, True], ids=["cold", "cached"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", TRAFFIC)
@pytest.mark.parametrize("provider", providers_and_out("rms_norm", torch.bfloat16))
def bench_norms(benchmark, op, rows, width, dtype, provider, cached):
    torch.manual_seed(rows * width)
    definition, args = getattr(ops, op), inputs(op, rows, width, DTYPES[dtype])
    exact, same = definition(*wide(args), backend="eager"), definition(*args, backend="eager")

    def function(*args):
        return definition(*args, backend=provider)

    if provider == PREALLOCATED:
        function, args = with_outputs(op, args)
    assert_close(function(*args), same, exact)
    run(
        benchmark,
        function,
        args,
        group=f"{op} [{rows}, {width}] {dtype} {'cached' if cached else 'cold'}",
        provider=provider,
        traffic=TRAFFIC[op] * rows * width * DTYPES[dtype].itemsize,
        shape={"op": op, "rows": rows, "width": width, "dtype": dtype},
        writes=True,
        cached=cached,
    )
