"""The emulated ops of ``emulated_ops.py``, each call held to eager."""

from __future__ import annotations

from typing import Any

import torch

from rdkernels.ops import OPS
from tests.support.checking import as_tuple, assert_close_to_reference, clone_all

from .emulated_ops import EmulatedOps


class CheckedOps(EmulatedOps):
    """Holds every call to eager, on the same arguments, before the caller gets the results.

    Integers and flags, and whatever an op writes into its arguments, must be equal; floating
    results must obey the error rule.
    """

    def __call__(self, op: str, *args: Any) -> Any:
        same_args, exact_args = clone_all(args), tuple(map(_wide, clone_all(args)))
        results = super().__call__(op, *args)
        # fp64 is not a dtype that every argument's check admits: the bare specification.
        same, exact = OPS[op].eager(*same_args), OPS[op].meaning(*exact_args)
        triples = zip(as_tuple(results), as_tuple(same), as_tuple(exact), strict=True)
        for result, same_precision, reference in triples:
            if result.is_floating_point():
                assert_close_to_reference(result, same_precision, reference)
            else:
                assert torch.equal(result, same_precision), f"{op}: {result} {same_precision}"
        for i, (mine, theirs) in enumerate(zip(args, same_args, strict=True)):
            if isinstance(mine, torch.Tensor):
                same = torch.allclose(mine, theirs, rtol=0.0, atol=0.0, equal_nan=True)
                assert same, f"{op}: argument {i} was left different"
        return results


def _wide(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor) and argument.is_floating_point():
        return argument.double()
    return torch.float64 if isinstance(argument, torch.dtype) else argument
