"""Everything that only a GPU can tell, in one command and one JSON.

    python -m bench.gpu_check                     # a summary, section by section
    python -m bench.gpu_check --out gpu.json      # and all records into a file
    python -m bench.gpu_check --json              # all records to stdout
    python -m bench.gpu_check --dry-run           # the same control flow on the CPU, without times

Exit status: 0 all is well, 1 something failed (see ``failures``), 2 there is no GPU, and then
there is no number either.

The JSON, schema 1. Times are in microseconds, rates in 10^9 bytes per second; what was not
measured is null, with a ``reason``. ``tests/support/gpu_report.py`` has the types.

``schema``              1; a change of meaning or a removed key increases it
``dry_run``             true: tiny shapes on the CPU, every time null
``environment``         versions, providers, build, commit; ``gpu``: properties and settings
``copy_gb_per_s``       read plus write rate of a 1 GiB device copy; percentages refer to it
``tests``               {command, ok, counts, output}: ``pytest -m gpu``; output if it failed
``sanitizers``          [tool, ok, reason, output] of compute-sanitizer over every op
``graphs``              [op, case, captured, ok, reason]: replay against launch, to the bit
``ops``                 [op, case, provider, correct, reason, median_us, p20_us, p80_us, bytes,
                        gb_per_s, percent_of_copy, flops]: cold L2; bytes is the floor of traffic;
                        a result that breaks the error rule is not timed
``core_iteration``      [provider, batch, rows, graph, reason, median_us, p20_us, p80_us, bytes,
                        gb_per_s, percent_of_copy]: one iteration of the core block at
                        Huginn-0125's sizes, random weights; rows are per sequence; provider "best"
                        takes the first that serves, per op; one that cannot serve has one record,
                        without a shape
``outer_step``          [provider, batch, rows, graph, reason, median_us, p20_us, p80_us, bytes,
                        gb_per_s, percent_of_copy, inner_recurrence]: wall time of a whole outer
                        step, its host work and its host read included
``failures``            sentences; empty if all is well
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench import command, machine
from bench.gpu import checks, graphs, model_bench, op_bench
from bench.gpu.session import Session
from rdkernels import diagnostics

SCHEMA = 1
SECTIONS = ("tests", "sanitizers", "graphs", "ops", "model")


def why_no_gpu() -> str | None:
    """None if there is a GPU to check, else why not."""
    return diagnostics.report().gpu_reason


def environment(session: Session) -> dict:
    """The machine, what can serve on it, and the settings that change numbers."""
    gpu = None if session.dry_run else machine.gpu(session.device)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    here = machine.environment() | diagnostics.report().to_json()
    return here | {"allow_tf32": tf32, "gpu": gpu}


def check(session: Session, sections: tuple[str, ...], save: Callable[[dict], None]) -> dict:
    """Run the sections; ``save`` gets the report after each, so that a crash loses nothing."""
    report: dict = {
        "schema": SCHEMA,
        "dry_run": session.dry_run,
        "environment": environment(session),
        "copy_gb_per_s": session.copy_bandwidth(),
        "failures": [],
    }
    copy = report["copy_gb_per_s"]
    work: dict[str, Callable[[], dict]] = {
        "tests": lambda: {"tests": checks.tests(session)},
        "sanitizers": lambda: {"sanitizers": checks.sanitizers(session)},
        "graphs": lambda: {"graphs": graphs.run(session)},
        "ops": lambda: {"ops": op_bench.run(session, copy)},
        "model": lambda: model_bench.run(session, copy),
    }
    for section in sections:
        print(f"gpu_check: {section} ...", file=sys.stderr, flush=True)
        try:
            report |= work[section]()
        except Exception:  # the day on the GPU goes on without this section
            report["failures"].append(f"{section}: {traceback.format_exc(limit=-3)}")
        session.free_memory()
        save(report)
    report["failures"] += failures(report)
    save(report)
    return report


def failures(report: dict) -> Iterator[str]:
    """What a report says against the kernels."""
    if "tests" in report and not report["tests"]["ok"]:
        yield f"tests: {report['tests']['counts']}"
    for record in report.get("sanitizers", ()):
        if record["ok"] is False:
            yield f"sanitizers: {record['tool']} found something"
    for record in report.get("graphs", ()):
        if record["ok"] is False:
            yield f"graphs: {record['op']} ({record['case']}): {record['reason']}"
    for record in report.get("ops", ()):
        if record["correct"] is False:
            yield (
                f"ops: {record['op']} ({record['case']}) by {record['provider']}: "
                f"{record['reason']}"
            )


def summary(report: dict) -> Iterator[str]:
    """What a person wants to see first."""
    gpu = report["environment"]["gpu"]
    yield "dry run on the CPU: no times" if gpu is None else gpu["name"]
    if report["copy_gb_per_s"] is not None:
        yield f"copy: {report['copy_gb_per_s']:.0f} GB/s"
    if "tests" in report:
        counts = ", ".join(f"{n} {kind}" for kind, n in report["tests"]["counts"].items())
        yield f"tests: {counts or 'none ran'}"
    for record in report.get("sanitizers", ()):
        verdict = record["reason"] or ("clean" if record["ok"] else "FAILED")
        yield f"compute-sanitizer {record['tool']}: {verdict}"
    for record in report.get("ops", ()):
        if record["correct"]:  # the others are failures, or providers that do not serve
            yield _line(f"{record['op']} ({record['case']})", record)
    for section in ("core_iteration", "outer_step"):
        for record in report.get(section, ()):
            if record["batch"] is None:
                yield f"{section}: {record['provider']}: {record['reason']}"
                continue
            shape = f"{record['batch']} x {record['rows']} rows"
            graph = ", graph" if record["graph"] else ""
            yield _line(f"{section}, {shape}{graph}", record)
    for record in report.get("graphs", ()):
        if record["ok"] is None:
            yield f"graph of {record['op']}: not captured: {record['reason']}"
    yield from (f"FAILED {failure}" for failure in report["failures"])


def _line(what: str, record: dict) -> str:
    if record["median_us"] is None:
        return f"{what}, {record['provider']}: {record['reason'] or 'ran'}"
    share = record["percent_of_copy"]
    return (
        f"{what}, {record['provider']}: {record['median_us']:.1f} us "
        f"({record['p20_us']:.1f} to {record['p80_us']:.1f}), {record['gb_per_s']:.0f} GB/s"
        + (f", {share:.0f} % of copy" if share is not None else "")
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser_of("gpu_check", __doc__)
    parser.add_argument("--json", action="store_true", help="all records to stdout")
    parser.add_argument("--out", type=Path, metavar="FILE", help="all records to a file")
    parser.add_argument(
        "--section", action="append", choices=SECTIONS, help="only this one (may be repeated)"
    )
    return command.parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if not options.dry_run and (reason := why_no_gpu()):
        print(f"gpu_check: no GPU: {reason}; nothing was measured", file=sys.stderr)
        return 2
    session = Session.dry() if options.dry_run else Session.on_gpu()

    def save(report: dict) -> None:
        if options.out is not None:
            command.write_json(options.out, report)

    torch.manual_seed(0)
    report = check(session, tuple(options.section or SECTIONS), save)
    if options.json:
        print(json.dumps(report))
    else:
        print("\n".join(summary(report)))
    return 1 if report["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
