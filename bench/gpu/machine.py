"""The machine that the numbers belong to."""

from __future__ import annotations

import shutil
import subprocess

import torch

from bench.gpu.session import Session
from rdkernels import diagnostics
from tools.native_build import ROOT


def run(session: Session) -> dict:
    """Versions, providers, the GPU's properties and settings, and the commit."""
    report = diagnostics.report().to_json()
    report["commit"] = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    report["uncommitted_changes"] = bool(_output(["git", "-C", str(ROOT), "status", "--short"]))
    report["allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
    report["gpu"] = None if session.dry_run else _gpu(session)
    return report


def _gpu(session: Session) -> dict:
    p = torch.cuda.get_device_properties(session.device)
    fields = "clocks.max.sm,clocks.max.memory,clocks.sm,power.limit,persistence_mode,driver_version"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "-i", "0"]
    return {
        "name": p.name,
        "compute_capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "memory_bytes": p.total_memory,
        "l2_bytes": p.L2_cache_size,
        "nvidia_smi": {"fields": fields, "values": _output(query)},
    }


def _output(command: list[str]) -> str | None:
    """What a command prints, or None where it is absent or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
