"""The emulator does what CUDA does: collectives, barriers, copies, tensor cores, atomics.

Expected values come from plain numpy loops written from the CUDA and PTX manuals.
"""

from __future__ import annotations

import numpy as np
import pytest

from .schedules import adversarial

SHFL, XOR, UP, DOWN, BALLOT, ANY, ALL, ADD, MIN, MAX, AND, OR, BIT_XOR = range(13)
FULL = 0xFFFFFFFF
RUNS = adversarial(seed=11)
every_schedule = pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """fp32 to bf16, nearest even, by arithmetic other than the header's."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    low, high = bits & 0xFFFF, bits >> 16
    up = (low > 0x8000) | ((low == 0x8000) & (high % 2 == 1))
    return (high + up).astype(np.uint16)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


# ---- warp collectives ----


def expected_shuffle(
    op: int, values: np.ndarray, argument: np.ndarray, width: int, mask: int
) -> list[float]:
    result = []
    for lane in range(32):
        base = lane // width * width
        if op == SHFL:
            source = base + argument[lane] % width
        elif op == XOR:
            source = lane ^ argument[0]
            source = lane if source >= base + width else source
        elif op == UP:
            source = lane - argument[0] if lane - argument[0] >= base else lane
        else:
            source = lane + argument[0] if lane + argument[0] < base + width else lane
        if not mask >> lane & 1:
            result.append(-1)  # not written
        elif not mask >> int(source) & 1:
            result.append(None)  # undefined
        else:
            result.append(values[source])
    return result


@pytest.mark.parametrize("mask", [FULL, 0x0000FFFF, 0xF0F0F0F0, 0x80000001])
@pytest.mark.parametrize("width", [32, 16, 8, 2])
@pytest.mark.parametrize("op", [SHFL, XOR, UP, DOWN])
@pytest.mark.parametrize("kind", ["int", "double"])
def test_shuffle(emulator, kind, op, width, mask):
    rng = np.random.default_rng(5)
    values = rng.integers(0, 1000, 32).astype(np.int32 if kind == "int" else np.float64)
    for shift in (0, 1, 3, 8, 16, 31):
        argument = np.full(32, shift, np.int32)
        if op == SHFL:
            argument = rng.integers(0, 32, 32).astype(np.int32)
        run = emulator.shuffle_int if kind == "int" else emulator.shuffle_double
        got = run(op, mask, values, argument, width, seed=3, schedule="random")
        want = expected_shuffle(op, values, argument, width, mask)
        for lane in range(32):
            if want[lane] is not None:
                assert got[lane] == want[lane], (lane, shift)
            else:  # all bits set
                assert got[lane] == -1 if kind == "int" else np.isnan(got[lane])


REDUCTIONS = {
    ANY: lambda chosen: (chosen != 0).any(),
    ALL: lambda chosen: (chosen != 0).all(),
    ADD: lambda chosen: chosen.astype(np.int64).sum(),
    MIN: np.min,
    MAX: np.max,
    AND: np.bitwise_and.reduce,
    OR: np.bitwise_or.reduce,
    BIT_XOR: np.bitwise_xor.reduce,
}


@pytest.mark.parametrize("mask", [FULL, 0x00FF00FF, 0x00000010])
@pytest.mark.parametrize("op", range(BALLOT, BIT_XOR + 1))
def test_votes_and_reductions(emulator, op, mask):
    rng = np.random.default_rng(op)
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    for low, high in ((-5, 5), (0, 2), (0, 1), (1, 2), (-(2**31), 2**31)):
        values = rng.integers(low, high, 32).astype(np.int32)
        if op == BALLOT:
            want = sum(1 << lane for lane in lanes if values[lane])
        else:
            want = REDUCTIONS[op](values[lanes])
        expected = np.full(32, 77, np.int32)
        expected[lanes] = np.int64(want).astype(np.int32)  # wraps
        np.testing.assert_array_equal(emulator.vote(op, mask, values), expected)


@every_schedule
def test_disjoint_masks_meet_separately(emulator, options):
    first = [lane ^ 1 if lane < 12 else (0xAAAAAAAA & ~0xFFF) for lane in range(32)]
    want = np.array(first, np.uint32).astype(np.int32) + np.int32(first[0])
    np.testing.assert_array_equal(emulator.split_warp(**options), want)


def test_partial_warp_accepts_the_full_mask(emulator):
    values = np.arange(20, dtype=np.int32)
    got = emulator.shuffle_int(XOR, FULL, values, np.full(20, 1, np.int32), 32)
    np.testing.assert_array_equal(got, values ^ 1)


# ---- barriers and shared memory ----


@every_schedule
@pytest.mark.parametrize("block", [32, 96, 100, 1024])
def test_barrier_orders_shared_memory(emulator, block, options):
    values = np.random.default_rng(1).standard_normal(3 * block).astype(np.float32)
    got, report = emulator.reverse(True, values, block, **options)
    np.testing.assert_array_equal(got, values.reshape(3, block)[:, ::-1].ravel())
    assert report["barriers"] == 3


@every_schedule
def test_missing_barrier_shows(emulator, options):
    values = np.random.default_rng(1).standard_normal(128).astype(np.float32)
    got, _ = emulator.reverse(False, values, 128, **options)
    assert np.isnan(got).any()


@every_schedule
def test_static_arrays_and_warp_barrier(emulator, options):
    values = np.arange(6 * 32, dtype=np.float32)
    got = emulator.reverse_warp(True, values, **options)
    want = values.reshape(6, 32)[:, ::-1][:, np.arange(32) ^ 1]
    np.testing.assert_array_equal(got, want.ravel())


@every_schedule
def test_missing_warp_barrier_shows(emulator, options):
    assert np.isnan(emulator.reverse_warp(False, np.arange(64, dtype=np.float32), **options)).any()


@every_schedule
def test_barrier_votes(emulator, options):
    predicate = np.random.default_rng(2).integers(0, 3, 77).astype(np.int32)
    got = emulator.barrier_votes(predicate, **options)
    for round_, row in ((0, 0), (1, 3)):
        holds = predicate > round_
        assert (got[row] == holds.sum()).all()
        assert (got[row + 1] == int(holds.any())).all()
        assert (got[row + 2] == int(holds.all())).all()


@pytest.mark.parametrize("order", ["forward", "interleaved"])
def test_shared_memory_starts_as_nan_in_every_block(emulator, order):
    assert np.isnan(emulator.poison(order=order)).all()


# ---- cp.async ----


@pytest.mark.parametrize("left", [0, 1, 2])
def test_async_copies_arrive_as_late_as_allowed(emulator, left):
    rows = np.random.default_rng(3).standard_normal((3, 64, 4)).astype(np.float32)
    got = emulator.async_copy(rows, np.ones(3, np.int32), left, async_copy="late")
    np.testing.assert_array_equal(got[0, : 3 - left], rows[: 3 - left, ::-1])
    assert np.isnan(got[0, 3 - left :]).all()
    np.testing.assert_array_equal(got[1], rows[:, ::-1])


def test_async_copies_arrive_as_early_as_allowed(emulator):
    rows = np.random.default_rng(3).standard_normal((3, 64, 4)).astype(np.float32)
    got = emulator.async_copy(rows, np.ones(3, np.int32), 2, async_copy="early")
    for look in got:
        np.testing.assert_array_equal(look, rows[:, ::-1])


@pytest.mark.parametrize("async_copy", ["early", "late"])
def test_invalid_async_copies_write_zeros(emulator, async_copy):
    rows = np.full((3, 32, 4), 5.0, np.float32)
    got = emulator.async_copy(rows, np.array([1, 0, 1], np.int32), 0, async_copy=async_copy)
    np.testing.assert_array_equal(got[1, :, 0, 0], [5, 0, 5])
    assert (got[1, 1] == 0).all()


@pytest.mark.parametrize("async_copy", ["early", "late"])
def test_narrow_async_copies(emulator, async_copy):
    values = np.random.default_rng(4).integers(0, 256, 384).astype(np.uint8)
    np.testing.assert_array_equal(emulator.narrow_async_copy(values, async_copy=async_copy), values)


# ---- tensor cores ----


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
@every_schedule
def test_ldmatrix(emulator, count, transpose, options):
    rows = np.random.default_rng(count).integers(0, 65536, (32, 8)).astype(np.uint16)
    got, report = emulator.ldmatrix(count, transpose, rows, 16, **options)
    for matrix in range(count):
        tile = rows[8 * matrix : 8 * matrix + 8]
        tile = tile.T if transpose else tile
        for lane in range(32):
            low, high = tile[lane // 4, lane % 4 * 2], tile[lane // 4, lane % 4 * 2 + 1]
            assert got[lane, matrix] == int(low) | int(high) << 16
    assert report["ldmatrix"] == 1


@pytest.mark.parametrize("kind", ["bf16", "half"])
@every_schedule
def test_mma(emulator, kind, options):
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal((16, 16)), rng.standard_normal((16, 8))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    if kind == "bf16":
        a_bits, b_bits = bf16_bits(a), bf16_bits(b)
        a, b = bf16_values(a_bits), bf16_values(b_bits)
    else:
        a_bits, b_bits = a.astype(np.float16).view(np.uint16), b.astype(np.float16).view(np.uint16)
        a, b = a_bits.view(np.float16), b_bits.view(np.float16)
    run = emulator.mma_bf16 if kind == "bf16" else emulator.mma_half
    got, report = run(a_bits, b_bits, c, **options)
    want = c.astype(np.float64)
    for m in range(16):
        for n in range(8):
            for k in range(16):
                want[m, n] += float(a[m, k]) * float(b[k, n])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert report["mma"] == 1


def test_mma_layout_exactly(emulator):
    """One-hot operands: every element of a meets the right element of b."""
    for m, k, n in [(0, 0, 0), (15, 15, 7), (3, 9, 6), (12, 4, 1), (8, 8, 4)]:
        a, b = np.zeros((16, 16)), np.zeros((16, 8))
        a[m, k], b[k, n] = 2, 3
        want = np.zeros((16, 8), np.float32)
        want[m, n] = 6
        got, _ = emulator.mma_bf16(bf16_bits(a), bf16_bits(b), np.zeros((16, 8), np.float32))
        np.testing.assert_array_equal(got, want)


# ---- numbers ----


def test_to_float_of_every_pattern(emulator):
    patterns = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(
        emulator.half_to_float(), patterns.view(np.float16).astype(np.float32)
    )
    np.testing.assert_array_equal(emulator.bf16_to_float(), bf16_values(patterns))


def rounding_cases() -> np.ndarray:
    """Random bits; every half and bf16 value, the midpoints between them, and what is next."""
    rng = np.random.default_rng(7)
    patterns = np.arange(65536, dtype=np.uint16)
    halves = patterns.view(np.float16).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    middle = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
    bf16_middle = (patterns.astype(np.uint32) << 16 | 0x8000).view(np.float32)
    exact = np.concatenate([halves, middle, bf16_middle, bf16_values(patterns)])
    exact = exact[np.isfinite(exact)]
    near = [np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))]
    random = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    edges = np.array([65504, 65519.996, 65520, 65536, 3.4e38, np.inf, -np.inf, 0, -0.0], np.float32)
    return np.concatenate([exact, *near, random, edges])


def test_from_float_rounds_to_nearest_even(emulator):
    values = rounding_cases()
    finite = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        want = finite.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(emulator.half_from_float(finite), want)
    np.testing.assert_array_equal(emulator.bf16_from_float(finite), bf16_bits(finite))


def test_from_float_keeps_nan(emulator):
    bits = np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF], np.uint32)
    values = bits.view(np.float32)
    assert np.isnan(emulator.half_from_float(values).view(np.float16)).all()
    assert np.isnan(bf16_values(emulator.bf16_from_float(values))).all()


@pytest.mark.parametrize("kind", ["bf16", "half"])
def test_pack_and_unpack(emulator, kind):
    values = np.random.default_rng(8).standard_normal(64).astype(np.float32)
    packed, out = (emulator.pack_bf16 if kind == "bf16" else emulator.pack_half)(values)
    bits = bf16_bits(values) if kind == "bf16" else values.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(
        packed, bits[0::2].astype(np.uint32) | bits[1::2].astype(np.uint32) << 16
    )
    back = bf16_values(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out, back)


def test_fast_mathematics(emulator):
    x = np.array([0.01, 0.5, 1.0, 1.5, 2.0, 3.75, 10.0, 80.0], np.float32)
    exact = x.astype(np.float64)
    want = [2**exact, np.log2(exact), 1 / exact, exact**-0.5, exact**-0.5]
    want += [np.exp(exact), np.log(exact), 1 / exact, exact]
    np.testing.assert_allclose(emulator.fast_math(x), want, rtol=1e-6, atol=1e-7)


def test_fast_mathematics_at_the_edges(emulator):
    tiny, inf = np.float32(1e-40), np.float32(np.inf)
    got = emulator.fast_math(np.array([0.0, -0.0, tiny, -inf, inf, np.nan], np.float32))
    exp2, log2, rcp, rsqrt = got[0], got[1], got[2], got[3]
    np.testing.assert_array_equal(exp2, [1, 1, 1, 0, inf, np.nan])
    np.testing.assert_array_equal(log2, [-inf, -inf, -inf, np.nan, inf, np.nan])
    np.testing.assert_array_equal(rcp, [inf, -inf, inf, -0.0, 0, np.nan])
    np.testing.assert_array_equal(rsqrt, [inf, -inf, inf, np.nan, 0, np.nan])


def test_bit_functions(emulator):
    x = np.array([0, 1, 2, 3, 0x80000000, 0xFFFFFFFF, 0x12345678, 0x00F00000], np.uint32)
    text = [f"{int(value):032b}" for value in x]
    got = emulator.bits(x)
    np.testing.assert_array_equal(got[0], (x.astype(np.uint64) * 0x9E3779B9) >> 32)
    np.testing.assert_array_equal(got[1], [t.count("1") for t in text])
    np.testing.assert_array_equal(got[2], [32 if "1" not in t else t.index("1") for t in text])
    np.testing.assert_array_equal(got[3], [32 - t.rindex("1") if "1" in t else 0 for t in text])
    np.testing.assert_array_equal(got[4], [int(t[::-1], 2) for t in text])


# ---- blocks, atomics, host threads ----


@pytest.mark.parametrize("workers", [1, 2])
@every_schedule
def test_atomics(emulator, options, workers):
    got = emulator.atomics(8, 64, workers=workers, **options)
    n = 8 * 64
    assert got["add_int"] == n * (n - 1) // 2
    assert (got["max_int"], got["min_int"]) == (n - 1, 1 - n)
    assert got["add_unsigned"] == 2 * n
    assert got["bits"] == FULL
    assert got["add_long"] == n << 40
    assert got["add_float"] == n / 2
    assert got["ticket"] == 0 and got["last_blocks"] == 1
    assert got["swapped"] >= 1
    assert got["atomics"] == 8 * n + 8 + 1


def test_race_between_blocks_shows_only_when_interleaved(emulator):
    for order in ("forward", "reverse", "shuffled"):
        assert emulator.lost_update(16, order=order) == 16
    assert emulator.lost_update(16, order="interleaved", resident_blocks=4) < 16
    assert emulator.lost_update(16, order="interleaved", resident_blocks=1) == 16
    lost = [
        emulator.lost_update(64, order="interleaved", schedule="random", seed=s) for s in range(5)
    ]
    assert max(lost) < 64


def test_indices(emulator):
    seen = emulator.indices([2, 3, 2], [4, 2, 3])
    want = [
        [bx, by, bz, tx, ty, tz]
        for bz in range(2)
        for by in range(3)
        for bx in range(2)
        for tz in range(3)
        for ty in range(2)
        for tx in range(4)
    ]
    assert [list(row) for row in seen] == want


def test_random_schedule_follows_its_seed(emulator):
    values = np.arange(256, dtype=np.float32)
    first = [emulator.reverse(False, values, 256, schedule="random", seed=s)[0] for s in (1, 1, 2)]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2], equal_nan=True)
