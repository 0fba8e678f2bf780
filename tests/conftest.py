"""Fixtures of the whole suite: one thread, and a fresh seed that a failure prints.

Without a GPU, Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import os
import secrets

import pytest
import torch

from rdkernels.cli import main
from tests.support.interpreter import choose_interpreter

SEED_VARIABLE = "RDKERNELS_TEST_SEED"
torch.set_num_threads(1)
choose_interpreter()


@pytest.fixture
def seed() -> int:
    """A fresh seed, also given to torch; repeat a failure with ``RDKERNELS_TEST_SEED=<seed>``.

    Pytest shows what a fixture printed only when its test fails.
    """
    value = int(os.environ.get(SEED_VARIABLE) or secrets.randbits(32))
    print(f"{SEED_VARIABLE}={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture
def run(capsys):
    """Run the command in this process: (status, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run
