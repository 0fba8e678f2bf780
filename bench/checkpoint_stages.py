"""A random checkpoint created, saved, loaded and decoded: seconds and peak memory of each stage.

    python -m bench.checkpoint_stages                       # Huginn-0125's sizes: 7.1 GB
    python -m bench.checkpoint_stages --weights int8        # bf16 on disk, int8 once loaded
    python -m bench.checkpoint_stages --model huginn-small  # 2.5 GB
    python -m bench.checkpoint_stages --json out.json       # table, and the report in a file
    python -m bench.checkpoint_stages --dry-run --json      # a tiny model, to stdout

Peak memory is the resident set's high-water mark (``VmHWM``), set back to the present before each
stage. Pages of memory-mapped weights count as resident once they have been read, though the system
may drop them at any time; the anonymous part (``RssAnon``), which it may not, is beside it, sampled
every few milliseconds.

Each stage is held against what it may take: the weights once, the K/V cache where it decodes, 10 %,
and a constant (what was resident before the first stage, and 256 MiB). bf16 weights stay mapped, so
the limit is on the resident set. int8 weights are made from mapped bf16 ones, tensor by tensor; the
limit is on the anonymous part there, since the mapped file is the system's to drop.

Exit status: 0, 1 if a stage was over its limit, 2 if there is too little memory or disk.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from bench import support
from bench.gpu.session import TINY
from bench.random_models import RANDOM_MODELS, create_random, weights_bytes
from bench.speed_table import console
from bench.steady_decode import announced, load_average
from rdkernels import DiffusionForcing, FixedDepth, generate, load_model, save_model
from rdkernels.errors import RdkernelsError
from rdkernels.models.config import ModelConfig

SCHEMA = 1
DECODED_TOKENS = 8
_SPARE_BYTES = 1 << 30  # of memory and of disk, beyond what the weights need
_SLACK, _CONSTANT_BYTES = 0.10, 256 << 20
_SAMPLE_SECONDS = 0.005
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMORY = Path("/proc/meminfo")
T = TypeVar("T")


class NoRoom(RdkernelsError):
    """Too little memory or disk for the weights."""


@dataclass(frozen=True)
class Stage:
    """Sizes in bytes; None where the system does not tell (anything but Linux).

    ``weights_bytes`` is the size of the weights that the stage ends with, ``kv_bytes`` that of the
    K/V cache it uses. ``anonymous_bytes`` is resident at the end of the stage and not backed by a
    file, ``peak_anonymous_bytes`` the most that was seen of it. ``limit_bytes`` is for the peak
    that ``limited`` names; ``within`` says whether it kept to that.
    """

    stage: str
    seconds: float
    peak_rss_bytes: int | None
    peak_anonymous_bytes: int | None
    anonymous_bytes: int | None
    weights_bytes: int
    kv_bytes: int
    limited: str
    limit_bytes: int
    within: bool | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def field_bytes(file: Path, field: str) -> int | None:
    """A ``Name:  123 kB`` line of a file in /proc, in bytes."""
    if not file.exists():
        return None
    for line in file.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def expect_memory(nbytes: int) -> None:
    """Refuse to start what would be killed half way. Raises :class:`NoRoom`."""
    available = field_bytes(_MEMORY, "MemAvailable")
    if available is not None and available < nbytes + _SPARE_BYTES:
        raise NoRoom(
            f"{nbytes / 1e9:.1f} GB of weights need {(nbytes + _SPARE_BYTES) / 1e9:.1f} GB of "
            f"memory, {available / 1e9:.1f} GB are available (try --model huginn-small)"
        )


def _expect_disk(folder: Path, nbytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < nbytes + _SPARE_BYTES:
        raise NoRoom(
            f"{folder}: {nbytes / 1e9:.1f} GB of weights do not fit in {free / 1e9:.1f} GB"
        )


class _AnonymousPeak(threading.Thread):
    """Samples the anonymous part of the resident set until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = field_bytes(_STATUS, "RssAnon")
        self._done = threading.Event()

    def run(self) -> None:
        while self.peak is not None and not self._done.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, field_bytes(_STATUS, "RssAnon") or 0)

    def stop(self) -> int | None:
        self._done.set()
        self.join()
        return None if self.peak is None else max(self.peak, field_bytes(_STATUS, "RssAnon") or 0)


