"""How tests decide that an op's result is right, and the inputs that are easy to get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from rdkernels.errors import ArgumentError
from rdkernels.ops import OPS

NAN, INF = float("nan"), float("inf")
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")  # the last is slow


def assert_close_to_reference(
    out: torch.Tensor,
    same_precision: torch.Tensor,
    reference: torch.Tensor,
    *,
    scale: float = 1.0,
) -> None:
    """The error rule: twice the error of plain PyTorch in the same precision, or one ulp, and 1e-5.

    ``same_precision`` has the dtype of ``out``; ``reference`` is the same formula in fp32 or fp64.
    With e the largest error of ``same_precision``, the largest error of ``out`` may be

        max(2 e, 2 u m) + 1e-5 * scale,

    u being the unit roundoff of the dtype (half of ``torch.finfo(dtype).eps``) and m the largest
    finite value of ``reference``. The second bound is what rounding alone can do. An op on rows
    computes in fp32 and rounds to its dtype at most twice on the way to an element: a norm, then
    its product with the weight. Each rounding moves the element by at most u of its size, so a
    faultless result is within ``2 u m``, wherever it rounds (higher orders, and fp32 itself, are
    left to the 1e-5).
    Without it the rule would be a coin toss where few elements carry e: two faultless results may
    each be exact where the other is a whole ``u m`` off. It is small enough to hide nothing but
    roundings: of m itself it is the last one or two units. Attention also rounds its queries and
    keys, which moves its scores; there e is the yardstick, and comes from the same roundings.

    Where ``same_precision`` is NaN or infinite, ``out`` must be the same NaN or infinity, and
    nowhere else may it be: errors are compared over finite elements only. ``scale`` multiplies
    the 1e-5, for values far above 1.
    """
    assert out.dtype == same_precision.dtype and out.shape == same_precision.shape, (
        f"{out.dtype}{list(out.shape)}, not {same_precision.dtype}{list(same_precision.shape)}"
    )
    out, same, exact = out.double().cpu(), same_precision.double().cpu(), reference.double().cpu()
    assert torch.equal(out.isnan(), same.isnan()), _differs("NaN", out.isnan() ^ same.isnan())
    infinite = same.isinf()
    wrong = (out.isinf() | infinite) & (out != same)
    assert not wrong.any(), _differs("inf", wrong)
    finite = same.isfinite() & exact.isfinite()
    if not finite.any():
        return
    error = (out - exact)[finite].abs().max().item()
    twice = 2 * (same - exact)[finite].abs().max().item()
    ulp = torch.finfo(same_precision.dtype).eps * exact[finite].abs().max().item()
    allowed = max(twice, ulp) + 1e-5 * scale
    assert error <= allowed, (
        f"max error {error:.3e} > {allowed:.3e} = max({twice:.3e} twice same precision, "
        f"{ulp:.3e} one ulp) + {1e-5 * scale:.0e}"
    )


def assert_rows_close_to_reference(
    out: torch.Tensor, same_precision: torch.Tensor, reference: torch.Tensor
) -> None:
    """The error rule for every row by itself, the 1e-5 relative to the row's largest value.

    For rows of very different size, where one huge row would excuse all the others.
    """
    assert out.dtype == same_precision.dtype and out.shape == same_precision.shape
    for row, same, exact in zip(out, same_precision, reference, strict=True):
        largest = same[same.isfinite()].abs().double().max().item() if same.isfinite().any() else 1
        assert_close_to_reference(row, same, exact, scale=max(1.0, largest))


def _differs(what: str, where: torch.Tensor) -> str:
    return f"{what} masks differ at {where.nonzero()[:8].tolist()}"


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal bit for bit: NaN equals the same NaN, and zeros differ by their sign."""
    assert a.dtype == b.dtype and a.shape == b.shape
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    wrong = a.contiguous().view(integer) != b.contiguous().view(integer)
    assert not wrong.any(), f"bits differ at {wrong.nonzero()[:8].tolist()}"


