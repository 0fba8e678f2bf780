"""The emulator's complaints (broken CUDA rules) and its counters (sectors, bank conflicts)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from .build import PROJECT_ROOT, compiler, run_sanitized
from .conftest import SELFTEST
from .schedules import adversarial

RUNS = adversarial(seed=23)
every_schedule = pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())

FAULTS = {
    "deadlock": r"deadlock .*thread 0: at __syncwarp .*threads 1-63: at __syncthreads",
    "mask_mismatch": r"divergent warp collective: .*__syncwarp.* with mask .*while lanes wait",
    "operation_mismatch": r"divergent .*: .*(__shfl_sync.*__ballot|__ballot_sync.*__shfl)",
    "caller_outside_mask": r"caller not in its mask: thread \d+ at __syncwarp .* 0x00000001",
    "collective_after_exit": r"thread \d+ exits while other lanes wait|names exited lanes",
    "divergent_barrier": r"divergent barrier: thread \d+ at __syncthreads .*others wait at",
    "exit_at_barrier": r"thread 40 exits while others wait at a barrier|barrier after exit",
    "unwaited_copy": r"thread 9 exits with 1 cp.async not waited for",
    "uncommitted_copy": r"thread 9 exits with 1 cp.async not waited for",
    "shared_overrun": r"out of bounds shared store of 4 bytes .*thread 63 \(selftest_errors.cuh:",
    "static_overrun": r"out of bounds shared load of 4 bytes .*thread 63",
    "misaligned_shared": r"misaligned shared load of 16 bytes",
    "misaligned_global": r"misaligned global load of 16 bytes",
    "misaligned_copy": r"misaligned cp.async to shared memory of 16 bytes",
    "misaligned_matrix": r"misaligned ldmatrix row",
    "matrix_overrun": r"out of bounds ldmatrix row",
    "shared_as_global": r"shared memory address in global load",
    "too_much_static": r"more than 48 KiB of static shared memory",
}


@every_schedule
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_reported(emulator, fault, options):
    with pytest.raises(RuntimeError) as error:
        emulator.fault(fault, **options)
    message = str(error.value)
    assert re.search(FAULTS[fault], message, re.DOTALL), message
    assert re.search(rf"in kernel '{fault}', block \([01], 0, 0\)", message), message


def test_faults_on_several_host_threads(emulator):
    for _ in range(20):
        with pytest.raises(RuntimeError, match="deadlock"):
            emulator.fault("deadlock", workers=2)


def test_exceptions_of_the_kernel_pass_through(emulator):
    with pytest.raises(IndexError, match="thrown by the kernel"):
        emulator.fault("foreign_exception")
    with pytest.raises(RuntimeError, match="launch from inside a kernel"):
        emulator.fault("nested_launch")
    with pytest.raises(RuntimeError, match="outside of simt::launch"):
        emulator.outside_kernel()


def test_launches_after_a_failure_are_clean(emulator):
    values = np.arange(192, dtype=np.float32)
    for name in FAULTS:
        with pytest.raises(RuntimeError):
            emulator.fault(name, order="interleaved")
        got, report = emulator.reverse(True, values, 64, order="interleaved")
        np.testing.assert_array_equal(got, values.reshape(3, 64)[:, ::-1].ravel())
        assert report["barriers"] == 3


@pytest.mark.parametrize(
    ("grid", "block", "shared", "message"),
    [
        ([1, 1, 1], [1025, 1, 1], 0, "1 to 1024 threads, got 1025"),
        ([1, 1, 1], [0, 1, 1], 0, "1 to 1024 threads, got 0"),
        ([1, 1, 1], [1, 1, 65], 0, "blockDim.z is at most 64"),
        ([0, 1, 1], [1, 1, 1], 0, "the grid is empty"),
        ([1, 65536, 1], [1, 1, 1], 0, "the grid is at most"),
        ([1, 1, 65536], [1, 1, 1], 0, "the grid is at most"),
        ([2**31, 1, 1], [1, 1, 1], 0, "the grid is at most"),
        ([1, 1, 1], [1, 1, 1], 227 * 1024 + 1, "exceeds the limit of 232448"),
    ],
)
def test_launch_limits(emulator, grid, block, shared, message):
    with pytest.raises(RuntimeError, match=message):
        emulator.launch_shape(grid, block, shared)
    emulator.launch_shape([3, 2, 1], [32, 32, 1], 227 * 1024)


def test_shared_memory_limit_of_smaller_gpus(emulator):
    values = np.zeros(1024, np.float32)
    emulator.reverse(True, values, 1024, max_shared_bytes=4096)
    with pytest.raises(RuntimeError, match="exceeds the limit of 4095"):
        emulator.reverse(True, values, 1024, max_shared_bytes=4095)


def test_unknown_options_are_refused(emulator):
    with pytest.raises(ValueError, match="unknown emulator option 'scedule'"):
        emulator.lost_update(1, scedule="random")
    with pytest.raises(ValueError, match="schedule: unknown value 'fast'"):
        emulator.lost_update(1, schedule="fast")


# ---- bank conflicts ----


@pytest.mark.parametrize(
    ("size", "stride", "ideal", "conflicts"),
    [
        (4, 4, 1, 0),  # consecutive words
        (4, 0, 1, 0),  # broadcast
        (4, 8, 1, 1),  # 2-way
        (4, 16, 1, 3),
        (4, 128, 1, 31),  # 32-way
        (4, 132, 1, 0),  # padded
        (2, 2, 1, 0),
        (2, 128, 1, 31),
        (1, 1, 1, 0),
        (8, 8, 2, 0),
        (8, 128, 2, 30),
        (16, 16, 4, 0),
        (16, 32, 4, 4),
        (16, 128, 4, 28),
        (16, 144, 4, 0),
    ],
)
def test_bank_conflicts_of_loads_and_stores(emulator, size, stride, ideal, conflicts):
    report = emulator.banks(size, stride)
    for kind in ("shared_load", "shared_store"):
        assert report[kind] == {
            "requests": 1,
            "wavefronts": ideal + conflicts,
            "conflicts": conflicts,
        }, kind
    assert report["bank_conflicts"] == 2 * conflicts


@pytest.mark.parametrize(("stride", "conflicts"), [(16, 0), (32, 1), (64, 3), (128, 7), (144, 0)])
def test_bank_conflicts_of_matrices_and_async_copies(emulator, stride, conflicts):
    rows = np.zeros((32, 8), np.uint16)
    for count in (1, 2, 4):
        _, report = emulator.ldmatrix(count, False, rows, stride)
        want = {
            "requests": 1,
            "wavefronts": count * (1 + conflicts),
            "conflicts": count * conflicts,
        }
        assert report["ldmatrix_load"] == want
    report = emulator.async_banks(stride)
    want = {"requests": 1, "wavefronts": 4 * (1 + conflicts), "conflicts": 4 * conflicts}
    assert report["async_store"] == want


# ---- global memory ----


def aligned(bytes_: int) -> np.ndarray:
    """A zeroed buffer that starts at a multiple of 256."""
    raw = np.zeros(bytes_ + 256, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + bytes_]


@pytest.mark.parametrize("schedule", ["round_robin", "random", "warp_greedy_reverse"])
@pytest.mark.parametrize("order", ["forward", "interleaved"])
@pytest.mark.parametrize(
    ("size", "offset", "stride", "sectors", "unique"),
    [
        (4, 0, 1, 4, 4),  # 128 bytes, coalesced
        (4, 1, 1, 5, 5),  # misaligned: one more
        (4, 0, 2, 8, 8),
        (4, 0, 8, 32, 32),  # a sector per lane
        (4, 0, 0, 1, 1),  # all lanes the same
        (2, 0, 1, 2, 2),
        (16, 0, 1, 16, 16),
        (16, 1, 1, 17, 17),
        (16, 0, 2, 32, 32),
    ],
)
def test_sectors(emulator, size, offset, stride, sectors, unique, schedule, order):
    source, target = aligned(1 << 16), aligned(1 << 16)
    addresses = (source.ctypes.data, target.ctypes.data)
    report = emulator.sectors(
        size, *addresses, offset, stride, 3, 1, 32, schedule=schedule, order=order
    )["global"]
    for kind in ("read", "write"):
        assert report[f"{kind}_requests"] == 3
        assert report[f"{kind}_bytes"] == 3 * 32 * size
        assert report[f"{kind}_sectors"] == 3 * sectors
        assert report[f"unique_{kind}_sectors"] == unique


@pytest.mark.parametrize("workers", [1, 2])
def test_sectors_of_a_grid_and_watched_ranges(emulator, workers):
    source, target = aligned(1 << 16), aligned(1 << 16)
    half = {"first_half": (source.ctypes.data, 1024), "out": (target.ctypes.data, 1 << 16)}
    report = emulator.sectors(
        4, source.ctypes.data, target.ctypes.data, 0, 1, 2, 4, 128, workers=workers, watch=half
    )
    assert report["global"]["read_sectors"] == 2 * 64
    assert report["global"]["unique_read_sectors"] == 64
    first, out = report["watched"]["first_half"], report["watched"]["out"]
    assert (first["read_sectors"], first["unique_read_sectors"], first["write_sectors"]) == (
        64,
        32,
        0,
    )
    assert (out["read_sectors"], out["write_sectors"], out["unique_write_sectors"]) == (0, 128, 64)


def test_access_outside_watched_ranges(emulator):
    source, target = aligned(512), aligned(512)
    watch = {"in": (source.ctypes.data, 512), "out": (target.ctypes.data, 512)}
    run = (source.ctypes.data, target.ctypes.data)
    emulator.sectors(4, *run, 0, 1, 1, 4, 32, watch=watch, only_watched=True)
    with pytest.raises(RuntimeError, match=r"out of bounds .*global load of 4 bytes .* thread 31"):
        emulator.sectors(4, *run, 1, 1, 1, 4, 32, watch=watch, only_watched=True)


def test_lanes_regroup_after_divergence(emulator):
    values = np.arange(64, dtype=np.float32)
    out, report = emulator.ragged(values)
    np.testing.assert_array_equal(out, np.cumsum(values[:32]) + values[:32])
    # 32 iterations, in each of which the active lanes read one element; then one coalesced read.
    assert report["global"]["read_requests"] == 33
    aligned_start = values.ctypes.data % 32 == 0
    assert report["global"]["read_sectors"] == 32 + (4 if aligned_start else 5)


def test_counting_can_be_switched_off(emulator):
    source, target = aligned(1024), aligned(1024)
    run = (source.ctypes.data, target.ctypes.data)
    report = emulator.sectors(4, *run, 0, 1, 1, 1, 32, count_memory=False)
    assert report["global"]["read_requests"] == 0
    assert report["fiber_switches"] > 0


# ---- sanitizers ----

SANITIZED_RUN = """
import numpy as np, emulator_selftest as m
from tests.simt.schedules import adversarial
for name, options in adversarial(1).items():
    values = np.arange(192, dtype=np.float32)
    got, _ = m.reverse(True, values, 64, **options)
    assert (got == values.reshape(3, 64)[:, ::-1].ravel()).all(), name
    m.atomics(4, 64, workers=2, **options)
    m.ldmatrix(4, True, np.zeros((32, 8), np.uint16), 16, **options)
    a, b = np.zeros((16, 16), np.uint16), np.zeros((16, 8), np.uint16)
    m.mma_half(a, b, np.ones((16, 8), np.float32), **options)
    m.async_copy(np.zeros((3, 32, 4), np.float32), np.ones(3, np.int32), 1, **options)
    for fault in FAULTS:
        try:
            m.fault(fault, **options)
        except RuntimeError:
            continue
        raise AssertionError(fault)
