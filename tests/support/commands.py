"""Commands in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tools.native_build import ROOT


def report_of(module: str, *arguments: str) -> dict[str, Any]:
    """What ``python -m MODULE --json`` prints."""
    argv = [sys.executable, "-m", module, "--json", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
