"""The machine that numbers belong to: what they are worth nothing without."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from rdkernels import diagnostics


def environment() -> dict[str, Any]:
    """Processor, threads, versions, commit and load, now."""
    here = diagnostics.machine()
    folder = str(Path(__file__).parent)
    return {
        "cpu": f"{here.cores} x {here.cpu}",
        "threads": here.threads,
        "capability": here.instruction_set,
        "compiler": here.compiler or "none",
        **{name: here.versions[name] for name in ("torch", "python", "rdkernels")},
        "commit": _output("git", "-C", folder, "describe", "--always", "--dirty") or "unknown",
        "load_average": load_average(),
    }


def gpu(device: torch.device) -> dict[str, Any]:
    """Properties and settings of a CUDA device."""
    p = torch.cuda.get_device_properties(device)
    fields = "clocks.max.sm,clocks.max.memory,clocks.sm,power.limit,persistence_mode,driver_version"
    query = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0")
    return {
        "name": p.name,
        "compute_capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": p.L2_cache_size,
        "nvidia_smi": {"fields": fields, "values": _output(*query)},
    }


def load_average() -> float | None:
    """Of the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is absent or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