m.half_from_float(np.array([1e-8, 1e9, np.nan], np.float32))
print("clean")
"""


@pytest.fixture(scope="module")
def sanitizers() -> None:
    if compiler() is None:
        pytest.skip("no C++ compiler")
    probe = subprocess.run(
        [compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    if not Path(probe.stdout.strip()).is_absolute():
        pytest.skip("the compiler has no AddressSanitizer library")


def test_emulator_is_clean_under_sanitizers(sanitizers):
    script = SANITIZED_RUN.replace("FAULTS", repr(sorted(FAULTS)))
    result = run_sanitized(SELFTEST, script)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "clean" in result.stdout


@pytest.mark.parametrize("static", [False, True])
def test_asan_sees_a_raw_shared_overrun(sanitizers, static):
    result = run_sanitized(SELFTEST, f"import emulator_selftest as m; m.raw_overrun({static})")
    assert result.returncode != 0
    assert "AddressSanitizer" in result.stderr
    assert "use-after-poison" in result.stderr


# ---- nvcc ----

KERNELS_FOR_NVCC = """
#include "selftest_kernels.cuh"
namespace selftest {
template __global__ void shuffle_kernel(Warp, uint32_t, const float*, float*, const int*, int);
template __global__ void vote_kernel(Warp, uint32_t, const int*, int*);
template __global__ void reverse_kernel<true>(const float*, float*);
template __global__ void reverse_warp_kernel<true>(const float*, float*);
template __global__ void async_copy_kernel<3, 1>(const float4*, const int*, float4*);
template __global__ void ldmatrix_kernel<1, true>(const uint4*, uint32_t*, int);
template __global__ void ldmatrix_kernel<2, false>(const uint4*, uint32_t*, int);
template __global__ void ldmatrix_kernel<4, true>(const uint4*, uint32_t*, int);
template __global__ void ldmatrix_kernel<4, false>(const uint4*, uint32_t*, int);
template __global__ void mma_kernel(const bf16*, const bf16*, const float*, float*);
template __global__ void mma_kernel(const half*, const half*, const float*, float*);
template __global__ void pack_kernel<bf16>(const float*, uint32_t*, float*);
template __global__ void pack_kernel<half>(const float*, uint32_t*, float*);
template __global__ void bank_kernel(int, float4*);
template __global__ void sector_kernel(const bf16*, bf16*, int, int, int);
}  // namespace selftest
float on_the_host(rdk::bf16 x) {
  return rdk::to_float(x) + rdk::to_float(rdk::from_float<rdk::half>(1.0f));
}
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_headers_compile_with_nvcc(arch, tmp_path):
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: neither on PATH nor in /usr/local/cuda")
    source = tmp_path / "probe.cu"
    source.write_text(KERNELS_FOR_NVCC)
    include = [f"-I{PROJECT_ROOT / 'csrc' / 'include'}", f"-I{PROJECT_ROOT / 'tests' / 'simt'}"]
    command = [nvcc, "-std=c++17", f"-arch={arch}", *include, "-Werror", "all-warnings"]
    command += ["-Xcompiler", "-Wall", "-c", str(source), "-o", str(tmp_path / "probe.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_numeric_header_needs_nothing_else(tmp_path):
    if compiler() is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "alone.cpp"
    source.write_text(
        '#include "rdkernels/kernels/numeric.h"\n'
        "static_assert(sizeof(rdk::bf16) == 2);\n"
        "float f(rdk::half h) { return rdk::to_float(h) + rdk::from_float<float>(1.0f); }\n"
    )
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{PROJECT_ROOT / 'csrc' / 'include'}"]
    command = [compiler(), *flags, "-c", str(source), "-o", str(tmp_path / "alone.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
