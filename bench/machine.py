"""The machine that numbers belong to: what they are worth nothing without."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import rdkernels
from rdkernels.backends import native


def environment() -> dict[str, Any]:
    """Processor, threads, versions, commit and load, now."""
    build = native.build_info()
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "capability": build.get("cpu_capability", "no native kernels"),
        "compiler": build.get("compiler", "none"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rdkernels": rdkernels.__version__,
        "commit": _output(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
        )
        or "unknown",
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


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Not every architecture names its processor; then it is the architecture's name."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = named.group(1).strip() if named else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}"


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is absent or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
