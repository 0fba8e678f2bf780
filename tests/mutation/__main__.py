"""``python -m tests.mutation``: plants every bug of the list and reports which were caught."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

from tests.mutation.bug import Bug
from tests.mutation.bugs import BUGS
from tests.mutation.runner import Outcome, Runner


def spread(bugs: Sequence[Bug], count: int) -> list[Bug]:
    """``count`` bugs that cover as many kernels as possible: one of each in turn."""
    kernels: dict[str, list[Bug]] = defaultdict(list)
    for bug in bugs:
        kernels[bug.kernel].append(bug)
    turns = chain.from_iterable(zip_longest(*kernels.values()))
    return [bug for bug in turns if bug is not None][:count]


def choose(only: Sequence[str] | None, subset: int | None) -> list[Bug]:
    """The bugs whose name contains one of ``only`` (default: all), ``subset`` of them.

    Raises:
        ValueError: one of ``only`` names nothing, or ``subset`` is not positive.
    """
    chosen = list(BUGS)
    if only:
        for part in only:
            if not any(part in bug.name for bug in BUGS):
                raise ValueError(f"no bug is named like {part!r}")
        chosen = [bug for bug in BUGS if any(part in bug.name for part in only)]
    if subset is not None:
        if subset < 1:
            raise ValueError(f"--subset: expected at least 1, got {subset}")
        chosen = spread(chosen, subset)
    return chosen


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="bugs whose name contains NAME")
    parser.add_argument("--subset", type=int, metavar="N", help="N bugs, spread over the kernels")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time (default: 2)")
    parser.add_argument(
        "--timeout", type=float, default=300, metavar="S", help="seconds per build and test run"
    )
    parser.add_argument("--list", action="store_true", help="list the bugs and run nothing")
    options = parser.parse_args(arguments)
    try:
        options.bugs = choose(options.only, options.subset)
    except ValueError as error:
        parser.error(str(error))
    if options.jobs < 1:
        parser.error("--jobs: expected at least 1")
    return options


def run(options: argparse.Namespace) -> tuple[list[str], list[Outcome]]:
    """Complaints about the unchanged project, which end the run, and the outcome of each bug."""
    with tempfile.TemporaryDirectory(prefix="rdkernels-mutation-") as folder:
        runner = Runner(Path(folder), options.jobs, options.timeout)
        if complaints := runner.clean(options.bugs):
            return complaints, []
        outcomes = []
        for outcome in runner.outcomes(options.bugs):
            outcomes.append(outcome)
            line = f"{outcome.status:7}{outcome.bug.name}  {outcome.seconds:.0f} s  "
            print(line + outcome.message, file=sys.stderr, flush=True)
        return [], outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every bug was caught, 1 if not, 2 if the unchanged project fails."""
    options = parse(arguments)
    if options.list:
        for bug in options.bugs:
            print(f"{bug.name}: {bug.breaks}")
        return 0
    began = time.monotonic()
    complaints, outcomes = run(options)
    caught = sum(outcome.status == "caught" for outcome in outcomes)
    report = {
        "planted": len(outcomes),
        "caught": caught,
        "seconds": round(time.monotonic() - began),
        "clean": not complaints,
        "bugs": [outcome.as_dict() for outcome in outcomes],
    }
    for complaint in complaints:
        print(f"without any bug: {complaint}", file=sys.stderr)
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(f"{caught} of {len(outcomes)} bugs caught in {report['seconds']} s")
    if complaints:
        return 2
    return 0 if caught == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
