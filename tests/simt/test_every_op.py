"""Every op of the table in the emulator, held to eager: values, and what is written in place."""

from __future__ import annotations

import pytest

from cases import CASES, Shape
from rdkernels.dtypes import KERNEL_FLOATS
from rdkernels.ops import OPS

from .checked_ops import CheckedOps


@pytest.fixture(scope="module")
def kernels():
    return CheckedOps()


@pytest.mark.parametrize("dtype", KERNEL_FLOATS, ids=str)
@pytest.mark.parametrize("op", [name for name, op in OPS.items() if op.cpu_only is None])
def test_every_case_of_the_table(op, dtype, kernels, seed):
    for rows in (23, 0):
        for case in CASES[op](Shape.small(rows, dtype)):
            kernels(op, *case.copies())
    assert kernels.calls[op] >= 2
