"""Every op at Huginn-0125's sizes: provider by provider, native kernels also into given results.

``recurrent_attention`` runs beside torch SDPA, which gets what the op does not have: K/V gathered
to one contiguous tensor per head, queries and keys already biased and rotated, nothing to write to
a cache. Eager ``row_linear`` is torch's GEMM; with int8 weights it widens the whole weight first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.correctness import complaint, wrong
from bench.micro.timed import run
from bench.op_cases import (
    ROW_CASES,
    OpCase,
    Setting,
    advance_wavefront,
    as_tuple,
    attention,
    out_buffers,
    out_names,
    row_linear,
    serve,
)
from bench.random_models import HUGINN
from rdkernels.ops import BACKENDS, OPS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WIDE = ("rms_norm", "residual_norm", "swiglu", "inject_state", "exit_update")  # at two widths
GIVEN, SDPA = "native out=", "sdpa"
DEMO_WEIGHTS = ((704, 128), (128, 352))
HUGINN_WEIGHTS = ((15840, 5280), (5280, 5280), (35840, 5280), (5280, 17920))


class Point(NamedTuple):
    """One call: ``make`` of op_cases with ``rows`` rows, in cache or not."""

    name: str
    rows: int
    dtype: str
    make: Callable[[Setting, int], OpCase]
    width: int = HUGINN.hidden_size
    context: int = 256
    cached: bool = False

    @property
    def group(self) -> str:
        return f"{self.name} {self.rows} rows {self.dtype} {'cached' if self.cached else 'cold'}"

    def case(self) -> OpCase:
        config = HUGINN
        if self.width != config.hidden_size or self.name.startswith("swiglu"):
            config = replace(config, hidden_size=self.width, intermediate_size=self.width)
        at = Setting(torch.device("cpu"), DTYPES[self.dtype], config, self.context)
        return self.make(at, self.rows)


def points(full: bool) -> Iterator[Point]:
    """A small grid, or the complete one."""
    for name, make in ROW_CASES.items():
        wide = name.split()[0] in WIDE
        for width in (5280, 35840) if wide and full else (5280,):
            for cached in (False, True) if wide else (False,):
                for dtype in DTYPES if full else ("bf16",):
                    for rows in _row_counts(name, full):
                        text = f"{name} {width}" if wide else name
                        yield Point(text, rows, dtype, make, width, cached=cached)
    for rows in (1, 8, 32, 128) if full else (128,):
        make = partial(_advance, sequences=max(rows // 16, 1))
        yield Point("advance_wavefront", rows, "fp32", make)
    for context in (256, 1024, 4096) if full else (256, 1024):
        for rows in (1, 8, 32, 128) if full else (1, 8, 32):
            yield Point(f"recurrent_attention {context}", rows, "bf16", _attend, context=context)
    every = (*HUGINN_WEIGHTS, *DEMO_WEIGHTS)
    for shape in every if full else (HUGINN_WEIGHTS[0], DEMO_WEIGHTS[0]):
        for rows in (1, 2, 4, 8, 16, 32, 64) if full else (1, 8, 32):
            for dtype, int8 in (("bf16", False), ("fp32", False), ("bf16", True)):
                name = f"row_linear {shape[0]} x {shape[1]}{' int8' if int8 else ''}"
                yield Point(name, rows, dtype, partial(row_linear, shape=shape, int8=int8))


def _row_counts(name: str, full: bool) -> tuple[int, ...]:
    if name.startswith("sample_tokens"):  # logits are computed for rows that need them
        return (1, 8) if full else (8,)
    return (1, 8, 32, 128) if full else (128,)


def _attend(at: Setting, rows: int) -> OpCase:
    """One wavefront at the end of ``at.context`` positions."""
    return attention(replace(at, context=at.context - rows), 1, rows)


def _advance(at: Setting, rows: int, sequences: int) -> OpCase:
    return advance_wavefront(at, sequences, rows // sequences)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = list(points(metafunc.config.getoption("--full")))
    metafunc.parametrize("point", found, ids=[point.group for point in found])


def into_given(case: OpCase) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The native kernel without the allocation of its results, and the inputs that it takes:
    those of ``case``, then tensors to write into.

    These rotate with the inputs. What an op allocates itself is the memory of the call before,
    still cached; or, if it is large (32 MiB), pages that the system has to clear first.
    """
    out, names, count = OPS[case.op].out, out_names(case.op), len(case.arguments)

    def function(*args: Any) -> Any:
        out(*args[:count], **dict(zip(names, args[count:], strict=True)))
        return args[count:]

    return function, (*case.copies(), *out_buffers(case).values())


def sdpa(case: OpCase) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """torch's attention on as many rows and positions."""
    rows, context = len(case.arguments[0]), int(case.arguments[7]) + len(case.arguments[0])
    heads, head_dim = case.arguments[3].shape[2:]
    query = torch.randn(1, heads, rows, head_dim).to(case.dtype)
    key, value = torch.randn(2, 1, heads, context, head_dim).to(case.dtype).unbind()
    positions = torch.arange(context)
    mask = None if rows == 1 else positions <= positions[-rows:].unsqueeze(1)
    return scaled_dot_product_attention, (query, key, value, mask)


def checked(case: OpCase, provider: str) -> tuple[Callable[..., Any], tuple[Any, ...], str | None]:
    """What to time, its inputs, and why it is not right."""
    if provider == SDPA:
        return *sdpa(case), None
    if provider != GIVEN:
        return serve(case, provider), case.copies(), wrong(case, provider)
    function, inputs = into_given(case)
    want = as_tuple(serve(case, "native")(*case.copies()))  # itself checked under its own name
    found = (complaint(a, b, b) for a, b in zip(function(*inputs), want, strict=True))
    return function, inputs, next((problem for problem in found if problem), None)


@pytest.mark.parametrize("provider", [*BACKENDS, GIVEN, SDPA])
def bench_ops(benchmark, point, provider):
    case = point.case()
    results = sum(x.nbytes for x in as_tuple(serve(case, "eager")(*case.copies())))
    writes = 4 * results >= case.moved
    if provider == SDPA and case.op != "recurrent_attention":
        pytest.skip("no attention")
    if provider == GIVEN and not writes:
        pytest.skip("results are small: allocated or given makes no difference")
    if reason := case.providers(torch.device("cpu")).get(
        "native" if provider == GIVEN else provider
    ):
        pytest.skip(reason)
    function, inputs, problem = checked(case, provider)
    assert problem is None, problem
    count = len(case.arguments)
    run(
        benchmark,
        function,
        inputs,
        group=point.group,
        provider=provider,
        traffic=case.moved,
        writes=writes,
        cached=point.cached,
        prepare=(lambda used: None)
        if provider == SDPA
        else lambda used: case.restore(used[:count]),
    )
