"""The figures of the documentation, measured and drawn.

    python -m bench.figures --out docs/images                  # all of them
    python -m bench.figures --out docs/images --only roofline  # one; may be repeated
    python -m bench.figures --out docs/images --redraw         # from the data beside the pictures
<<<<<<< HEAD
    python -m bench.figures --out docs/images --only batch-scaling --report a.json --report b.json
=======
    python -m bench.figures --out docs/images --only batch-scaling --report demo.json
>>>>>>> benchplots
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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench import support
from bench.pictures import batch_scaling, context_growth, roofline, speed_accuracy
from bench.pictures.style import Size, save
from bench.steady_decode import announced, load_average

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
        with announced(name):
            report = _measured(name, options)
        file.write_text(json.dumps(report, indent=1) + "\n")
    picture = file.with_suffix(".png")
    save(FIGURES[name].draw(report["data"]), picture, report)
    return picture


def _measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    measure: Callable[[Size], dict[str, Any]] = FIGURES[name].measure
    environment = support.environment() | {"load_average": load_average()}
    dry_run, command = options.dry_run, f"python -m bench.figures --only {name}"
    if name == "batch-scaling" and options.report:
        reports = [json.loads(path.read_text()) for path in options.report]
        data = batch_scaling.from_reports(reports)
        # The machine that counts is the one that the reports are from.
        environment, dry_run = reports[0]["environment"], any(r["dry_run"] for r in reports)
        command = "; ".join(report["command"] for report in reports)
    else:
        data = measure(Size(dry_run))
    return {
        "schema": SCHEMA,
        "figure": name,
        "command": command,
        "dry_run": dry_run,
        "environment": environment,
        "data": data,
    }


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", action="append", choices=tuple(FIGURES), help="default: all")
    parser.add_argument(
        "--report", action="append", type=Path, metavar="FILE", help="of bench.end_to_end --json"
    )
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, metavar="N", help="default: torch's choice")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes")
    options = parser.parse_args(arguments)
    options.only = options.only or list(FIGURES)
    if options.report and "batch-scaling" not in options.only:
        parser.error("--report: batch-scaling is drawn from it, and is not among --only")
    if options.redraw and (options.report or options.dry_run):
        parser.error("--redraw measures and reads nothing else: no --report, no --dry-run")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
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
