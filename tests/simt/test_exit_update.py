"""The CUDA kernel of ``exit_update`` in the emulator, against the eager op."""

from __future__ import annotations

import pytest
import torch

from rdkernels.backends.eager import state as eager
from tests.support.checking import adversarial_rows, assert_close_to_reference

from .build import run_sanitized
from .parameters import parameters
from .schedules import adversarial
from .tensors import (
    DTYPES,
    NAN,
    aligned,
    assert_same_everywhere,
    load_kernels,
    sectors,
    sectors_of,
    unaligned,
)

OP = "exit_update"
CRITERIA = {"latent-diff": 0, "cosine": 1}


@pytest.fixture(scope="module")
def kernels():
    return load_kernels(OP)


def run(kernels, state, previous, depth, active, criterion, threshold=0.03, **options):
    """(delta, converged, depth, report) of one emulated launch; ``depth`` itself is not changed."""
    rows, width = state.shape
    delta, converged = torch.full((rows,), NAN), torch.full((rows,), 77, dtype=torch.uint8)
    depth = depth.clone()
    params = parameters(
        OP,
        state=state,
        previous_state=previous,
        active=active,
        depth=depth,
        delta=delta,
        converged=converged,
        rows=rows,
        width=width,
        iterations=4,
        threshold=threshold,
        criterion=CRITERIA[criterion],
    )
    report = kernels.run(params, DTYPES[state.dtype], **options)
    assert (converged <= 1).all(), "a bool is 0 or 1"
    return delta, converged.bool(), depth, report


def check(kernels, state, previous, active, criterion, threshold=0.03):
    """All results against eager in the same precision and in fp64."""
    depth = torch.arange(len(state), dtype=torch.int32)
    got = run(kernels, state, previous, depth, active, criterion, threshold)

    def specification(dtype):
        counted, wide = depth.clone(), (state.to(dtype), previous.to(dtype))
        result = eager.exit_update(*wide, counted, active, 4, threshold, criterion)
        return *result, counted

    same, exact = specification(state.dtype), specification(torch.float64)
    delta, converged, counted, _ = got
    assert_close_to_reference(delta, same[0], exact[0])
    assert torch.equal(counted, same[2])
    clear = (exact[0] - threshold).abs() > 1e-4
    assert torch.equal(converged[clear], same[1][clear])
    live = torch.ones(len(state), dtype=torch.bool) if active is None else active
    assert torch.equal(converged, live & (delta < threshold))


def states(seed, rows, width, dtype, place=aligned):
    """Two states of each row; most have moved a little, a few not at all."""
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(rows, width, generator=generator)
    step = 10.0 ** -torch.randint(0, 4, (rows, 1), generator=generator)
    state = previous + step * torch.randn(rows, width, generator=generator)
    state[::5] = previous[::5]
    return place(state.to(dtype)), place(previous.to(dtype))


@pytest.mark.parametrize("place", [aligned, unaligned])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("width", [0, 1, 7, 64, 264, 1000, 5280, 5281, 8200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(kernels, dtype, width, criterion, place):
    """One warp per row; one, two and four chunks per thread; scalar."""
    rows = 9 if width < 5000 else 3
    state, previous = states(width, rows, width, dtype, place)
    check(kernels, state, previous, None, criterion)


def test_every_array_has_a_stride_of_its_own(kernels):
    state, previous = states(7, 4, 64, torch.bfloat16)
    previous = aligned(previous, gap=64)
    assert state.stride(0) != previous.stride(0)
    check(kernels, state, previous, None, "latent-diff")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_wider_than_a_tile(kernels, criterion):
    check(kernels, *states(1, 2, 17000, torch.bfloat16), None, criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_values(kernels, dtype, criterion):
    """Zeros, subnormals, huge values, NaN and infinities against each other: never NaN."""
    rows = aligned(adversarial_rows(16, dtype))
    for shift in range(len(rows)):
        other = aligned(rows.roll(shift, 0))
        for threshold in (0.03, float("inf"), NAN, 0.0):
            depth = torch.zeros(len(rows), dtype=torch.int32)
            delta, converged, _, _ = run(kernels, rows, other, depth, None, criterion, threshold)
            want, same_converged = eager.exit_update(
                rows, other, depth.clone(), None, 4, threshold, criterion
            )
            assert not delta.isnan().any()
            assert torch.equal(delta.isinf(), want.isinf()), (shift, delta, want)
            torch.testing.assert_close(delta, want, rtol=1e-4, atol=1e-5)
            clear = (want - threshold).abs() > 1e-4
            assert torch.equal(converged[clear], same_converged[clear])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("width", [64, 5280])
def test_inactive_rows_are_not_read(kernels, width, criterion):
    state, previous = states(2, 10, width, torch.bfloat16)
    active = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 0, 1]).bool()
    state[~active] = NAN
    check(kernels, state, previous, active, criterion)
    depth = torch.zeros(10, dtype=torch.int32)
    watch = {"states": (state.data_ptr(), 10 * state.stride(0) * 2)}
    report = run(kernels, state, previous, depth, active, criterion, watch=watch)[3]
    assert report["watched"]["states"]["read_sectors"] == sectors_of(state[active])


def test_large_depths_and_zero_rows(kernels):
    state, previous = states(3, 2, 8, torch.float32)
    depth = torch.tensor([2**31 - 5, -4], dtype=torch.int32)
    assert run(kernels, state, previous, depth, None, "cosine")[2].tolist() == [2**31 - 1, 0]
    empty = state[:0]
    assert run(kernels, empty, empty, depth[:0], None, "cosine")[0].numel() == 0


def test_a_row_does_not_depend_on_its_batch(kernels):
    state, previous = states(4, 9, 96, torch.float32)
    depth = torch.zeros(9, dtype=torch.int32)
    together = run(kernels, state, previous, depth, None, "cosine")[0]
    for i in range(9):
        row = slice(i, i + 1)
        alone = run(kernels, state[row], previous[row], depth[row], None, "cosine")[0]
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize("width", [64, 2600])
def test_every_schedule(kernels, width):
    results = {}
    state, previous = states(5, 7, width, torch.bfloat16)
    depth, active = torch.arange(7, dtype=torch.int32), torch.arange(7) % 3 > 0
    for name, options in adversarial(seed=8).items():
        result = run(kernels, state, previous, depth, active, "cosine", **options)
        results[name] = result[:3]
    assert_same_everywhere(results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_touched_once(kernels, dtype):
    state, previous = states(6, 3, 5280, dtype)
    depth = torch.zeros(3, dtype=torch.int32)
    report = run(kernels, state, previous, depth, None, "latent-diff")[3]
    read, _ = sectors(report)
    assert read == sectors_of(state, previous) + 3, "the states, and a depth per row"
    assert report["bank_conflicts"] == 0


@pytest.mark.slow
def test_sanitizers():
    script = f"""
import torch
import {OP}_emulated as kernels
from tests.simt.test_{OP} import check, states, unaligned
for criterion in ("latent-diff", "cosine"):
    for width in (1, 264, 600):
        check(kernels, *states(1, 5, width, torch.bfloat16), None, criterion)
        check(kernels, *states(1, 5, width, torch.float32, unaligned), None, criterion)
"""
    done = run_sanitized(f"tests/simt/{OP}_emulated.cpp", script)
    assert done.returncode == 0, done.stderr
