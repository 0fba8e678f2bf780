"""Fixtures of the emulator's own tests."""

from __future__ import annotations

from types import ModuleType

import pytest

from .build import compiler, load_module

SELFTEST = "tests/simt/emulator_selftest.cpp"


@pytest.fixture(scope="session")
def emulator() -> ModuleType:
    """The self-test module, built without sanitizers."""
    if compiler() is None:
        pytest.skip("no C++ compiler (g++ is not on PATH and CXX names none)")
    return load_module(SELFTEST)
