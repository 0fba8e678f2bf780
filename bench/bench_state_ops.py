"""The ops between core iterations: states, noise, exits, sampling, the wavefront's bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from bench.support import assert_close, copies, providers, run, wide
from rdkernels import ops

WIDTH, VOCABULARY = 5280, 65536
SMALL = {"rows": [128]}
FULL = {"rows": [1, 8, 32, 128]}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """A call ``function(*inputs, backend=...)``, and how many elements it reads and writes."""

    op: str
    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    elements: int
    integers: bool = False  # then providers must agree exactly
    in_fp32: Callable[..., Any] | None = None  # if not the same function with wider inputs


def exit_update(rows: int, dtype: torch.dtype, criterion: str) -> Case:
    state = torch.randn(rows, WIDTH)
    inputs = (state.to(dtype), (state + 0.03 * torch.randn(rows, WIDTH)).to(dtype))

    def call(*args, backend):
        options = {"iterations": 4, "threshold": 0.03, "criterion": criterion}
        return ops.exit_update(*args, **options, backend=backend)[0]

    return Case("exit_update", call, (*inputs, torch.ones(rows).int()), 2 * rows * WIDTH)


def inject_state(rows: int, dtype: torch.dtype, momentum: bool, noise: bool) -> Case:
    state, embed, previous = torch.randn(3, rows, WIDTH).to(dtype).unbind()
    keys = torch.randint(0, 1 << 20, (rows, 3), dtype=torch.int32)
    mixed = (previous, torch.ones(rows).int(), 0.1) if momentum else (None, None, 0.0)
    noisy = (torch.full((rows,), 0.1), keys, 7, 1.0) if noise else ()

    def call(*args, backend):
        return ops.inject_state(*args, backend=backend)

    matrices = 6 if momentum else 5
    return Case("inject_state", call, (state, embed, *mixed, *noisy), matrices * rows * WIDTH)


def truncated_normal(rows: int, dtype: torch.dtype) -> Case:
    keys = torch.randint(0, 1 << 20, (rows, 3), dtype=torch.int32)

    def call(keys, backend, dtype=dtype):
        return ops.truncated_normal(keys, WIDTH, 0.4, 7, dtype=dtype, backend=backend)

    in_fp32 = partial(call, dtype=torch.float32)
    return Case("truncated_normal", call, (keys,), rows * WIDTH, in_fp32=in_fp32)


def sample_tokens(rows: int, dtype: torch.dtype, **settings: float) -> Case:
    rows = min(rows, 8)  # logits are computed for rows that need them
    logits = (3 * torch.randn(rows, VOCABULARY)).to(dtype)
    keys = torch.randint(0, 1 << 20, (rows, 3), dtype=torch.int32)

    def call(*args, backend):
        return ops.sample_tokens(*args, **settings, seed=3, backend=backend)

    return Case("sample_tokens", call, (logits, keys), rows * VOCABULARY, integers=True)


def carry_rows(rows: int, dtype: torch.dtype) -> Case:
    """The first row is committed and a fresh one takes its place at the front."""
    state, embed = torch.randn(2, rows, WIDTH).to(dtype).unbind()
    source = torch.arange(1, rows + 1, dtype=torch.int32)
    source[-1] = -rows
    keys = torch.randint(0, 1 << 20, (rows, 3), dtype=torch.int32)

    def call(*args, backend):
        return ops.carry_rows(*args, seed=7, std=0.4, backend=backend)

    inputs = (state, embed, source, keys, torch.tensor([0, rows]).int())
    return Case("carry_rows", call, inputs, (4 * rows - 2) * WIDTH)


def advance_wavefront(rows: int, dtype: torch.dtype) -> Case:
    batch, length = max(rows // 16, 1), 1024
    bounds = torch.linspace(0, rows, batch + 1).int()
    inputs = (
        torch.randint(0, 100, (batch, length)),
        torch.full((batch,), 100, dtype=torch.int32),
        torch.zeros(batch, dtype=torch.bool),
        torch.zeros(batch, length, dtype=torch.int32),
        torch.randint(0, 100, (rows,)),
        torch.rand(rows) < 0.5,
        torch.randint(0, 32, (rows,), dtype=torch.int32),
        bounds,
        torch.full((batch,), length, dtype=torch.int32),
        torch.full((batch,), 101, dtype=torch.int32),
        torch.arange(batch, dtype=torch.int32),
        torch.tensor([1000]),
    )

    def call(*args, backend):
        return ops.advance_wavefront(*args, headway=1, max_wavefront=128, backend=backend)

    return Case("advance_wavefront", call, inputs, rows, integers=True)


CASES = {
    "exit_update latent-diff": lambda rows, dtype: exit_update(rows, dtype, "latent-diff"),
    "exit_update cosine": lambda rows, dtype: exit_update(rows, dtype, "cosine"),
    "inject_state concat": lambda rows, dtype: inject_state(rows, dtype, False, False),
    "inject_state momentum": lambda rows, dtype: inject_state(rows, dtype, True, False),
    "inject_state noise": lambda rows, dtype: inject_state(rows, dtype, True, True),
    "truncated_normal": truncated_normal,
    "sample_tokens greedy": sample_tokens,
    "sample_tokens temperature": lambda rows, dtype: sample_tokens(rows, dtype, temperature=1.0),
    "sample_tokens top-k 50": lambda r, d: sample_tokens(r, d, temperature=1.0, top_k=50),
    "sample_tokens top-p 0.95": lambda r, d: sample_tokens(r, d, temperature=1.0, top_p=0.95),
    "advance_wavefront": advance_wavefront,
    "carry_rows": carry_rows,
}


def check(case: Case, provider: str) -> None:
    out = case.function(*copies(case.inputs), backend=provider)
    same = case.function(*copies(case.inputs), backend="eager")
    if case.integers:
        for got, want in zip(_tuple(out), _tuple(same), strict=True):
            assert torch.equal(got, want)
        return
    in_fp32 = case.in_fp32 or case.function
    assert_close(out, same, in_fp32(*wide(copies(case.inputs)), backend="eager"))


def _tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("provider", providers("exit_update", torch.bfloat16))
def bench_state_ops(benchmark, name, rows, dtype, provider):
    torch.manual_seed(rows)
    case = CASES[name](rows, DTYPES[dtype])
    check(case, provider)
    run(
        benchmark,
        lambda *args: case.function(*args, backend=provider),
        case.inputs,
        group=f"{name} {rows} rows {dtype}",
        provider=provider,
        traffic=case.elements * DTYPES[dtype].itemsize,
        shape={"op": case.op, "rows": rows, "dtype": dtype},
    )
