"""Plants bugs one by one in copies of the project and runs the emulator tests on them."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.mutation.bug import Bug, EmulatedTests, PlantError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("cases", "csrc/include", "csrc/simt", "tests/simt", "tests/support")
_COPIED_FILES = ("pyproject.toml", "tests/__init__.py", "tests/conftest.py")
_PASSED, _FAILED = 0, 1  # pytest's exit statuses; a process that a signal killed has a negative one
# Compiling takes longer than running: no optimisation, except where a run is long enough to gain
# from it. A bug may leave a variable unused, so warnings are off.
_FLAGS = "-O0 -w"
_SLOW_MODULES = {"recurrent_attention_emulated.cpp": "-O1 -w"}


@dataclass(frozen=True)
class Outcome:
    """What became of one bug: ``caught``, ``missed`` or ``error`` (the run itself went wrong)."""

    bug: Bug
    status: str
    message: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        bug = asdict(self.bug)
        tests = bug.pop("tests")
        return {
            "name": bug["name"],
            "kernel": self.bug.kernel,
            "file": bug["file"],
            "breaks": bug["breaks"],
            "tests": f"{tests['file']} -k {tests['select']!r}",
            "status": self.status,
            "message": self.message,
            "seconds": round(self.seconds, 1),
        }


class Tree:
    """A copy of what the emulator tests need; the Python package itself is shared."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache
        skip = shutil.ignore_patterns("_build", "__pycache__")
        for folder in _COPIED:
            shutil.copytree(PROJECT_ROOT / folder, root / folder, ignore=skip)
        for name in _COPIED_FILES:
            shutil.copy(PROJECT_ROOT / name, root / name)
        (root / "rdkernels").symlink_to(PROJECT_ROOT / "rdkernels")

    def build(self, tests: EmulatedTests, timeout: float) -> str:
        """Compiles the module that the tests run; returns the compiler's complaint, if any."""
        script = f"from tests.simt.build import build_module; build_module({self._source(tests)!r})"
        done = self._python(["-c", script], tests, timeout)
        return "" if done.returncode == 0 else _first_error(done.stderr)

    def run(self, tests: EmulatedTests, timeout: float) -> tuple[int, str]:
        """Runs the tests up to the first failure: pytest's exit status and what failed."""
        arguments = ["-m", "pytest", "-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
        arguments += [f"tests/simt/{tests.file}", "-m", "not slow"]
        if tests.select:
            arguments += ["-k", tests.select]
        done = self._python(arguments, tests, timeout)
        return done.returncode, _failure(done.stdout) or _first_error(done.stderr)

    @staticmethod
    def _source(tests: EmulatedTests) -> str:
        return f"tests/simt/{tests.source}"

    def _python(
        self, arguments: Sequence[str], tests: EmulatedTests, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        environment = dict(
            os.environ,
            RDKERNELS_TEST_CACHE=str(self.cache),
            RDKERNELS_TEST_FLAGS=_SLOW_MODULES.get(tests.source, _FLAGS),
            RDKERNELS_TEST_SEED="1",  # random states: the same in every run
            OMP_NUM_THREADS="1",
            COLUMNS="400",  # pytest cuts its summary to the terminal
            PYTHONDONTWRITEBYTECODE="1",  # two contents of a file may have the same time and size
        )
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def _failure(output: str) -> str:
    """The first failed test and its reason, from pytest's summary."""
    for line in output.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return re.sub(r"^(FAILED|ERROR) tests/simt/\S*?::", "", line)[:300]
    return ""


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[0][:300]


def run_bug(tree: Tree, bug: Bug, timeout: float) -> Outcome:
    """Plants one bug, builds, runs its tests, and takes it out again."""
    began = time.monotonic()

    def outcome(status: str, message: str) -> Outcome:
        return Outcome(bug, status, message, time.monotonic() - began)

    try:
        contents = bug.plant(tree.root)
    except PlantError as error:
        return outcome("error", str(error))
    try:
        if complaint := tree.build(bug.tests, timeout):
            return outcome("error", f"does not compile: {complaint}")
        status, message = tree.run(bug.tests, timeout)
    except subprocess.TimeoutExpired:
        return outcome("error", f"still running after {timeout:.0f} s")
    finally:
        bug.remove(tree.root, contents)
    if status == _FAILED:
        return outcome("caught", message)
    if status < 0:
        return outcome("caught", f"killed by signal {-status}")
    if status == _PASSED:
        return outcome("missed", "all tests passed")
    return outcome("error", f"pytest exited with {status}: {message}")


def check_clean(tree: Tree, tests: EmulatedTests, timeout: float) -> str:
    """Why the tests say nothing: they fail, or do not exist, on the project as it is."""
    try:
        if complaint := tree.build(tests, timeout):
            return f"{tests.source} does not compile: {complaint}"
        status, message = tree.run(tests, timeout)
    except subprocess.TimeoutExpired:
        return f"{tests.file} -k {tests.select!r}: still running after {timeout:.0f} s"
    if status == _PASSED:
        return ""
    return f"{tests.file} -k {tests.select!r}: pytest exited with {status}: {message}"


def selections(bugs: Iterable[Bug]) -> list[EmulatedTests]:
    """The tests of all bugs, one selection per file of tests."""
    chosen: dict[tuple[str, str], dict[str, None]] = {}
    for bug in bugs:
        chosen.setdefault((bug.tests.file, bug.tests.source), {})[bug.tests.select] = None
    return [
        EmulatedTests(*names, "" if "" in parts else " or ".join(f"({part})" for part in parts))
        for names, parts in chosen.items()
    ]


class Runner:
    """Runs tasks on ``jobs`` trees under ``folder``."""

    def __init__(self, folder: Path, jobs: int, timeout: float) -> None:
        self.timeout, self.jobs = timeout, jobs
        self._trees: queue.Queue[Tree] = queue.Queue()
        for i in range(jobs):
            self._trees.put(Tree(folder / f"tree{i}", folder / "cache"))

    @contextmanager
    def _tree(self) -> Iterator[Tree]:
        tree = self._trees.get()
        try:
            yield tree
        finally:
            self._trees.put(tree)

    def _map(self, function: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        def call(item: Any) -> Any:
            with self._tree() as tree:
                return function(tree, item, self.timeout)

        with ThreadPoolExecutor(self.jobs) as pool:
            yield from pool.map(call, items)

    def clean(self, bugs: Sequence[Bug]) -> list[str]:
        """Complaints about the tests of these bugs when nothing is planted; none is good."""
        return [complaint for complaint in self._map(check_clean, selections(bugs)) if complaint]

    def outcomes(self, bugs: Sequence[Bug]) -> Iterator[Outcome]:
        """One outcome per bug, in order, as they come."""
        yield from self._map(run_bug, bugs)
