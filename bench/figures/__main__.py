"""The figures of the documentation, measured and drawn.

    python -m bench.figures --out docs/images                  # all of them
    python -m bench.figures --out docs/images --only roofline  # one; may be repeated
    python -m bench.figures --out docs/images --redraw         # from the data beside the pictures
    python -m bench.figures --out docs/images --only batch-scaling --report demo.json
    python -m bench.figures --out /tmp/try --dry-run           # every line, on tiny sizes

``batch-scaling``   tokens/s against sequences, from reports of ``bench.end_to_end``; without
                    ``--report`` it runs that on the demo and on ``huginn-small``
``speed-accuracy``  exact answers against tokens/s on the demo models, over eps, r' and W
``roofline``        GB/s and GFLOP/s of a core iteration over 1 to 128 rows, bf16 and int8
``context-growth``  time of an outer step and K/V bytes against the context, with fitted lines

Each leaves ``NAME.png`` and ``NAME.json``: ``schema`` 1, ``figure``, ``command``, ``dry_run``,
``environment`` and ``data``. The picture's caption and metadata name the command, machine and load.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import command
from bench.figures import batch_scaling, context_growth, roofline, speed_accuracy
from bench.figures.style import save
from bench.machine import environment

SCHEMA = 1
FIGURES: dict[str, ModuleType] = {
    "batch-scaling": batch_scaling,
    "speed-accuracy": speed_accuracy,
    "roofline": roofline,
    "context-growth": context_growth,
}


def make(name: str, folder: Path, options: argparse.Namespace) -> Path:
    """One figure: its data (measured, or the file's) and its picture; returns the picture's path.

    Raises:
        FileNotFoundError: ``--redraw`` without data.
    """
    file = folder / f"{name}.json"
    if options.redraw:
        report = json.loads(file.read_text())
    else:
        with command.announced(name):
            report = _measured(name, options)
        command.write_json(file, report)
    picture = file.with_suffix(".png")
    save(FIGURES[name].draw(report["data"]), picture, report)
    return picture


def _measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    machine, dry_run = environment(), options.dry_run
    made_by = f"python -m bench.figures --only {name}"
    if name == "batch-scaling" and options.report:
        reports = [json.loads(path.read_text()) for path in options.report]
        data = batch_scaling.from_reports(reports)
        # The machine that counts is the one that the reports are from.
        machine, dry_run = reports[0]["environment"], any(r["dry_run"] for r in reports)
        made_by = "; ".join(report["command"] for report in reports)
    else:
        data = FIGURES[name].measure(dry_run)
    return {
        "schema": SCHEMA,
        "figure": name,
        "command": made_by,
        "dry_run": dry_run,
        "environment": machine,
        "data": data,
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser_of("figures", __doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--only", action="append", choices=tuple(FIGURES), help="default: all")
    of_command = "of bench.end_to_end --json"
    add("--report", action="append", type=Path, metavar="FILE", help=of_command)
    add("--redraw", action="store_true", help="measure nothing")
    options = command.parse(parser, arguments)
    options.only = options.only or list(FIGURES)
    if options.report and "batch-scaling" not in options.only:
        parser.error("--report: batch-scaling is drawn from it, and is not among --only")
    if options.redraw and (options.report or options.dry_run):
        parser.error("--redraw measures and reads nothing else: no --report, no --dry-run")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        try:
            picture = make(name, options.out, options)
        except FileNotFoundError as error:
            print(f"figures: {error.filename}: no such file; nothing is drawn", file=sys.stderr)
            return 1
        print(f"{picture}  {picture.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
