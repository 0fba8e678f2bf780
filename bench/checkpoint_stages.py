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
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from bench import command, memory
from bench.machine import environment
from bench.memory import NoRoom, field_bytes
from bench.random_models import RANDOM_MODELS, TINY, random_model, weights_bytes
from rdkernels import DiffusionForcing, FixedDepth, generate, load_model, save_model
from rdkernels.models.config import ModelConfig

SCHEMA = 1
DECODED_TOKENS = 8
_SLACK, _CONSTANT_BYTES = 0.10, 256 << 20
T = TypeVar("T")


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


class Stages:
    """Stages of one checkpoint, measured as they run.

    Attributes:
        records: what has been measured.
        constant: bytes that every stage may have beside its weights and cache.
    """

    def __init__(self) -> None:
        self.records: list[Stage] = []
        self.constant = (field_bytes(memory.STATUS, "VmRSS") or 0) + _CONSTANT_BYTES

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
        resettable, watch = memory.reset_peak(), memory.AnonymousPeak()
        watch.start()
        began = time.perf_counter()
        with command.announced(name):
            result = work()
        seconds = time.perf_counter() - began
        anonymous_peak = watch.stop()
        peak = field_bytes(memory.STATUS, "VmHWM") if resettable else None
        watched = peak if limited == "resident" else anonymous_peak
        limit = int((1 + _SLACK) * (weights_bytes + kv_bytes)) + self.constant
        record = Stage(
            stage=name,
            seconds=seconds,
            peak_rss_bytes=peak,
            peak_anonymous_bytes=anonymous_peak,
            anonymous_bytes=field_bytes(memory.STATUS, "RssAnon"),
            weights_bytes=weights_bytes,
            kv_bytes=kv_bytes,
            limited=limited,
            limit_bytes=limit,
            within=None if watched is None else watched <= limit,
        )
        self.records.append(record)
        return result


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
        memory.expect_disk(Path(temporary), stored)
        folder = Path(temporary) / "model"
        created = stages.run("create", partial(random_model, config), stored)
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
    memory.expect_memory(weights_bytes(config))
    stages = run(config, options.weights)
    return {
        "schema": SCHEMA,
        "dry_run": options.dry_run,
        "model": options.model,
        "weights": options.weights,
        "environment": environment(),
        "stages": [asdict(stage) for stage in stages],
    }


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    caption = "GB; resident: with pages of mapped files; limit: weights + K/V + 10 % + a constant"
    headers = ("stage", "seconds", "peak resident", "peak anonymous", "anonymous", "weights", "K/V")
    sizes = ("peak_rss", "peak_anonymous", "anonymous", "weights", "kv", "limit")
    rows = []
    for stage in report["stages"]:
        values = (stage[f"{size}_bytes"] for size in sizes)
        shown = ("unknown" if value is None else f"{value / 1e9:.2f}" for value in values)
        within = {True: "yes", False: "NO", None: "unknown"}[stage["within"]]
        seconds = f"{stage['seconds']:.1f}"
        rows.append((stage["stage"], seconds, *shown, stage["limited"], within))
    title = f"{report['model']}, {report['weights'] or 'bf16'}"
    command.show_table(title, (*headers, "limit", "on", "within"), rows, caption)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser_of("checkpoint_stages", __doc__)
    parser.add_argument("--model", choices=tuple(RANDOM_MODELS), default="huginn")
    parser.add_argument("--weights", choices=("int8",), help="of the loaded model; default: bf16")
    command.add_json(parser)
    options = command.parse(parser, arguments)
    try:
        report = report_of(options)
    except NoRoom as error:
        print(f"checkpoint_stages: {error}; nothing is reported", file=sys.stderr)
        return 2
    command.deliver(report, options.json, show)
    return 1 if any(stage["within"] is False for stage in report["stages"]) else 0


if __name__ == "__main__":
    sys.exit(main())
