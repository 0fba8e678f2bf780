"""A random checkpoint created, saved, loaded and decoded: seconds and peak memory of each stage.

Peak memory is the resident set's high-water mark (``VmHWM``), set back to the present before each
stage. Pages of memory-mapped weights count as resident once they have been read, though the system
may drop them at any time; the anonymous part, which it may not, is reported beside it.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.steady_decode import announced
from rdkernels import DiffusionForcing, FixedDepth, generate, load_model, save_model
from rdkernels.errors import RdkernelsError
from rdkernels.models.recurrent_depth import RecurrentDepthModel

DECODED_TOKENS = 8
_SPARE_BYTES = 1 << 30  # of memory and of disk, beyond what the weights need
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMORY = Path("/proc/meminfo")
T = TypeVar("T")


class NoRoom(RdkernelsError):
    """Too little memory or disk for the weights."""


@dataclass(frozen=True)
class Stage:
    """Sizes in bytes; None where the system does not tell (anything but Linux).

    ``weights_bytes`` is the size of the model, to compare with. ``anonymous_bytes`` is resident at
    the end of the stage and not backed by a file.
    """

    stage: str
    seconds: float
    peak_rss_bytes: int | None
    anonymous_bytes: int | None
    weights_bytes: int

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


class _Stages:
    def __init__(self, weights_bytes: int) -> None:
        self.weights_bytes = weights_bytes
        self.records: list[Stage] = []

    def run(self, name: str, work: Callable[[], T]) -> T:
        gc.collect()
        resettable = _reset_peak()
        began = time.perf_counter()
        with announced(name):
            result = work()
        seconds = time.perf_counter() - began
        peak = field_bytes(_STATUS, "VmHWM") if resettable else None
        anonymous = field_bytes(_STATUS, "RssAnon")
        self.records.append(Stage(name, seconds, peak, anonymous, self.weights_bytes))
        return result


def _reset_peak() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def run(create: Callable[[], RecurrentDepthModel], weights_bytes: int) -> list[Stage]:
    """The four stages, in a temporary folder.

    The decode is diffusion forcing (r'=4 at r=32) of ``DECODED_TOKENS`` tokens, with its prefill
    of one token and the filling of the wavefront.

    Raises:
        NoRoom: before any work.
    """
    stages = _Stages(weights_bytes)
    with tempfile.TemporaryDirectory(prefix="rdkernels-stages-") as temporary:
        _expect_disk(Path(temporary), weights_bytes)
        folder = Path(temporary) / "model"
        created = stages.run("create", create)
        stages.run("save", partial(save_model, created, folder))
        del created
        loaded = stages.run("load", partial(load_model, folder))
        sampler = DiffusionForcing(num_steps=32, inner_recurrence=4, freeze_rule=FixedDepth(32))
        options = {"sampler": sampler, "max_new_tokens": DECODED_TOKENS}
        stages.run("decode", partial(generate, loaded, [[1]], **options))
        del loaded
        gc.collect()
    return stages.records
