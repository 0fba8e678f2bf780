"""The CUDA kernels of ``recurrent_attention`` in the emulator, against the eager op."""

from __future__ import annotations

import dataclasses
import math
import random
from types import ModuleType

import pytest
import torch

from .attention_case import OP, Case, Result, make_case, same_bits
from .build import compiler, load_module, run_sanitized
from .parameters import parameters
from .schedules import adversarial

MODULE = "tests/simt/recurrent_attention_emulated.cpp"
NATIVE_HEAD_DIMS = (32, 64, 96, 128)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
RUNS = adversarial(seed=7)
NARROW, WIDE = 16, 64  # query lines per tile


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    if compiler() is None:
        pytest.skip("no C++ compiler (g++ is not on PATH and CXX names none)")
    return load_module(MODULE)


def two_in_five(sequence: int, row: int) -> bool:
    """An exit mask without pattern."""
    return (7 * sequence + 3 * row) % 5 < 3


def nobody(sequence: int, row: int) -> bool:
    return False


def sectors(result: Result, name: str) -> dict[str, int]:
    return result.reports["attention"]["watched"][name]


# ---- values ----


@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])
@pytest.mark.parametrize("head_dim", [*NATIVE_HEAD_DIMS, 2, 80, 250])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_ragged_batch(kernels, dtype, head_dim, interleaved):
    """Sequences of 0 to 21 rows, at their beginning and far in, exited rows, rows of nobody."""
    case = make_case(
        head_dim + 1000 * interleaved,
        rows=[1, 0, 21, 5, 0],
        start=[0, 3, 60, 131, 9],
        head_dim=head_dim,
        dtype=dtype,
        interleaved=interleaved,
        active=two_in_five,
        spare_rows=4,
        qkv_padding=8,
    )
    assert case.plan(kernels)["tensor_cores"] == (dtype != FP32 and head_dim in NATIVE_HEAD_DIMS)
    case.check(case.run(kernels))
    case.check(case.run(kernels, splits=2))


@pytest.mark.parametrize("head_dim", [*NATIVE_HEAD_DIMS, 48])
def test_prefill(kernels, head_dim):
    """More rows than a tile has lines, from position 0: everything is read from qkv."""
    case = make_case(2, rows=[150], start=[0], head_dim=head_dim, bias=False)
    assert case.plan(kernels)["lines"] == (NARROW if head_dim == 48 else WIDE)
    case.check(case.run(kernels))


@pytest.mark.parametrize("rows", [1, 8, 40], ids=lambda n: f"{n} rows")
def test_huginn(kernels, rows):
    case = make_case(3, rows=[rows], start=[75], heads=55, head_dim=96)
    case.check(case.run(kernels))


@pytest.mark.parametrize("heads, kv_heads", [(8, 2), (4, 1), (24, 1), (70, 1)])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_grouped_queries(kernels, dtype, heads, kv_heads):
    """Groups that divide a tile, that straddle tiles, that are larger than one."""
    for rows in ([1], [3, 2], [9, 0, 14]):
        case = make_case(
            heads + len(rows),
            rows=rows,
            start=[37, 5, 64][: len(rows)],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=64,
            dtype=dtype,
            active=two_in_five if len(rows) > 1 else None,
        )
        case.check(case.run(kernels))


@pytest.mark.parametrize("page_size", [16, 48])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_every_offset_in_a_page(kernels, dtype, page_size):
    start = list(range(page_size + 2))
    case = make_case(
        page_size, rows=[3] * len(start), start=start, head_dim=32, dtype=dtype, page_size=page_size
    )
    case.check(case.run(kernels))


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65])
def test_context_ends_around_a_tile(kernels, rows):
    start = [length - rows for length in (64, 65, 66, 127, 128, 129) if length >= rows]
    case = make_case(rows, rows=[rows] * len(start), start=start, heads=1, head_dim=32)
    case.check(case.run(kernels))


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 5, 6, 7, 8, 31, 32])
@pytest.mark.parametrize("dtype, head_dim", [(BF16, 96), (FP32, 64)], ids=str)
def test_forced_splits(kernels, dtype, head_dim, splits):
    """Up to more splits than K/V tiles; short sequences leave most of them empty."""
    case = make_case(
        splits,
        rows=[2, 1, 3, 4],
        start=[420, 0, 62, 127],
        head_dim=head_dim,
        dtype=dtype,
        active=lambda b, i: b != 3,
        spare_rows=1,
    )
    assert case.plan(kernels, splits)["splits"] == splits
    case.check(case.run(kernels, splits))


