"""``row_linear`` on the weights of Huginn-0125 and of the demo model, against torch's GEMM.

The int8 rows have bf16 activations; eager widens the whole weight first.
"""

from __future__ import annotations

import pytest
import torch

from bench.support import assert_close, providers, run, wide
from rdkernels import ops
from rdkernels.models.weights import QuantizedWeight

SMALL = {"rows": [1, 8, 32], "weight": [(15840, 5280), (704, 128)]}
FULL = {
    "rows": [1, 2, 4, 8, 16, 32, 64],
    "weight": [(15840, 5280), (5280, 5280), (35840, 5280), (5280, 17920), (704, 128), (128, 352)],
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.bfloat16}


def _exact(x, weight, scale=None):
    if scale is None:
        return wide((x, weight))
    return x.double(), weight.double() * scale.double()[:, None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("provider", providers("row_linear", torch.bfloat16))
def bench_row_linear(benchmark, rows, weight, dtype, provider):
    width, depth = weight
    torch.manual_seed(rows * depth)
    x = torch.randn(rows, depth).to(DTYPES[dtype])
    matrix = (torch.randn(weight) / depth**0.5).to(x.dtype)  # results of about 1
    args = (x, matrix)
    if dtype == "int8":
        quantized = QuantizedWeight.from_weight(matrix)
        args = (x, quantized.values, quantized.scale)
    exact = ops.row_linear(*_exact(*args), backend="eager")
    same = ops.row_linear(*args, backend="eager")
    assert_close(ops.row_linear(*args, backend=provider), same, exact)
    run(
        benchmark,
        lambda *args: ops.row_linear(*args, backend=provider),
        args,
        group=f"row_linear [{rows}, {depth}] x [{width}, {depth}] {dtype}",
        provider=provider,
        traffic=(rows * depth + rows * width) * x.itemsize + args[1].nbytes,
        shape={"rows": rows, "width": width, "depth": depth, "dtype": dtype},
    )
