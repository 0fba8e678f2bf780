"""The command that repeats tests in fresh seeds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.repeat.__main__ import PROJECT_ROOT

SAMPLE = """
import torch
from tests.support.checking import assert_close_to_reference

def test_exact(seed):
    assert 0 <= seed < 2**32

def test_value(seed):
    x = torch.tensor([0.5])
    assert_close_to_reference(x, x, x)

def test_fails_in_odd_seeds(seed, monkeypatch):
    monkeypatch.setattr(torch, "a_patch", seed, raising=False)
    torch.testing.assert_close(torch.tensor(float(seed % 2)), torch.tensor(0.0))

def test_without_a_seed():
    raise AssertionError
"""


def repeat(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.repeat", *arguments]
    return subprocess.run(
        command, cwd=PROJECT_ROOT, env=os.environ, capture_output=True, text=True, check=False
    )


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "test_sample.py"
    path.write_text(SAMPLE)
    (tmp_path / "conftest.py").write_text("from tests.conftest import seed\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return str(path)


def test_counts_failures_and_names_their_seeds(sample):
    done = repeat("--times", "40", "--jobs", "1", "--seconds", "60", "--json", sample)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    counts = ("tests", "value_tests", "repetitions", "fewest_of_a_value_test")
    assert [report[name] for name in counts] == [3, 2, 2 * 40 + 3, 40]
    (failed,) = report["failed"]
    seeds = [seed for seed, _ in failed["failures"]]
    assert failed["test"].endswith("test_fails_in_odd_seeds") and failed["times"] == 40
    assert len(set(seeds)) == report["failures"] > 0 and all(seed % 2 for seed in seeds)
    assert report["at_most"] is None
    assert re.search(rf"RDKERNELS_TEST_SEED={seeds[0]}: ", done.stderr)


def test_value_tests_of_the_norms():
    """A few repetitions in every run of the suite; the long form is one of the slow tests."""
    done = repeat("--times", "20", "--jobs", "1", "-k", "values", "tests/ops/test_rms_norm.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(r"0 failures in \d{3,} repetitions of \d\d+ tests", done.stdout)


@pytest.mark.slow
def test_every_value_test_2000_times():
    done = repeat("--times", "2000")
    assert done.returncode == 0, done.stdout
