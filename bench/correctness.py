"""Is what a provider computed right? No speed is reported of a wrong result."""

from __future__ import annotations

import torch

from bench.op_cases import serve
from cases import OpCase
from rdkernels.ops import OPS
from rdkernels.registry.op import as_tuple

FP32_BY_CONTRACT = ("cos_sin", "noise_weight", "scale")


def complaint(out: torch.Tensor, same: torch.Tensor, exact: torch.Tensor) -> str | None:
    """None if ``out`` has at most twice the error of ``same``, plus 1e-5; else what is wrong.

    ``same`` is plain PyTorch's result in the precision of ``out``, ``exact`` that in fp32 or fp64.
    NaN and infinities must be the same; errors are compared over finite elements.
    """
    if out.dtype != same.dtype or out.shape != same.shape:
        return f"{out.dtype}{list(out.shape)}, not {same.dtype}{list(same.shape)}"
    if not out.is_floating_point():
        return None if torch.equal(out, same) else "integers differ"
    out, same, exact = out.double(), same.double(), exact.double()
    special, finite = ~same.isfinite(), same.isfinite() & exact.isfinite()
    if not torch.allclose(out[special], same[special], rtol=0, atol=0, equal_nan=True):
        return "NaN or infinities differ"
    if not finite.any():
        return None
    error, usual = ((x - exact)[finite].abs().max().item() for x in (out, same))
    allowed = 2 * usual + 1e-5
    # Not `error > allowed`, which is false of a NaN.
    return None if error <= allowed else f"max error {error:.3e} > {allowed:.3e}, not timed"


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
    complaints = (complaint(*three) for three in triples if isinstance(three[0], torch.Tensor))
    return next((found for found in complaints if found is not None), None)
