"""Is what a provider computed right? The tests' own rule, so that no speed is reported of a wrong
result."""

from __future__ import annotations

import torch

from bench.gpu.op_cases import OpCase, serve
from rdkernels.ops import OPS
from tests.support.checking import assert_close_to_reference


def as_tuple(result: object) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def widened(arguments: tuple) -> tuple:
    """The same call in fp64; tables that are fp32 by contract stay."""
    return tuple(_widened(argument) for argument in arguments)


def _widened(argument: object) -> object:
    half = (torch.bfloat16, torch.float16)
    if isinstance(argument, torch.Tensor):
        return argument.double() if argument.dtype in half else argument
    return torch.float64 if isinstance(argument, torch.dtype) and argument in half else argument


def wrong(case: OpCase, provider: str) -> str | None:
    """None if all that ``provider`` returns and writes meets the error rule, else what is wrong."""
    same, exact, used = case.copies(), widened(case.copies()), case.copies()
    want = as_tuple(OPS[case.op].eager(*same))
    truth = as_tuple(OPS[case.op].eager(*exact))
    got = as_tuple(serve(case, provider)(*used))
    triples = [*zip(got, want, truth, strict=True), *zip(used, same, exact, strict=True)]
    for out, like, true in triples:
        if not isinstance(out, torch.Tensor):
            continue
        try:
            if out.is_floating_point():
                assert_close_to_reference(out, like, true)
            else:
                assert torch.equal(out, like), "integers differ"
        except AssertionError as error:
            return str(error) or "differs from eager"
    return None