@pytest.mark.parametrize("rows", [[5, 0, 9], [90]], ids=["narrow", "wide"])
@pytest.mark.parametrize("dtype, head_dim", [(FP16, 128), (FP32, 32)], ids=str)
@pytest.mark.parametrize("scale", [0.0, -0.5, 40.0])
def test_scales(kernels, dtype, head_dim, rows, scale):
    """Uniform weights, reversed order, and a softmax that is all but one-hot."""
    case = make_case(
        5, rows=rows, start=[70] * len(rows), heads=1, head_dim=head_dim, dtype=dtype, scale=scale
    )
    for splits in (1, 3):
        case.check(case.run(kernels, splits))


# ---- rows that have exited ----


@pytest.mark.parametrize("lines", [NARROW, WIDE])
@pytest.mark.parametrize("splits", [1, 2])
def test_exit_masks_around_a_tile_edge(kernels, lines, splits):
    """All 16 patterns of the rows next to the first edge, the others active or not."""
    edge = range(lines - 2, lines + 2)
    patterns = [(b >> 1, b & 1) for b in range(32)]

    def active(sequence: int, row: int) -> bool:
        pattern, others = patterns[sequence]
        return bool(pattern >> (row - edge[0]) & 1 if row in edge else others)

    # Sequences without rows lower the average, by which the plan chooses the tile.
    rows = [lines + 4] * 32 + [0] * (32 if lines == NARROW else 0)
    case = make_case(lines, rows=rows, start=[13] * len(rows), heads=1, head_dim=32, active=active)
    assert case.plan(kernels)["lines"] == lines
    case.check(case.run(kernels, splits))


@pytest.mark.parametrize("dtype, head_dim", [(BF16, 96), (FP32, 96)], ids=str)
def test_exited_batch_touches_nothing(kernels, dtype, head_dim):
    case = make_case(
        8, rows=[20, 70], start=[33, 5], head_dim=head_dim, dtype=dtype, active=nobody, spare_rows=9
    )
    for splits in (1, 2):
        result = case.run(kernels, splits)
        assert not result.out.any()
        assert torch.isnan(result.key_cache).all() and torch.isnan(result.value_cache).all()
        for name in ("key", "value", "qkv"):
            assert sectors(result, name)["read_requests"] == 0
            assert sectors(result, name)["write_requests"] == 0


def test_exited_rows_cost_no_traffic(kernels):
    """64 rows of which the first 3 are left read what 3 rows read."""
    shape = {"start": [128], "heads": 2, "head_dim": 96}
    few = make_case(9, rows=[3], **shape).run(kernels, 1)
    left = make_case(9, rows=[64], active=lambda b, i: i < 3, **shape).run(kernels, 1)
    for name in ("key", "value", "qkv"):
        assert sectors(left, name)["read_sectors"] == sectors(few, name)["read_sectors"]
        assert sectors(left, name)["write_sectors"] == sectors(few, name)["write_sectors"]


@pytest.mark.parametrize("dtype, head_dim", [(BF16, 96), (FP32, 32)], ids=str)
def test_iterations_share_the_cache(kernels, dtype, head_dim):
    """Four iterations overwrite the same cells; rows that exit keep theirs for the others."""
    rows, start = [6, 30], [50, 1]
    case = make_case(10, rows=rows, start=start, head_dim=head_dim, dtype=dtype)
    for iteration in range(4):
        result = case.run(kernels, splits=1 + iteration % 2)
        case.check(result)
        fresh = make_case(11 + iteration, rows=rows, start=start, head_dim=head_dim, dtype=dtype)
        active = torch.arange(sum(rows)) % 4 > iteration
        case = dataclasses.replace(
            case,
            qkv=fresh.qkv.where(active[:, None], torch.nan),
            active=active,
            key_cache=result.key_cache,
            value_cache=result.value_cache,
        )


# ---- layouts ----


