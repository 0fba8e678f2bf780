"""What the microbenchmarks share: inputs out of cache, a correctness gate, and what a row records.

A benchmark of an op is a list of providers of the same computation. Each is checked first, then
timed: out of cache, on inputs that rotate through more memory than the caches hold, so that bytes
per second mean what they say, or in cache, on the same inputs again and again. Nothing is timed
that has not passed the gate.
"""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import rdkernels
from rdkernels.backends import native
from rdkernels.ops import OPS, reasons

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

Inputs = tuple[Any, ...]
ROTATION_BYTES = 96 << 20  # more than the last-level cache that one process gets to keep
BANDWIDTH_BYTES, SLICE_BYTES = 256 << 20, 16 << 20
TARGET_SECONDS = 0.4  # timed per row of the table
MIN_ROUNDS, MAX_ROUNDS = 5, 100
PREALLOCATED = "native out="  # the native provider, writing into tensors that it is given


def providers(op: str, dtype: torch.dtype) -> list[str]:
    """Providers that serve ``op`` on the CPU."""
    return [name for name, reason in reasons(op, "cpu", dtype).items() if reason is None]


def providers_and_out(op: str, dtype: torch.dtype) -> list[str]:
    """The same, and the native kernels without the allocation of their results."""
    found = providers(op, dtype)
    return [*found, PREALLOCATED] if "native" in found else found


def with_outputs(op: str, arguments: Inputs) -> tuple[Callable[..., Any], Inputs]:
    """The ``out`` overload of ``op``, returning what it has written, and the inputs that it takes:
    ``arguments`` (all positional ones of the schema), then tensors to write into.

    These rotate with the inputs. What an op allocates itself is the memory of the call before,
    still cached; or, if it is large (32 MiB), pages that the system has to clear first.
    """
    out, count = OPS[op].out, len(arguments)
    names = [argument.name for argument in out._schema.arguments if argument.kwarg_only]
    results = OPS[op].default(*copies(arguments))
    results = results if isinstance(results, tuple) else (results,)

    def function(*args: Any) -> Any:
        out(*args[:count], **dict(zip(names, args[count:], strict=True)))
        return args[count:] if len(names) > 1 else args[count]

    return function, (*arguments, *(torch.full_like(result, torch.nan) for result in results))


def _slices() -> tuple[torch.Tensor, ...]:
    """Memory out of cache, in slices that a copy takes a millisecond for: few are interrupted."""
    return torch.ones(BANDWIDTH_BYTES // 4).split(SLICE_BYTES // 4)


def _median_seconds(function: Callable[..., Any], *slices: tuple[torch.Tensor, ...]) -> float:
    seconds = []
    for arguments in list(zip(*slices, strict=True)) * 3:
        begin = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


@cache
def copy_bandwidth(threads: int) -> float:
    """Bytes per second, read and written, with which ``threads`` threads copy memory."""
    assert torch.get_num_threads() == threads
    return 2 * SLICE_BYTES / _median_seconds(torch.Tensor.copy_, _slices(), _slices())


@cache
def read_bandwidth(threads: int) -> float:
    """Bytes per second that ``threads`` threads read from memory: a sum over it."""
    assert torch.get_num_threads() == threads
    return SLICE_BYTES / _median_seconds(torch.Tensor.sum, _slices())


@cache
def _settle_allocator() -> None:
    """Makes malloc keep freed tensors below 32 MiB, as it does in any process that has used some.

    Until then it hands large ones back to the system, and the next one costs page faults.
    """
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)


@cache
def environment() -> dict[str, Any]:
    """Machine, versions and commit: what a number is worth nothing without."""
    build = native.build_info()
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "capability": build.get("cpu_capability", "no native kernels"),
        "compiler": build.get("compiler", "none"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rdkernels": rdkernels.__version__,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def tensors_of(values: Iterable[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def assert_close(out: Any, same_precision: Any, reference: Any) -> None:
    """The gate: at most twice the error of plain PyTorch in the same precision, plus 1e-5."""
    results = [r if isinstance(r, tuple) else (r,) for r in (out, same_precision, reference)]
    for got, same, exact in zip(*results, strict=True):
        assert got.dtype == same.dtype and got.shape == same.shape
        got, same, exact = got.double(), same.double(), exact.double()
        assert torch.equal(got.isnan(), same.isnan())
        error = (got - exact).abs().nan_to_num().max().item() if got.numel() else 0.0
        limit = 2 * (same - exact).abs().nan_to_num().max().item() + 1e-5 if got.numel() else 0.0
        assert error <= limit, f"max error {error:.3e} > {limit:.3e}: not timed"


def wide(inputs: Inputs) -> Inputs:
    """The same inputs in fp32."""
    low = (torch.bfloat16, torch.float16)
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.dtype in low else x for x in inputs)


def copies(inputs: Inputs) -> Inputs:
    return tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs)


def run(
    benchmark: BenchmarkFixture,
    function: Callable[..., Any],
    inputs: Inputs,
    *,
    group: str,
    provider: str,
    traffic: int,
    shape: dict[str, Any],
    writes: bool = False,
    cached: bool = False,
) -> None:
    """Time ``function(*inputs)`` and record the row.

    ``traffic``: bytes that any implementation has to read and write; ``writes`` says that a good
    part of them are written: the row's share is of the bandwidth of copying, else of reading.
    ``cached``: on the same inputs every time. ``shape`` describes the case.
    """
    benchmark.group = group
    size = sum(x.numel() * x.element_size() for x in tensors_of(inputs))
    _settle_allocator()
    rotation = 1 if cached else max(2, ROTATION_BYTES // max(size, 1 << 20))
    ring = [copies(inputs) for _ in range(rotation)]
    turns = itertools.cycle(ring)
    with torch.no_grad():
        function(*next(turns))
        begin = time.perf_counter()
        function(*next(turns))
        seconds = time.perf_counter() - begin
        rounds = min(max(int(TARGET_SECONDS / max(seconds, 1e-6)), MIN_ROUNDS), MAX_ROUNDS)
        benchmark.pedantic(function, setup=lambda: (next(turns), {}), rounds=rounds)
    times = sorted(benchmark.stats.stats.data)
    cuts = statistics.quantiles(times, n=5)
    median = statistics.median(times)
    threads = torch.get_num_threads()
    read = read_bandwidth(threads)
    bandwidth = copy_bandwidth(threads) if writes else read
    benchmark.extra_info.update(
        provider=provider,
        **shape,
        median_us=median * 1e6,
        p20_us=cuts[0] * 1e6,
        p80_us=cuts[3] * 1e6,
        traffic_bytes=traffic,
        gb_per_s=traffic / median / 1e9,
        cached=cached,
        read_bandwidth_gb_per_s=read / 1e9,
        share_of_read_bandwidth=traffic / median / read,
        bandwidth="read+write" if writes else "read",
        bandwidth_gb_per_s=bandwidth / 1e9,
        share_of_bandwidth=traffic / median / bandwidth,
        load=os.getloadavg()[0],
        **environment(),
    )
