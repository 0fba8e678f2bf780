"""What torch asks of every operator: true schemas, fakes that know the shapes, symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from cases import CASES, Shape
from rdkernels.backends import native
from rdkernels.dtypes import KERNEL_FLOATS as FLOATS
from rdkernels.ops import BACKENDS, OPS, reasons
from rdkernels.registry import function
from tests.support.checking import OPCHECKS, as_tuple, check_operator, clone_all

ROWS, OTHER_ROWS = 23, 31  # sizes that no other dimension of the samples has
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, NO_GPU))]


def test_every_op_has_cases():
    assert set(CASES) == set(OPS), "an op without cases in cases/table.py"


def samples(op: str, rows: int, dtype: torch.dtype) -> list[tuple]:
    """Arguments of every case, the fullest first; only the packed dimension has size ``rows``.

    opcheck compares with allclose, for which NaN equals nothing: what may not be read is a number.
    """

    def finite(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(tensor) if tensor.is_floating_point() else tensor

    cases = CASES[op](Shape.small(rows, dtype))
    return [mapped(finite, case.arguments) for case in cases]


def mapped(function: Callable[[torch.Tensor], torch.Tensor], case: tuple) -> tuple:
    """``case`` with ``function`` applied to every tensor, in lists too."""

    def apply(a: Any) -> Any:
        if isinstance(a, list):
            return [apply(element) for element in a]
        return function(a) if isinstance(a, torch.Tensor) else a

    return tuple(apply(a) for a in case)


def on(device: str, case: tuple) -> tuple:
    return mapped(lambda tensor: tensor.to(device), case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_operator(op, device, seed):
    """opcheck of both overloads with what the operator runs, at some rows and at none."""
    sizes = ((ROWS, FLOATS[0]), (ROWS, FLOATS[1]), (0, FLOATS[0]))
    cases = [case for size in sizes for case in samples(op, *size)]
    check_operator(op, *(on(device, case) for case in cases))


def shadow(op: str, provider: str, library: torch.library.Library) -> torch._ops.OpOverload:
    """An operator of the same schema and fake that runs one provider's function."""
    library.define(OPS[op].schema)
    library.impl(op, function(provider, op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{library.ns}::{op}", OPS[op].fake, lib=library)
    return getattr(getattr(torch.ops, library.ns), op).default


def without_operator() -> list[tuple[str, str]]:
    """(op, provider) that can serve on the CPU, but not what the operator runs there."""
    served = []
    for op in OPS:
        runs = "native" if native.has_kernel(op, "cpu") else "eager"
        why = reasons(op, "cpu", torch.float32)
        served += [(op, name) for name in BACKENDS if why[name] is None and name != runs]
    return served


@pytest.mark.parametrize(("op", "served_by"), without_operator())
def test_other_providers_keep_the_schema_and_the_fake(op, served_by, seed):
    with torch.library._scoped_library(f"shadow_of_{served_by}", "DEF") as library:
        operator = shadow(op, served_by, library)
        for rows in (ROWS, 0):
            for case in samples(op, rows, torch.float32):
                torch.library.opcheck(operator, clone_all(case), test_utils=OPCHECKS[:2])


def symbolic(case: tuple, mode: FakeTensorMode) -> tuple:
    """The arguments as fake tensors whose dimensions of size ``ROWS`` are one unknown size."""

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        dims = [
            DimDynamic.DUCK if size == ROWS else DimDynamic.STATIC for size in tensor.shape
        ]  # duck: equal sizes are one symbol
        context = StatelessSymbolicContext(dynamic_sizes=dims)
        return mode.from_tensor(tensor, symbolic_context=context)

    return mapped(fake, case)


def shape_at(shape: torch.Size, rows: int) -> list[int]:
    """A shape of an unknown number of rows, at ``rows``."""
    values = []
    for size in shape:
        if isinstance(size, torch.SymInt):
            (symbol,) = size.node.expr.free_symbols
            size = size.node.expr.subs(symbol, rows)
        values.append(int(size))
    return values


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", OPS)
def test_fake_of_an_unknown_number_of_rows(op, dtype, seed):
    """Its shapes are formulas of that number, right for any; its dtypes are those of the op."""
    here, there = (samples(op, rows, dtype) for rows in (ROWS, OTHER_ROWS))
    for case, other in zip(here, there, strict=True):
        environment = ShapeEnv()
        mode = FakeTensorMode(shape_env=environment)
        inputs = symbolic(case, mode)
        with mode:
            fakes = as_tuple(OPS[op].default(*inputs))
            if OPS[op].out is not None:
                named = zip(OPS[op].out_names, fakes, strict=True)
                outs = {name: torch.empty_like(fake) for name, fake in named}
                assert OPS[op].out(*inputs, **outs) is None
        real = as_tuple(OPS[op].default(*clone_all(case)))
        more = as_tuple(OPS[op].default(*clone_all(other)))
        assert not environment.replacements, "the number of rows was pinned"
        for fake, a, b in zip(fakes, real, more, strict=True):
            assert fake.dtype == a.dtype and fake.device == a.device
            assert shape_at(fake.shape, ROWS) == list(a.shape)
            assert shape_at(fake.shape, OTHER_ROWS) == list(b.shape)
