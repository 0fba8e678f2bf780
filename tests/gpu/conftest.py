"""Tests that need a GPU: they are all marked ``gpu``, and skip with the reason where there is none.

The tests of tests/ops run on a GPU too, where there is one: they take every provider and device.
What is here is what only a device can tell: streams, graphs, synchronisation, large memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.gpu.session import Session
from bench.op_cases import providers, small_cases
from bench.random_models import TINY
from cases import OpCase
from rdkernels.diagnostics import report

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    """The device; skips where there is none."""
    if reason := report().gpu_reason:
        pytest.skip(reason)
    return torch.device("cuda")


@pytest.fixture
def session(gpu: torch.device) -> Session:
    """Huginn's structure at small sizes, on the GPU."""
    import dataclasses

    return dataclasses.replace(Session.on_gpu(), config=TINY, context=70)


def native_cases(session: Session) -> list[OpCase]:
    """One call or more of every op that has a native CUDA kernel."""
    cases = [c for c in small_cases(session) if providers(c, session.device)["native"] is None]
    assert cases, "no op has a native CUDA kernel here; `rdkernels env` says why"
    return cases