@pytest.mark.parametrize("shift, padding", [(1, 0), (0, 3), (3, 1)])
def test_unaligned_slices_take_the_plain_kernel(kernels, shift, padding):
    case = make_case(12, rows=[2, 18], start=[40, 3], head_dim=64, shift=shift, qkv_padding=padding)
    assert not case.plan(kernels)["tensor_cores"]
    case.check(case.run(kernels))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_pages_apart_from_each_other(kernels, dtype):
    """Caches that are slices of a larger pool: page stride larger than a page."""
    case = make_case(13, rows=[4, 1], start=[30, 15], head_dim=64, dtype=dtype)

    def spread(cache: torch.Tensor) -> torch.Tensor:
        pool = torch.full((cache.size(0), 3, *cache.shape[1:]), math.nan, dtype=dtype)
        pool[:, 1] = cache
        return pool[:, 1]

    apart = dataclasses.replace(
        case, key_cache=spread(case.key_cache), value_cache=spread(case.value_cache)
    )
    keys, values = spread(case.key_cache), spread(case.value_cache)
    result = Result(torch.full_like(case.run(kernels).out, math.nan), keys, values)
    fields = apart.fields(result, splits=1)
    kernels.run(parameters(OP, **fields), {BF16: 1, FP32: 0}[dtype])
    assert fields["cache_page_stride"] == 3 * case.key_cache.stride(0)
    case.check(result)


# ---- races ----

SMALL = {"rows": [3, 18, 1], "start": [62, 14, 0], "active": two_in_five, "spare_rows": 2}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
@pytest.mark.parametrize(
    "dtype, head_dim, heads, kv_heads", [(BF16, 96, 2, 2), (FP16, 64, 4, 1), (FP32, 32, 2, 1)]
)
def test_bits_do_not_depend_on_the_schedule(kernels, options, dtype, head_dim, heads, kv_heads):
    """Threads and blocks in any order, copies early or late. Suspect: the cache write."""
    shape = {"head_dim": head_dim, "dtype": dtype, "heads": heads, "kv_heads": kv_heads}
    cases = [make_case(14, **SMALL, **shape)]
    if heads == kv_heads:
        cases.append(make_case(15, rows=[80], start=[100], active=two_in_five, **shape))
    for case in cases:
        for splits in (1, 3):
            reference = case.run(kernels, splits)
            case.check(reference)
            assert same_bits(case.run(kernels, splits, **options), reference)


# ---- traffic ----


@pytest.mark.parametrize("rows, start", [([1], [200]), ([16], [184]), ([3, 5], [150, 90])])
def test_huginn_decoding_moves_each_sector_once(kernels, rows, start):
    """K/V of the past from the cache and of the wavefront from qkv, once per split and KV head."""
    heads, head_dim = 55, 96
    case = make_case(16, rows=rows, start=start, heads=heads, head_dim=head_dim)
    result = case.run(kernels, splits=1)
    case.check(result)
    row_sectors = heads * head_dim * 2 // 32
    for name in ("key", "value"):
        counted = sectors(result, name)
        assert counted["unique_read_sectors"] == sum(start) * row_sectors
        assert counted["read_sectors"] <= 1.05 * sum(start) * row_sectors
        assert counted["write_sectors"] == sum(rows) * row_sectors
    assert sectors(result, "qkv")["read_sectors"] <= 1.05 * 3 * sum(rows) * row_sectors


@pytest.mark.parametrize("dtype, head_dim", [(BF16, 64), (FP32, 32)], ids=str)
@pytest.mark.parametrize("heads", [1, 5, 20])
def test_cells_are_written_once(kernels, dtype, head_dim, heads):
    """By one of the blocks that read the row: of all tiles of lines and all splits."""
    shape = {"heads": heads, "kv_heads": 1, "head_dim": head_dim, "dtype": dtype}
    case = make_case(20, rows=[70, 5], start=[60, 300], active=two_in_five, **shape)
    cells = int(case.computed_rows().sum())
    for splits in (1, 4):
        result = case.run(kernels, splits)
        for name in ("key", "value"):
            written = sectors(result, name)["write_bytes"]
            assert written == cells * head_dim * case.qkv.element_size()


