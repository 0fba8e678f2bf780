"""The sections that run other programs: the tests marked ``gpu``, and compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gpu.session import Session
from tools.native_build import ROOT

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
SANITIZED = "bench.gpu.every_op"
TIMEOUT_SECONDS = 3600
_SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?|deselected)")
_TAIL = 4000  # characters of a failing program's output that are kept


def tests(session: Session) -> dict:
    """``pytest -m gpu``; a dry run collects and skips them."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["tests/gpu"] if session.dry_run else ["tests"]
    done = _run(command)
    counts = {kind: int(n) for n, kind in _SUMMARY.findall(done.stdout[-_TAIL:])}
    # 5: nothing was collected, which is no success either.
    ok = done.returncode == 0 and (session.dry_run or counts.get("passed", 0) > 0)
    return {
        "command": " ".join(command[1:]),
        "ok": ok,
        "counts": counts,
        "output": "" if ok else done.stdout[-_TAIL:] + done.stderr[-_TAIL:],
    }


def sanitizers(session: Session) -> list[dict]:
    """Every op under each tool of compute-sanitizer; a dry run runs the ops without it."""
    tool = _find_sanitizer()
    program = [sys.executable, "-m", SANITIZED, *(["--dry-run"] if session.dry_run else [])]
    if session.dry_run:
        done = _run(program)
        return [_record("none", done.returncode == 0, "a dry run has none; the ops ran", done)]
    if tool is None:
        reason = "compute-sanitizer is neither on PATH nor in CUDA_HOME"
        return [_record(name, None, reason, None) for name in SANITIZERS]
    records = []
    for name in SANITIZERS:
        done = _run([str(tool), f"--tool={name}", "--error-exitcode=9", *program])
        records.append(_record(name, done.returncode == 0, None, done))
    return records


def _record(
    tool: str, ok: bool | None, reason: str | None, done: subprocess.CompletedProcess | None
) -> dict:
    output = "" if ok or done is None else done.stdout[-_TAIL:] + done.stderr[-_TAIL:]
    return {"tool": tool, "ok": ok, "reason": reason, "output": output}


def _find_sanitizer() -> Path | None:
    if on_path := shutil.which("compute-sanitizer"):
        return Path(on_path)
    root = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = (root / "bin" / "compute-sanitizer", root / "compute-sanitizer" / "compute-sanitizer")
    return next((place for place in places if place.exists()), None)


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_SECONDS
    )
