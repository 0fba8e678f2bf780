"""One row of the microbenchmarks: timed out of cache or in it, with what a number needs beside it.

Out of cache, inputs rotate through more memory than the caches hold, so that bytes per second mean
what they say; in cache, they are the same again and again.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from bench.timing import Spread, bandwidths, seconds_of

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROTATION_BYTES = 96 << 20  # more than the last-level cache that one process gets to keep
TARGET_SECONDS = 0.4  # timed per row of the table
MIN_ROUNDS, MAX_ROUNDS = 5, 100


def copies(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs)


@cache
def _settle_allocator() -> None:
    """Makes malloc keep freed tensors below 32 MiB, as it does in any process that has used some.

    Until then it hands large ones back to the system, and the next one costs page faults.
    """
    torch.empty((32 << 20) - (1 << 16), dtype=torch.uint8)


def run(
    benchmark: BenchmarkFixture,
    function: Callable[..., Any],
    inputs: tuple[Any, ...],
    *,
    group: str,
    provider: str,
    traffic: int,
    writes: bool = False,
    cached: bool = False,
    prepare: Callable[[tuple[Any, ...]], None] = lambda inputs: None,
) -> None:
    """Time ``function(*inputs)`` and record the row.

    ``traffic``: bytes that any implementation has to read and write; ``writes`` says that a good
    part of them are written: the row's share is of the bandwidth of copying, else of reading.
    ``cached``: on the same inputs every time. ``prepare`` is given the inputs before each call.
    """
    benchmark.group = group
    size = sum(x.nbytes for x in inputs if isinstance(x, torch.Tensor))
    _settle_allocator()
    rotation = 1 if cached else max(2, ROTATION_BYTES // max(size, 1 << 20))
    ring = itertools.cycle([copies(inputs) for _ in range(rotation)])

    def turn() -> tuple[tuple[Any, ...], dict[str, Any]]:
        prepare(arguments := next(ring))
        return arguments, {}

    with torch.no_grad():
        function(*next(ring))
        seconds = seconds_of(partial(function, *turn()[0]))
        rounds = min(max(int(TARGET_SECONDS / max(seconds, 1e-6)), MIN_ROUNDS), MAX_ROUNDS)
        benchmark.pedantic(function, setup=turn, rounds=rounds)
    spread = Spread.of(benchmark.stats.stats.data)
    reading, copying = bandwidths(torch.get_num_threads())
    bandwidth = copying if writes else reading
    benchmark.extra_info.update(
        provider=provider,
        **{f"{name}_us": 1e6 * value for name, value in spread._asdict().items()},
        traffic_bytes=traffic,
        gb_per_s=traffic / spread.median / 1e9,
        cached=cached,
        bandwidth="read+write" if writes else "read",
        bandwidth_gb_per_s=bandwidth / 1e9,
        share_of_bandwidth=traffic / spread.median / bandwidth,
        load=os.getloadavg()[0],
    )
