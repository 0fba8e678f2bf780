"""Every op at Huginn-0125's sizes: provider by provider, native kernels also into given results.

``recurrent_attention`` runs beside torch SDPA, which gets what the op does not have: K/V gathered
to one contiguous tensor per head, queries and keys already biased and rotated, nothing to write to
a cache. Eager ``row_linear`` is torch's GEMM; with int8 weights it widens the whole weight first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from bench.correctness import complaint, wrong
from bench.micro.timed import run
from bench.op_cases import OF_ROWS, Setting, out_buffers, providers, serve
from bench.random_models import HUGINN
from cases import CASES, OpCase, Shape, labelled
from rdkernels.ops import BACKENDS, OPS
from rdkernels.registry.op import as_tuple

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WIDE = ("rms_norm", "residual_norm", "swiglu", "inject_state", "exit_update")  # at two widths
GIVEN, SDPA = "native out=", "sdpa"
DEMO_WEIGHTS = ((704, 128), (128, 352))
HUGINN_WEIGHTS = ((15840, 5280), (5280, 5280), (35840, 5280), (5280, 17920))


class Point(NamedTuple):
    """One call: the case of the table with this label, of ``sequences`` of ``rows`` rows in all,
    in cache or not."""

    op: str
    label: str
    rows: int
    dtype: str
    detail: str = ""
    width: int | None = None  # hidden size and that of the MLP, if not Huginn's
    matrix: tuple[int, int] | None = None
    sequences: int = 1
    history: int = 256  # positions before the rows
    cached: bool = False

    @property
    def group(self) -> str:
        words = (self.op, self.label, self.detail, f"{self.rows} rows", self.dtype)
        return " ".join((*filter(None, words), "cached" if self.cached else "cold"))

    def case(self) -> OpCase:
        config = HUGINN
        if self.width is not None:
            config = replace(config, hidden_size=self.width, intermediate_size=self.width)
        at = Setting(torch.device("cpu"), DTYPES[self.dtype], config, self.history)
        shape = at.shape(self.sequences, self.rows // self.sequences)
        shape = replace(shape, matrix=self.matrix or shape.matrix)
        torch.manual_seed(1)
        return labelled(self.op, self.label, shape)


def points(full: bool) -> Iterator[Point]:
    """A small grid, or the complete one."""
    for op in OF_ROWS:
        for case in CASES[op](Shape.small(5, torch.float32)):
            if case.timed:
                yield from _row_points(op, case.label, full)
    for rows in (1, 8, 32, 128) if full else (128,):
        yield Point("advance_wavefront", "redraft", rows, "fp32", sequences=max(rows // 16, 1))
    for context in (256, 1024, 4096) if full else (256, 1024):
        for rows in (1, 8, 32, 128) if full else (1, 8, 32):
            history = context - rows  # one wavefront at the end of ``context`` positions
            yield Point("recurrent_attention", "", rows, "bf16", str(context), history=history)
    every = (*HUGINN_WEIGHTS, *DEMO_WEIGHTS)
    for matrix in every if full else (HUGINN_WEIGHTS[0], DEMO_WEIGHTS[0]):
        for rows in (1, 2, 4, 8, 16, 32, 64) if full else (1, 8, 32):
            for label, dtype in (("", "bf16"), ("", "fp32"), ("int8", "bf16")):
                detail = f"{matrix[0]} x {matrix[1]}"
                yield Point("row_linear", label, rows, dtype, detail, matrix=matrix)


def _row_points(op: str, label: str, full: bool) -> Iterator[Point]:
    wide = op in WIDE
    # Logits are fp32, and computed for rows that need them.
    dtypes = ("fp32",) if op == "sample_tokens" else tuple(DTYPES) if full else ("bf16",)
    counts = (1, 8) if op == "sample_tokens" else (1, 8, 32, 128)
    for width in ((5280, 35840) if full else (5280,)) if wide else (None,):
        for cached in (False, True) if wide else (False,):
            for dtype, rows in product(dtypes, counts if full else counts[-1:]):
                detail = "" if width is None else str(width)
                yield Point(op, label, rows, dtype, detail, width, cached=cached)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = list(points(metafunc.config.getoption("--full")))
    metafunc.parametrize("point", found, ids=[point.group for point in found])


def into_given(case: OpCase) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The native kernel without the allocation of its results, and the inputs that it takes:
    those of ``case``, then tensors to write into.

    These rotate with the inputs. What an op allocates itself is the memory of the call before,
    still cached; or, if it is large (32 MiB), pages that the system has to clear first.
    """
    out, names, count = OPS[case.op].out, OPS[case.op].out_names, len(case.arguments)

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
    name = "native" if provider == GIVEN else provider
    if reason := providers(case, torch.device("cpu")).get(name):
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