class Stages:
    """Stages of one checkpoint, measured as they run.

    Attributes:
        records: what has been measured.
        constant: bytes that every stage may have beside its weights and cache.
    """

    def __init__(self) -> None:
        self.records: list[Stage] = []
        self.constant = (field_bytes(_STATUS, "VmRSS") or 0) + _CONSTANT_BYTES

    def run(
        self,
        name: str,
        work: Callable[[], T],
        weights_bytes: int,
        *,
        kv_bytes: int = 0,
        limited: str = "resident",
    ) -> T:
        """``limited``: the peak that has a limit, "resident" or "anonymous"."""
        gc.collect()
        resettable, watch = _reset_peak(), _AnonymousPeak()
        watch.start()
        began = time.perf_counter()
        with announced(name):
            result = work()
        seconds = time.perf_counter() - began
        anonymous_peak = watch.stop()
        peak = field_bytes(_STATUS, "VmHWM") if resettable else None
        watched = peak if limited == "resident" else anonymous_peak
        limit = int((1 + _SLACK) * (weights_bytes + kv_bytes)) + self.constant
        record = Stage(
            stage=name,
            seconds=seconds,
            peak_rss_bytes=peak,
            peak_anonymous_bytes=anonymous_peak,
            anonymous_bytes=field_bytes(_STATUS, "RssAnon"),
            weights_bytes=weights_bytes,
            kv_bytes=kv_bytes,
            limited=limited,
            limit_bytes=limit,
            within=None if watched is None else watched <= limit,
        )
        self.records.append(record)
        return result


def _reset_peak() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def run(config: ModelConfig, weights: str | None = None) -> list[Stage]:
    """The four stages, in a temporary folder; ``weights`` is how the checkpoint is loaded.

    The decode is diffusion forcing (r'=4 at r=32) of ``DECODED_TOKENS`` tokens, with its prefill
    of one token and the filling of the wavefront.

    Raises:
        NoRoom: before any work.
    """
    stored, loaded_bytes = weights_bytes(config), weights_bytes(config, weights)
    limited = "resident" if weights is None else "anonymous"
    stages = Stages()
    with tempfile.TemporaryDirectory(prefix="rdkernels-stages-") as temporary:
        _expect_disk(Path(temporary), stored)
        folder = Path(temporary) / "model"
        created = stages.run("create", partial(create_random, config), stored)
        stages.run("save", partial(save_model, created, folder), stored)
        del created
        load = partial(load_model, folder, weights=weights)
        loaded = stages.run("load", load, loaded_bytes, limited=limited)
        sampler = DiffusionForcing(num_steps=32, inner_recurrence=4, freeze_rule=FixedDepth(32))
        decode = partial(generate, loaded, [[1]], sampler=sampler, max_new_tokens=DECODED_TOKENS)
        kv = loaded.new_cache(1, 1 + DECODED_TOKENS).memory_report().reserved_bytes
        stages.run("decode", decode, loaded_bytes, kv_bytes=kv, limited=limited)
        del loaded, decode
        gc.collect()
    return stages.records


def report_of(options: argparse.Namespace) -> dict[str, Any]:
    """The report of one command: ``schema``, ``environment``, and ``stages`` (:class:`Stage`)."""
    config = TINY if options.dry_run else RANDOM_MODELS[options.model]
    expect_memory(weights_bytes(config))
    stages = run(config, options.weights)
    return {
        "schema": SCHEMA,
        "dry_run": options.dry_run,
        "model": options.model,
        "weights": options.weights,
        "environment": support.environment() | {"load_average": load_average()},
        "stages": [stage.to_json() for stage in stages],
    }


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    caption = "GB; resident: with pages of mapped files; limit: weights + K/V + 10 % + a constant"
    table = Table(title=f"{report['model']}, {report['weights'] or 'bf16'}", caption=caption)
    headers = ("seconds", "peak resident", "peak anonymous", "anonymous", "weights", "K/V", "limit")
    for header in ("stage", *headers, "on", "within"):
        table.add_column(header, justify="right" if header in headers else "left")
    sizes = ("peak_rss", "peak_anonymous", "anonymous", "weights", "kv", "limit")
    for stage in report["stages"]:
        values = (stage[f"{size}_bytes"] for size in sizes)
        shown = ("unknown" if value is None else f"{value / 1e9:.2f}" for value in values)
        within = {True: "yes", False: "NO", None: "unknown"}[stage["within"]]
        row = (stage["stage"], f"{stage['seconds']:.1f}", *shown, stage["limited"], within)
        table.add_row(*row)
    console().print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.checkpoint_stages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=tuple(RANDOM_MODELS), default="huginn")
    parser.add_argument("--weights", choices=("int8",), help="of the loaded model; default: bf16")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        report = report_of(options)
    except NoRoom as error:
        print(f"checkpoint_stages: {error}; nothing is reported", file=sys.stderr)
        return 2
    if options.json == "-":
        print(json.dumps(report))
    else:
        if options.json is not None:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
        show(report)
    return 1 if any(stage["within"] is False for stage in report["stages"]) else 0


if __name__ == "__main__":
    sys.exit(main())
