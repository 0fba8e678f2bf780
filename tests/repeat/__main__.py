"""``python -m tests.repeat``: repeats tests in fresh seeds, and counts how often they fail."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import SEED_VARIABLE

PROJECT_ROOT = Path(__file__).resolve().parents[2]
UNFINISHED = (2, 3, 4)  # pytest's exit statuses where it was interrupted, broke or was misused


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.repeat", description=__doc__)
    parser.add_argument("--times", type=int, default=2000, metavar="N", help="default: 2000")
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="at most, per test (default: 3)"
    )
    parser.add_argument("-k", default="", metavar="EXPR", help="tests, as pytest's -k chooses them")
    parser.add_argument("--all", action="store_true", help="as often those that are no value tests")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("paths", nargs="*", default=["tests"], help="default: tests")
    options = parser.parse_args(arguments)
    if options.times < 1 or options.jobs < 1 or options.seconds <= 0:
        parser.error("--times, --jobs and --seconds: expected more than 0")
    return options


def start(options: argparse.Namespace, shard: int, report: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-p", "tests.repeat.plugin", "--repeat-report", str(report)]
    command += [f"--repeat-times={options.times}", f"--repeat-seconds={options.seconds}"]
    command += [f"--repeat-shard={shard}/{options.jobs}"]
    command += ["--repeat-all"] if options.all else []
    command += ["-k", options.k, *options.paths]
    environment = {name: v for name, v in os.environ.items() if name != SEED_VARIABLE}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment, stdout=sys.stderr, text=True
    )


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A record of every test that was repeated: see ``plugin.Record``.

    Raises:
        RuntimeError: a process did not come to the end of its tests.
    """
    with tempfile.TemporaryDirectory(prefix="rdkernels-repeat-") as folder:
        reports = [Path(folder) / f"{shard}.json" for shard in range(options.jobs)]
        processes = [start(options, *numbered) for numbered in enumerate(reports)]
        statuses = [process.wait() for process in processes]
        if bad := [s for s in statuses if s < 0 or s in UNFINISHED]:
            raise RuntimeError(f"pytest exited with {bad}")
        return [record for report in reports for record in json.loads(report.read_text())]


def summary(records: list[dict[str, Any]], times: int) -> dict[str, Any]:
    """Counts, and what they say of one run of the suite.

    ``false_alarms_per_run`` is the expected number of failures in one run of all these tests: the
    sum over tests of failures per repetition. ``at_most`` bounds it from above with 95 %
    confidence: where nothing failed in n runs' worth, by 3 / n (the rule of three), n being the
    fewest repetitions of a value test.
    """
    value = [r for r in records if r["value"]]
    fewest = min((r["times"] for r in value), default=0)
    failed = [r for r in records if r["failures"]]
    return {
        "tests": len(records),
        "value_tests": len(value),
        "repetitions": sum(r["times"] for r in records),
        "repetitions_of_value_tests": sum(r["times"] for r in value),
        "fewest_of_a_value_test": fewest,
        "value_tests_with_every_repetition": sum(r["times"] >= times for r in value),
        "failures": sum(len(r["failures"]) for r in failed),
        "false_alarms_per_run": sum(len(r["failures"]) / r["times"] for r in failed),
        "at_most": 3 / fewest if fewest and not failed else None,
        "seconds": round(sum(r["seconds"] for r in records)),
        "failed": failed,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if nothing failed, 1 if something did, 2 if the repetition itself broke."""
    options = parse(arguments)
    try:
        report = summary(run(options), options.times)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print(
            f"{report['failures']} failures in {report['repetitions']} repetitions of "
            f"{report['tests']} tests ({report['repetitions_of_value_tests']} of "
            f"{report['value_tests']} value tests, each at least "
            f"{report['fewest_of_a_value_test']} times)"
        )
        for record in report["failed"]:
            seeds = ", ".join(str(seed) for seed, _ in record["failures"][:5])
            print(f"{record['test']}: {len(record['failures'])} of {record['times']}: {seeds}")
    return 1 if report["failures"] or not report["repetitions"] else 0


if __name__ == "__main__":
    sys.exit(main())
