"""Memory and disk as the system tells of them: what is there, and what a process takes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from rdkernels.errors import RdkernelsError

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY = Path("/proc/meminfo")
_SPARE_BYTES = 1 << 30  # of memory and of disk, beyond what the weights need
_SAMPLE_SECONDS = 0.005


class NoRoom(RdkernelsError):
    """Too little memory or disk for the weights."""


def field_bytes(file: Path, field: str) -> int | None:
    """A ``Name:  123 kB`` line of a file in /proc, in bytes; None where there is no such file."""
    if not file.exists():
        return None
    for line in file.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def expect_memory(nbytes: int) -> None:
    """Refuse to start what would be killed half way. Raises :class:`NoRoom`."""
    available = field_bytes(MEMORY, "MemAvailable")
    if available is not None and available < nbytes + _SPARE_BYTES:
        raise NoRoom(
            f"{nbytes / 1e9:.1f} GB of weights need {(nbytes + _SPARE_BYTES) / 1e9:.1f} GB of "
            f"memory, {available / 1e9:.1f} GB are available (try --model huginn-small)"
        )


def expect_disk(folder: Path, nbytes: int) -> None:
    """The same of a disk."""
    free = shutil.disk_usage(folder).free
    if free < nbytes + _SPARE_BYTES:
        raise NoRoom(
            f"{folder}: {nbytes / 1e9:.1f} GB of weights do not fit in {free / 1e9:.1f} GB"
        )


class AnonymousPeak(threading.Thread):
    """Samples the anonymous part of the resident set until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = field_bytes(STATUS, "RssAnon")
        self._done = threading.Event()

    def run(self) -> None:
        while self.peak is not None and not self._done.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, field_bytes(STATUS, "RssAnon") or 0)

    def stop(self) -> int | None:
        self._done.set()
        self.join()
        return None if self.peak is None else max(self.peak, field_bytes(STATUS, "RssAnon") or 0)


def reset_peak() -> bool:
    """Set the high-water mark of the resident set back to the present, if that can be done."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