def layouts(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The matrix ``x`` again, laid out in every way that a caller may; NaN in all the gaps.

    Rows with gaps, an odd offset (no 16-byte alignment), columns with gaps, transposed.
    """
    rows, width = x.shape
    padded = x.new_full((rows, width + 5), NAN)
    yield padded[:, 3 : width + 3].copy_(x)
    flat = x.new_full((rows * width + 1,), NAN)
    yield flat[1:].view(rows, width).copy_(x)
    spaced = x.new_full((rows, 2 * width), NAN)
    yield spaced[:, ::2].copy_(x)
    yield x.t().contiguous().t()


def adversarial_rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    """``[rows, width]`` of what goes wrong first: zeros, subnormals, huge, NaN and infinities."""
    info = torch.finfo(dtype)
    ordinary = torch.linspace(-2.0, 2.0, width)
    rows = [
        torch.zeros(width),
        torch.full((width,), -0.0),
        torch.full((width,), info.smallest_normal / 4),  # subnormal
        ordinary * info.max / 2,
        torch.full((width,), info.max),
        ordinary.clone().index_fill(0, torch.tensor([width // 2]), NAN),
        ordinary.clone().index_fill(0, torch.tensor([0]), INF),
        ordinary.clone().index_fill(0, torch.tensor([width - 1]), -INF),
        torch.full((width,), NAN),
        ordinary,
    ]
    return torch.stack(rows).to(dtype)


def clone_all(args: tuple[Any, ...]) -> tuple[Any, ...]:
    def clone(a: Any) -> Any:
        if isinstance(a, list):
            return [clone(element) for element in a]
        return a.clone() if isinstance(a, torch.Tensor) else a

    return tuple(clone(a) for a in args)


def tensors_in(args: tuple[Any, ...]) -> list[torch.Tensor]:
    """The tensors among arguments and in lists among them."""
    flat = [e for a in args for e in (a if isinstance(a, list) else [a])]
    return [a for a in flat if isinstance(a, torch.Tensor)]


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    if result is None:
        return ()
    return result if isinstance(result, tuple) else (result,)


def poisoned_like(result: torch.Tensor) -> torch.Tensor:
    """An output buffer whose every element is wrong until it is written."""
    out = torch.empty_like(result)
    return out.fill_(NAN) if out.is_floating_point() else out.copy_(~result)


def check_operator(op: str, *cases: tuple[Any, ...]) -> None:
    """``torch.library.opcheck`` of both overloads, and the ``out`` overload against the other.

    Each case is a tuple of schema arguments. Mutated arguments must end up equal too. Tracing with
    dynamic shapes takes seconds, so only the first case, the fullest, goes through it.
    """
    default, out_overload = OPS[op].default, OPS[op].out
    for number, case in enumerate(cases):
        checks = OPCHECKS if number == 0 else OPCHECKS[:2]
        torch.library.opcheck(default, clone_all(case), test_utils=checks)
        if out_overload is None:  # an op that only writes to its arguments
            continue
        names = [a.name for a in out_overload._schema.arguments if a.kwarg_only]
        used = clone_all(case)
        results = as_tuple(default(*used))
        outs = {name: poisoned_like(r) for name, r in zip(names, results, strict=True)}
        used_out = clone_all(case)
        assert out_overload(*used_out, **outs) is None
        for want, got in zip(results, outs.values(), strict=True):
            assert_same_bits(got, want)
        for want, got in zip(tensors_in(used), tensors_in(used_out), strict=True):
            assert_same_bits(got, want)
        outs = {name: poisoned_like(r) for name, r in zip(names, results, strict=True)}
        torch.library.opcheck(out_overload, clone_all(case), outs, test_utils=checks)


def assert_refused(
    op: str,
    function: Callable[..., Any],
    arguments: dict[str, Any],
    argument: str,
    value: Any,
    message: str,
) -> None:
    """``function(**arguments)`` works; with ``argument`` replaced by ``value`` it is refused.

    The :class:`ArgumentError` must start with the op's and the argument's name and then match the
    regular expression ``message``, which begins with what was expected.
    """
    function(**arguments)
    pattern = rf"^{op}: {argument}: expected {message}"
    with pytest.raises(ArgumentError, match=pattern):
        function(**(arguments | {argument: value}))


def gradients_match(function: Callable[..., Any], *inputs: torch.Tensor) -> bool:
    """Whether analytic gradients agree with finite differences; fp64 inputs that require grad."""
    return torch.autograd.gradcheck(function, inputs, atol=1e-6, rtol=1e-4)
