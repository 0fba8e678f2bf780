"""The CUDA kernel of ``inject_state`` in the emulator, against the eager op."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from rdkernels.backends.eager import state as eager
from tests.support.checking import assert_close_to_reference

from .build import run_sanitized
from .parameters import parameters
from .schedules import adversarial
from .tensors import (
    DTYPES,
    NAN,
    aligned,
    assert_same_everywhere,
    bits,
    blank,
    guarded,
    load_kernels,
    sectors,
    sectors_of,
    unaligned,
)

OP = "inject_state"


@pytest.fixture(scope="module")
def kernels():
    return load_kernels(OP)


@dataclass
class Case:
    """The arguments of one call, in the order of the schema."""

    state: torch.Tensor
    embed: torch.Tensor
    previous_embed: torch.Tensor | None = None
    depth: torch.Tensor | None = None
    momentum: float = 0.0
    noise_weight: torch.Tensor | None = None
    row_keys: torch.Tensor | None = None
    seed: int = 0
    noise_std: float = 1.0
    variance_preserving: bool = False

    def eager(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        previous = None if self.previous_embed is None else self.previous_embed.to(dtype)
        floats = (self.state.to(dtype), self.embed.to(dtype), previous)
        rest = (self.depth, self.momentum, self.noise_weight, self.row_keys)
        options = (self.seed, self.noise_std, self.variance_preserving)
        return eager.inject_state(*floats, *rest, *options)

    def run(self, kernels, gap: int = 0, mixed: torch.Tensor | None = None, **options):
        """(adapter_input, mixed_embed, report) of one emulated launch."""
        rows, width = self.state.shape
        adapter = blank(rows, 2 * width, self.state.dtype, gap)
        mixed = blank(rows, width, self.state.dtype, gap) if mixed is None else mixed
        params = parameters(
            OP,
            state=self.state,
            embed=self.embed,
            previous_embed=self.previous_embed,
            depth=self.depth,
            noise_weight=self.noise_weight,
            row_keys=self.row_keys,
            adapter_input=adapter,
            mixed_embed=mixed,
            rows=rows,
            width=width,
            momentum=self.momentum,
            one_minus_momentum=1.0 - self.momentum,
            noise_std=self.noise_std,
            variance_preserving=self.variance_preserving,
            seed=self.seed,
        )
        report = kernels.run(params, DTYPES[self.state.dtype], **options)
        return adapter, mixed, report

    def check(self, adapter: torch.Tensor, mixed: torch.Tensor) -> None:
        same, exact = self.eager(self.state.dtype), self.eager(torch.float64)
        for out, same_precision, reference in zip((adapter, mixed), same, exact, strict=True):
            assert_close_to_reference(out, same_precision, reference)
            assert guarded(out), "something was written between rows"


def make_case(
    seed: int,
    width: int,
    dtype: torch.dtype,
    *,
    momentum: bool = True,
    noise: bool = True,
    place=aligned,
) -> Case:
    """Five rows: fresh, iterated, without noise, with noise, with nothing but noise."""
    generator = torch.Generator().manual_seed(seed)
    state, embed, previous = torch.randn(3, 5, width, generator=generator).to(dtype)
    case = Case(place(state), place(embed))
    if momentum:
        depth = torch.tensor([0, 4, 1, 0, 128], dtype=torch.int32)
        previous[depth == 0] = NAN  # a new row has no previous embedding
        case = replace(case, previous_embed=place(previous), depth=depth, momentum=0.1)
    if noise:
        weight = torch.tensor([0.0, 0.25, -1.0, 0.5, 1.0])
        keys = torch.randint(-(2**31), 2**31, (5, 3), generator=generator, dtype=torch.int32)
        state[0, 0] = NAN  # passes through
        case = replace(case, state=place(state), noise_weight=weight, row_keys=keys, seed=-seed)
    return case


@pytest.mark.parametrize("noise", [False, True], ids=["", "noise"])
@pytest.mark.parametrize("momentum", [False, True], ids=["", "momentum"])
@pytest.mark.parametrize("width", [1, 8, 37, 5280])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(kernels, dtype, width, momentum, noise):
    for place, gap in ((aligned, 0), (unaligned, 0), (aligned, 1)):
        case = make_case(width, width, dtype, momentum=momentum, noise=noise, place=place)
        case.check(*case.run(kernels, gap)[:2])
        case = replace(case, variance_preserving=True)
        case.check(*case.run(kernels, gap)[:2])


@pytest.mark.parametrize("weight", [0.6, 0.9999, 1.0, 1.5])
def test_variance_preserving_noise_near_and_beyond_one(kernels, weight):
    case = make_case(10, 24, torch.float32)
    case = replace(case, noise_weight=torch.full((5,), weight), variance_preserving=True)
    case.check(*case.run(kernels)[:2])


def test_rows_that_are_not_mixed_are_copied_bit_for_bit(kernels):
    case = make_case(3, 40, torch.bfloat16)
    case.state.view(torch.int16)[2] = torch.arange(40, dtype=torch.int16) + 0x7F80  # inf and NaNs
    case.embed.view(torch.int16)[0] = torch.arange(40, dtype=torch.int16) + 0x7FC0
    adapter, mixed, _ = case.run(kernels)
    assert torch.equal(bits(adapter[2, :40]), bits(case.state[2]))
    assert torch.equal(bits(adapter[0, 40:]), bits(case.embed[0]))
    assert torch.equal(bits(mixed[0]), bits(case.embed[0]))


def test_noise_weight_nan_is_no_noise(kernels):
    case = make_case(4, 16, torch.float32)
    case.noise_weight[3] = NAN
    adapter, mixed, _ = case.run(kernels)
    case.check(adapter, mixed)


def test_every_array_has_a_stride_of_its_own(kernels):
    case = make_case(9, 64, torch.bfloat16)
    embed, previous = aligned(case.embed, gap=64), aligned(case.previous_embed, gap=128)
    case = replace(case, embed=embed, previous_embed=previous)
    mixed = blank(5, 64, torch.bfloat16, gap=192)
    assert len({t.stride(0) for t in (case.state, embed, previous, mixed)}) == 4
    case.check(*case.run(kernels, mixed=mixed)[:2])


def test_mixed_embed_may_be_previous_embed(kernels):
    case = make_case(5, 264, torch.bfloat16)
    _, want, _ = case.run(kernels)
    in_place = aligned(case.previous_embed)
    _, got, _ = replace(case, previous_embed=in_place).run(kernels, mixed=in_place)
    assert torch.equal(bits(got), bits(want))


def test_every_schedule(kernels):
    case, results = make_case(6, 2100, torch.bfloat16), {}
    for name, options in adversarial(seed=6).items():
        results[name] = case.run(kernels, **options)[:2]
    assert_same_everywhere(results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_touched_once(kernels, dtype):
    """Every sector once; previous_embed only of the rows that have one; per-row scalars besides."""
    case = make_case(7, 5280, dtype)
    adapter, mixed, report = case.run(kernels)
    read, written = sectors(report)
    assert written == sectors_of(adapter, mixed)
    arrays = sectors_of(case.state, case.embed, case.previous_embed[case.depth > 0])
    warps = report["threads"] // 32
    # depth, noise_weight and three words of row_keys, each a sector per warp
    assert arrays <= read <= arrays + 5 * warps
    case = make_case(7, 5280, dtype, momentum=False, noise=False)
    assert sectors(case.run(kernels)[2])[0] == sectors_of(case.state, case.embed)


def test_a_row_does_not_depend_on_its_batch(kernels):
    case = make_case(8, 96, torch.float32)
    together = case.run(kernels)[0]
    for i in range(5):
        row = {
            name: value[i : i + 1]
            for name, value in vars(case).items()
            if isinstance(value, torch.Tensor)
        }
        alone = replace(case, **row).run(kernels)[0]
        assert torch.equal(bits(alone[0]), bits(together[i]))


@pytest.mark.slow
def test_sanitizers():
    script = f"""
import torch
import {OP}_emulated as kernels
from tests.simt.test_{OP} import make_case
from tests.simt.tensors import unaligned
for dtype in (torch.bfloat16, torch.float32):
    for case in (make_case(1, 264, dtype), make_case(1, 37, dtype, place=unaligned)):
        case.check(*case.run(kernels)[:2])
"""
    done = run_sanitized(f"tests/simt/{OP}_emulated.cpp", script)
    assert done.returncode == 0, done.stderr
