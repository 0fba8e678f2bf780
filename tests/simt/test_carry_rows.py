"""The CUDA kernel of ``carry_rows`` in the emulator, against the eager op."""

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
    address,
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

OP = "carry_rows"
SOURCES = [3, -1, 0, -5, -4, 3, 1]  # of 5 rows; the 7 next ones
GARBAGE = 2**30  # the source of a padding row


@pytest.fixture(scope="module")
def kernels():
    return load_kernels(OP)


@dataclass
class Case:
    """The arguments of one call, in the order of the schema."""

    state: torch.Tensor
    embed: torch.Tensor
    source_row: torch.Tensor
    row_keys: torch.Tensor
    cu_rows: torch.Tensor
    seed: int = 0x1234_5678_9ABC_DEF0
    std: float = 0.4
    continuous: bool = False

    def eager(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        layout = (self.source_row, self.row_keys, self.cu_rows)
        rest = (self.seed, self.std, self.continuous)
        return eager.carry_rows(self.state.to(dtype), self.embed.to(dtype), *layout, *rest)

    def outputs(self, gap: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (self.source_row.numel(), self.state.size(1))
        return blank(*shape, self.state.dtype, gap), blank(*shape, self.state.dtype, gap)

    def run(self, kernels, outputs: tuple[torch.Tensor, torch.Tensor], **options):
        """The report of one emulated launch that writes ``outputs``."""
        next_state, next_embed = outputs
        params = parameters(
            OP,
            state=self.state,
            embed=self.embed,
            source_row=self.source_row,
            row_keys=self.row_keys,
            row_count=self.cu_rows[-1:],
            next_state=next_state,
            next_embed=next_embed,
            num_rows=self.state.size(0),
            rows=self.source_row.numel(),
            width=self.state.size(1),
            seed=self.seed,
            std=self.std,
            continuous=self.continuous,
        )
        return kernels.run(params, DTYPES[self.state.dtype], **options)

    def check(self, outputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Draws within the error rule; all that is copied, bit for bit."""
        same, exact = self.eager(self.state.dtype), self.eager(torch.float64)
        for out, same_precision, reference in zip(outputs, same, exact, strict=True):
            assert_close_to_reference(out, same_precision, reference)
            assert guarded(out), "something was written between rows"
        count = int(self.cu_rows[-1])
        drawn = (self.source_row < 0) & (not self.continuous) & (self.std > 0)
        drawn[count:] = False
        assert torch.equal(bits(outputs[0][~drawn]), bits(same[0][~drawn]))
        assert torch.equal(bits(outputs[1]), bits(same[1]))


def make_case(
    seed: int, width: int, dtype: torch.dtype, *, padding: int = 2, place=aligned
) -> Case:
    """Five rows, one of which nobody names and is NaN; seven next ones, and padding."""
    generator = torch.Generator().manual_seed(seed)
    state, embed = torch.randn(2, 5, width, generator=generator).to(dtype)
    state[2], embed[[2, 4]] = NAN, NAN
    source = torch.tensor(SOURCES + [GARBAGE] * padding, dtype=torch.int32)
    shape = (len(source), 5)
    keys = torch.randint(-(2**31), 2**31, shape, generator=generator, dtype=torch.int32)
    bounds = torch.tensor([0, 3, len(SOURCES)], dtype=torch.int32)
    return Case(place(state), place(embed), source, keys[:, 1:4], bounds)


@pytest.mark.parametrize("continuous", [False, True], ids=["drawn", "continuous"])
@pytest.mark.parametrize("width", [1, 8, 37, 5280])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(kernels, dtype, width, continuous):
    for place, gap in ((aligned, 0), (unaligned, 0), (aligned, 1)):
        case = replace(make_case(width, width, dtype, place=place), continuous=continuous)
        outputs = case.outputs(gap)
        case.run(kernels, outputs)
        case.check(outputs)


def test_zero_deviation(kernels):
    case = replace(make_case(1, 40, torch.bfloat16), std=0.0)
    outputs = case.outputs()
    case.run(kernels, outputs)
    case.check(outputs)
    assert (bits(outputs[0][1]) == 0).all(), "zeros, none of them negative"


def test_padding_rows_are_zeros(kernels):
    """Whether all rows are padding, or none, or more rows were wanted than there is room for."""
    for count in (0, 1, len(SOURCES), 100):
        for padding in (0, 3):
            if count == 100 and padding:
                continue
            case = make_case(2, 24, torch.float32, padding=padding)
            case = replace(case, cu_rows=torch.tensor([0, count], dtype=torch.int32))
            outputs = case.outputs()
            case.run(kernels, outputs)
            for out in outputs:
                assert (bits(out[count:]) == 0).all() and not out.isnan().any()


def test_every_array_has_a_stride_of_its_own(kernels):
    """One of them unaligned, then the next: the fast path needs all four."""
    for odd in (None, "state", "embed", "next_state", "next_embed"):
        case = make_case(3, 64, torch.bfloat16)
        widths = {"state": 200, "embed": 264, "next_state": 328, "next_embed": 136}
        arrays = {}
        for name, width in widths.items():
            rows = 5 if name in ("state", "embed") else len(case.source_row)
            first = 1 if name == odd else 0
            whole = aligned(torch.full((rows, width), 77.0, dtype=torch.bfloat16))
            arrays[name] = whole[:, first : first + 64]
        arrays["state"].copy_(case.state)
        arrays["embed"].copy_(case.embed)
        case = replace(case, state=arrays["state"], embed=arrays["embed"])
        outputs = (arrays["next_state"].fill_(NAN), arrays["next_embed"].fill_(NAN))
        case.run(kernels, outputs)
        same, exact = case.eager(torch.bfloat16), case.eager(torch.float64)
        for out, same_precision, reference in zip(outputs, same, exact, strict=True):
            assert_close_to_reference(out, same_precision, reference)


def test_every_schedule(kernels):
    results = {}
    for name, options in adversarial(seed=5).items():
        case = make_case(4, 700, torch.bfloat16)
        outputs = case.outputs()
        case.run(kernels, outputs, **options)
        results[name] = outputs
    assert_same_everywhere(results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_traffic(kernels, dtype):
    """Outputs are written once; a row that goes on is read once, a drawn one not at all."""
    case = make_case(5, 5280, dtype)
    outputs = case.outputs()
    ranges = {
        name: (address(tensor), tensor.stride(0) * tensor.size(0) * tensor.element_size())
        for name, tensor in {"state": case.state, "embed": case.embed}.items()
    }
    report = case.run(kernels, outputs, watch=ranges)
    assert sectors(report)[1] == sectors_of(*outputs)
    going_on = sum(source >= 0 for source in SOURCES)
    for name in ranges:
        assert report["watched"][name]["read_sectors"] == going_on * sectors_of(case.state[:1])


def test_nothing_to_do(kernels):
    case = make_case(6, 16, torch.float32)
    none = case.outputs()[0][:, :0]
    case = replace(case, state=case.state[:, :0], embed=case.embed[:, :0])
    case.run(kernels, (none, none))


@pytest.mark.slow
def test_sanitizers():
    script = f"""
import torch
import {OP}_emulated as kernels
from dataclasses import replace
from tests.simt.test_{OP} import make_case
for width in (8, 37, 264):
    for dtype in (torch.bfloat16, torch.float32):
        for continuous in (False, True):
            case = replace(make_case(width, width, dtype), continuous=continuous)
            case.run(kernels, case.outputs())
"""
    done = run_sanitized(f"tests/simt/{OP}_emulated.cpp", script)
    assert done.returncode == 0, done.stderr
