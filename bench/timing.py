"""Times: how calls are repeated, what is told of them, and what memory can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

BANDWIDTH_BYTES, SLICE_BYTES = 256 << 20, 16 << 20


class Spread(NamedTuple):
    """The middle of some times, and the fifths at both ends."""

    median: float
    p20: float
    p80: float

    @staticmethod
    def of(times: Sequence[float]) -> Spread:
        if len(times) < 2:
            return Spread(*times * 3)
        fifths = statistics.quantiles(times, n=5, method="inclusive")
        return Spread(statistics.median(times), fifths[0], fifths[3])


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def repeated(
    call: Callable[[], object], seconds: float = 1.0, least: int = 5, most: int = 100
) -> list[float]:
    """Times of as many calls as take ``seconds``, after one that does not count."""
    call()
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        times.append(seconds_of(call))
    return times


def in_turns(
    calls: Sequence[Callable[[], object]], rounds: int, repeats: int = 1
) -> list[list[float]]:
    """Times of each call: one after the other, so that a neighbour disturbs all of them.

    At each turn a call is made once without counting, then ``repeats`` times.
    """
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            call()  # what it works on comes back into the caches
            own += [seconds_of(call) for _ in range(repeats)]
    return times


def _bandwidth(function: Callable[..., Any], operands: int) -> float:
    """Bytes per second of ``function`` on memory out of cache.

    In slices that take a millisecond: few are interrupted.
    """
    slices = [torch.ones(BANDWIDTH_BYTES // 4).split(SLICE_BYTES // 4) for _ in range(operands)]
    together = list(zip(*slices, strict=True)) * 3
    times = [seconds_of(lambda part=part: function(*part)) for part in together]
    return operands * SLICE_BYTES / statistics.median(times)


def read_bandwidth() -> float:
    """Bytes per second that torch's threads read from memory now: a sum over it."""
    return _bandwidth(torch.Tensor.sum, 1)


@cache
def bandwidths(threads: int) -> tuple[float, float]:
    """Bytes per second of reading and of copying, read and written, measured once."""
    assert torch.get_num_threads() == threads
    return read_bandwidth(), _bandwidth(torch.Tensor.copy_, 2)