@pytest.mark.parametrize("head_dim", NATIVE_HEAD_DIMS)
@pytest.mark.parametrize("rows, heads", [([1], 1), ([4, 9], 1), ([70], 1), ([5], 4)])
def test_no_bank_conflicts(kernels, head_dim, rows, heads):
    """Neither in copies, rotation, ldmatrix nor the exchange of outputs, whatever the mask."""
    shape = {"start": [100] * len(rows), "heads": heads, "kv_heads": 1, "head_dim": head_dim}
    for active in (None, two_in_five):
        for interleaved in (True, False):
            case = make_case(17, rows=rows, active=active, interleaved=interleaved, **shape)
            report = case.run(kernels).reports["attention"]
            assert report["ldmatrix"] > 0 or active
            assert report["bank_conflicts"] == 0


# ---- the plan ----


def test_batch_of_one_fills_the_device(kernels):
    for kv_heads in (1, 4, 8, 32, 55):
        splits = kernels.choose_splits(kv_heads, NARROW, 4096)
        assert kv_heads * splits >= min(132, 32 * kv_heads)
    assert kernels.choose_splits(2000, WIDE, 4096) == 1  # there is enough to do
    assert kernels.choose_splits(1, NARROW, 64) == 1  # there is nothing to split
    assert kernels.choose_splits(1, NARROW, 0) == 1


def test_plan_depends_on_capacity_alone(kernels):
    one = make_case(18, rows=[5, 7], start=[30, 3], head_dim=96)
    other = dataclasses.replace(one, cu_rows=torch.zeros(3, dtype=torch.int32), start=one.start + 1)
    assert one.plan(kernels) == other.plan(kernels)
    plan = one.plan(kernels, splits=4)
    assert plan["workspace_bytes"] == 4 * 12 * 2 * (96 + 1) * 4
    assert one.plan(kernels, splits=1)["workspace_bytes"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 33},
        {"head_dim": 258},
        {"num_heads": 3, "num_kv_heads": 2},
        {"splits": 33},
        {"num_rows": 2**30, "num_heads": 4},
    ],
    ids=str,
)
def test_unsupported_shapes_are_refused(kernels, change):
    case = make_case(19, rows=[1], start=[3])
    fields = case.fields(Result(case.qkv, case.key_cache, case.value_cache))
    assert kernels.is_supported(parameters(OP, **fields))
    assert not kernels.is_supported(parameters(OP, **{**fields, **change}))


# ---- more of it ----


def random_case(seed: int) -> Case:
    draw = random.Random(seed)
    kv_heads, sequences = draw.choice([1, 2, 3]), draw.randint(1, 4)
    longest = draw.choice([3, 20, 100])
    exits = draw.random()
    return make_case(
        seed,
        rows=[draw.randint(0, longest) for _ in range(sequences)],
        start=[draw.choice([0, 1, draw.randint(0, 300)]) for _ in range(sequences)],
        heads=kv_heads * draw.choice([1, 1, 2, 5]),
        kv_heads=kv_heads,
        head_dim=draw.choice([*NATIVE_HEAD_DIMS, 40]),
        dtype=draw.choice([BF16, FP16, FP32]),
        page_size=draw.choice([16, 32, 80]),
        active=draw.choice([None, lambda b, i: random.Random(f"{seed} {b} {i}").random() > exits]),
        spare_rows=draw.choice([0, 0, 30]),
        bias=draw.random() < 0.5,
        interleaved=draw.random() < 0.5,
        qkv_padding=draw.choice([0, 8, 5]),
    )


@pytest.mark.slow
def test_random_cases(kernels):
    for seed in random.sample(range(10**6), 60):
        case = random_case(seed)
        options = random.Random(seed).choice(list(RUNS.values()))
        case.check(case.run(kernels, splits=seed % 6, **options))


@pytest.mark.slow
def test_sanitizers_find_nothing():
    script = f"""
import recurrent_attention_emulated as kernels
from tests.simt.test_recurrent_attention import SMALL, RUNS, make_case, random_case
import torch
for dtype, head_dim in (torch.bfloat16, 96), (torch.float16, 64), (torch.float32, 32):
    case = make_case(14, **SMALL, head_dim=head_dim, dtype=dtype)
    for splits in (1, 3):
        for options in list(RUNS.values())[:4]:
            case.check(case.run(kernels, splits, **options))
for seed in {random.sample(range(10**6), 6)}:
    random_case(seed).check(random_case(seed).run(kernels))
print("clean")
"""
    done = run_sanitized(MODULE, script)
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-4000:]
