"""The planted bugs of ``tests/mutation``: the list fits the sources, and the bugs are caught."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from rdkernels.ops import OPS
from tests.mutation.__main__ import choose, main, spread
from tests.mutation.bug import HEADERS
from tests.mutation.bugs import BUGS
from tests.mutation.runner import PROJECT_ROOT, Runner
from tests.simt.build import compiler

KERNELS = {name for name, op in OPS.items() if op.cpu_only is None}
QUICK = ["exit_update/exited-rows-count-on", "exit_update/nan-converges"]
needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


def test_the_list():
    assert len(BUGS) >= 40
    assert {bug.kernel for bug in BUGS} == KERNELS
    repeated = [name for name, count in Counter(bug.name for bug in BUGS).items() if count > 1]
    assert not repeated


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_still_applies(bug, tmp_path):
    """The text it replaces is in the file exactly once, and planting it can be undone."""
    path = PROJECT_ROOT / HEADERS / bug.file
    copy = tmp_path / HEADERS / bug.file
    copy.parent.mkdir(parents=True)
    copy.write_text(path.read_text())
    contents = bug.plant(tmp_path)
    assert copy.read_text() != path.read_text() == contents
    bug.remove(tmp_path, contents)
    assert copy.read_text() == path.read_text()
    for name in (bug.tests.file, bug.tests.source):
        assert (PROJECT_ROOT / "tests" / "simt" / name).is_file()


def test_choice():
    assert {bug.kernel for bug in spread(BUGS, len(KERNELS))} == KERNELS
    assert len(choose(["swiglu", "exit"], 2)) == 2
    assert choose(None, None) == list(BUGS)
    for only, subset in ((["no such bug"], None), (None, 0)):
        with pytest.raises(ValueError):
            choose(only, subset)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("mutation"), jobs=1, timeout=300)


@needs_compiler
def test_what_is_not_a_catch(runner):
    """A harmless change is missed; what does not apply, compile or select a test is an error."""
    bug = next(bug for bug in BUGS if bug.name == QUICK[0])
    harmless = replace(bug, new=bug.old + " ")
    broken = replace(bug, new=bug.old + " this is not C++")
    gone = replace(bug, old="text that is not in the file")
    untested = replace(bug, tests=bug.tests.only("no_such_test"))
    outcomes = list(runner.outcomes((harmless, broken, gone, untested)))
    assert [o.status for o in outcomes] == ["missed", "error", "error", "error"], outcomes
    assert "does not compile" in outcomes[1].message


@needs_compiler
def test_quick_bugs_are_caught(runner, monkeypatch, capsys):
    monkeypatch.setattr("tests.mutation.__main__.Runner", lambda *_: runner)
    assert main(["--json", "--only", *QUICK]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["planted"] == report["caught"] == len(QUICK)
    assert [bug["name"] for bug in report["bugs"]] == QUICK
    assert all(bug["message"] for bug in report["bugs"])


@needs_compiler
@pytest.mark.slow
def test_all_bugs_are_caught(capsys):
    assert main(["--json"]) == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    assert report["planted"] == report["caught"] == len(BUGS)
