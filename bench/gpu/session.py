"""What every section of ``bench.gpu_check`` is given: a device, sizes, and a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from bench.op_cases import Setting
from bench.random_models import HUGINN, TINY
from bench.timing import Spread, seconds_of

# A dry run has no times: what a CPU needs for it says nothing about a GPU.
NO_TIMES: dict[str, float | None] = {"median_us": None, "p20_us": None, "p80_us": None}


@dataclass(frozen=True)
class Session(Setting):
    """One run of gpu_check: the real one on a CUDA device, a dry one on the CPU with tiny sizes.

    Attributes:
        dry_run: same control flow, tiny shapes, every time null.
        rows: wavefront lengths of a single sequence.
        batches: sequences of ``batch_rows`` rows each.
        repeats: timed calls.
    """

    dry_run: bool
    rows: tuple[int, ...]
    batches: tuple[int, ...]
    batch_rows: int
    repeats: int

    @staticmethod
    def on_gpu() -> Session:
        return Session(
            dry_run=False,
            device=torch.device("cuda"),
            dtype=torch.bfloat16,
            config=HUGINN,
            context=1024,
            rows=(1, 2, 4, 8, 16, 32, 64, 128),
            batches=(1, 2, 4, 8, 16, 32),
            batch_rows=8,
            repeats=50,
        )

    @staticmethod
    def dry() -> Session:
        return Session(
            dry_run=True,
            device=torch.device("cpu"),
            dtype=torch.bfloat16,
            config=TINY,
            context=70,
            rows=(1, 3),
            batches=(1, 2),
            batch_rows=2,
            repeats=1,
        )

    @property
    def wavefronts(self) -> list[tuple[int, int]]:
        """(sequences, rows of each): one sequence of every length, then every batch."""
        single = [(1, n) for n in self.rows]
        return single + [(b, self.batch_rows) for b in self.batches if b > 1]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def _spoiler(self) -> torch.Tensor:
        """Four times the L2 cache: writing it leaves nothing of earlier launches in there."""
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return torch.empty(4 * cache, dtype=torch.uint8, device=self.device)

    def time_cold(
        self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None
    ) -> dict[str, float | None]:
        """Device time of ``call`` with a cold L2 cache: median and 20th and 80th percentile, in us.

        Before every call ``prepare`` runs and the L2 cache is overwritten. That takes longer than
        launching a few kernels does, so the host runs ahead and launch latency is not part of the
        time.
        """
        for _ in range(3 if not self.dry_run else 1):
            prepare()
            call()
        if self.dry_run:
            return dict(NO_TIMES)
        pairs = []
        for _ in range(self.repeats):
            prepare()
            self._spoiler.zero_()
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            pairs.append((before, after))
        self.synchronize()
        return _percentiles([before.elapsed_time(after) * 1e3 for before, after in pairs])

    def time_wall(self, call: Callable[[], object]) -> dict[str, float | None]:
        """Wall time of ``call`` in us, host work and waiting included; caches stay as they are."""
        call()
        if self.dry_run:
            return dict(NO_TIMES)

        def finished() -> None:
            call()
            self.synchronize()

        self.synchronize()
        return _percentiles([seconds_of(finished) * 1e6 for _ in range(self.repeats)])

    def copy_bandwidth(self) -> float | None:
        """GB/s (read plus written) of a large device copy: what the percentages are of."""
        size = 1 << 12 if self.dry_run else 1 << 30
        source = torch.zeros(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        times = self.time_cold(lambda: target.copy_(source))
        return gb_per_second(2 * size, times)


def _percentiles(times: list[float]) -> dict[str, float | None]:
    return {f"{name}_us": round(value, 2) for name, value in Spread.of(times)._asdict().items()}


def gb_per_second(moved: int | None, times: dict[str, float | None]) -> float | None:
    """``moved`` bytes in the median time."""
    median = times["median_us"]
    return None if median is None or moved is None else round(moved / median / 1e3, 3)


def rates(
    moved: int | None, times: dict[str, float | None], copy_bandwidth: float | None
) -> dict[str, float | int | None]:
    """Bytes that must move, GB/s at the median, and percent of the measured copy bandwidth."""
    rate = gb_per_second(moved, times)
    known = rate is not None and copy_bandwidth is not None
    share = round(100 * rate / copy_bandwidth, 1) if known else None
    return {"bytes": moved, "gb_per_s": rate, "percent_of_copy": share}
