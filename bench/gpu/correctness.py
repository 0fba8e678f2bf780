"""Is what a provider computed right? The tests' own rule, so that no speed is reported of a wrong
result."""

from __future__ import annotations

import torch

from bench.gpu.op_cases import serve
from cases import OpCase
from rdkernels.ops import OPS
from tests.support.checking import assert_close_to_reference

FP32_BY_CONTRACT = ("cos_sin", "noise_weight", "scale")


def as_tuple(result: object) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def widened(case: OpCase) -> tuple:
    """Copies of the arguments for the same call in fp64."""
    schema = OPS[case.op].default._schema.arguments

    def widen(name: str, value: object) -> object:
        if isinstance(value, torch.dtype):
            return torch.float64
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if floating and name not in FP32_BY_CONTRACT else value

    named = zip((argument.name for argument in schema), case.copies(), strict=True)
    return tuple(widen(name, value) for name, value in named)


def wrong(case: OpCase, provider: str) -> str | None:
    """None if all that ``provider`` returns and writes meets the error rule, else what is wrong."""
    same, exact, used = case.copies(), widened(case), case.copies()
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
