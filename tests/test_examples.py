"""Every example of single ops runs by itself; each asserts its own claim."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "examples" / "single_ops").glob("[!_]*.py"))
SHOWN = {
    "attention_module": ["sequence 0: 40 positions", "sequence 1: 23 positions"],
    "bare_loop": ["depth of each row:", "largest distance from 64 iterations"],
    "foreign_cache": ["largest difference from SDPA", "(8, 1) (30, 1) (30, 2) (30, 3)"],
}


def test_every_example_is_listed():
    assert {file.stem for file in FILES} == set(SHOWN)
    readme = (ROOT / "examples" / "single_ops" / "README.md").read_text()
    for file in FILES:
        assert f"({file.name})" in readme
        assert len(file.read_text().splitlines()) <= 80


@pytest.mark.parametrize("backend", ["", "eager"])
@pytest.mark.parametrize("name", SHOWN)
def test_example(name, backend):
    """With the providers at hand, and with eager alone."""
    done = subprocess.run(
        [sys.executable, "-m", f"examples.single_ops.{name}"],
        cwd=ROOT,
        env={**os.environ, "RDKERNELS_BACKEND": backend, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for text in SHOWN[name]:
        assert text in done.stdout
