"""A plugin of pytest that calls each test many times in fresh seeds, within one process.

It repeats the tests that take the fixture ``seed``. Those that compare floating-point numbers up to
a bound, the value tests, get every repetition; the others, which compare for equality, stop after a
few, and with ``--repeat-all`` they get as many. A test that fails reports every seed that it
failed in.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SEED_VARIABLE
from tests.support import checking

# What a value test calls; torch.allclose is not written in Python.
COMPARISONS = {
    function.__code__
    for function in (
        checking.assert_close_to_reference,
        torch.testing.assert_close,
        pytest.approx,
    )
}
EXACT_TIMES = 3  # repetitions of a test that is no value test
SHOWN_SEEDS = 10


@dataclass
class Record:
    """What became of one test."""

    test: str
    value: bool = False
    times: int = 0
    seconds: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)  # seed, message


class Repeater:
    """Repeats tests, and keeps a :class:`Record` of each."""

    def __init__(self, times: int, seconds: float, everything: bool, shard: tuple[int, int]):
        self.times, self.seconds, self.everything = times, seconds, everything
        self.shard = shard
        self.records: list[Record] = []

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list) -> None:
        """Drop what takes no seed, what draws by itself, and what belongs to other processes."""
        mine, number = [], 0
        for item in items:
            if "seed" in item.fixturenames and _repeatable(item):
                number += 1
                if number % self.shard[1] == self.shard[0]:
                    mine.append(item)
        kept = set(mine)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = mine

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool:
        record = Record(pyfuncitem.nodeid)
        began = time.monotonic()
        while self._more(record, time.monotonic() - began):
            value = secrets.randbits(32)
            watch = None if record.times else record
            try:
                _call(pyfuncitem, value, watch)
            except Exception as error:
                record.failures.append((value, str(error)[:300]))
            record.times += 1
            if record.times == 1:  # slow: it is watched, and may import what the others have
                first, began = time.monotonic() - began, time.monotonic()
        record.seconds = round(first + time.monotonic() - began, 3)
        self.records.append(record)
        if record.failures:
            seeds = [f"{SEED_VARIABLE}={seed}: {why}" for seed, why in record.failures]
            count = f"{len(record.failures)} of {record.times} repetitions failed"
            pytest.fail("\n".join([count, *seeds[:SHOWN_SEEDS]]), pytrace=False)
        return True

    def _more(self, record: Record, seconds: float) -> bool:
        if record.times == 0:
            return True
        few = EXACT_TIMES if not (record.value or self.everything) else self.times
        return record.times < min(few, self.times) and seconds < self.seconds


def _repeatable(item: pytest.Item) -> bool:
    """Not a test of hypothesis, which draws by itself; not one with fixtures made from the seed."""
    if hasattr(item.obj, "hypothesis"):
        return False
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return not any("seed" in used[-1].argnames for used in definitions)


def _call(item: pytest.Function, seed: int, watched: Record | None) -> None:
    """The test in ``seed``, with patches of its own; ``watched`` learns whether it compares."""
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        name: item.funcargs[name] for name in signature(item.obj).parameters
    }
    with pytest.MonkeyPatch.context() as patch:
        given = {"seed": seed, "monkeypatch": patch}
        arguments |= {name: value for name, value in given.items() if name in arguments}
        if watched is None:
            item.obj(**arguments)
            return
        sys.setprofile(_watcher(watched))
        try:
            item.obj(**arguments)
        finally:
            sys.setprofile(None)


def _watcher(record: Record) -> Callable[[Any, str, Any], None]:
    def watch(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in COMPARISONS:
            record.value = True
        if event == "c_call" and getattr(argument, "__name__", "") == "allclose":
            record.value = True

    return watch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("repeat")
    group.addoption("--repeat-times", type=int, default=20, metavar="N")
    group.addoption("--repeat-seconds", type=float, default=60.0, metavar="S")
    group.addoption("--repeat-all", action="store_true")
    group.addoption("--repeat-shard", default="0/1", metavar="I/N")
    group.addoption("--repeat-report", metavar="FILE")


def pytest_configure(config: pytest.Config) -> None:
    if SEED_VARIABLE in os.environ:
        raise pytest.UsageError(f"{SEED_VARIABLE} is set: there would be one seed, not many")
    option = config.getoption
    index, count = map(int, option("--repeat-shard").split("/"))
    arguments = option("--repeat-times"), option("--repeat-seconds"), option("--repeat-all")
    config.pluginmanager.register(Repeater(*arguments, (index, count)), "repeater")


def pytest_sessionfinish(session: pytest.Session) -> None:
    repeater = session.config.pluginmanager.get_plugin("repeater")
    if path := session.config.getoption("--repeat-report"):
        Path(path).write_text(json.dumps([asdict(record) for record in repeater.records]))
