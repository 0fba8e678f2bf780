"""What the commands share: options, progress, tables and reports."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def count(text: str) -> int:
    """An option's value of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def parser_of(name: str, about: str | None) -> argparse.ArgumentParser:
    """A parser of ``python -m bench.NAME``, with ``--dry-run`` and ``--threads``.

    ``about`` is the module's docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="every path on tiny sizes")
    parser.add_argument("--threads", type=count, metavar="N", help="default: torch's choice")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, ``command`` among them: the command line as it was given."""
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    options.command = " ".join([parser.prog, *given])
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return options


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="the report as JSON, in a file beside the tables or (no FILE) alone on stdout",
    )


def deliver(report: dict[str, Any], to: str | None, show: Callable[[dict[str, Any]], None]) -> None:
    """A report as ``--json`` asks for it; ``show`` prints it for people."""
    if to == "-":
        print(json.dumps(report))
        return
    if to is not None:
        write_json(Path(to), report)
    show(report)


def write_json(file: Path, report: dict[str, Any]) -> None:
    file.write_text(json.dumps(report, indent=1) + "\n")


def say(message: str) -> None:
    """A line of progress."""
    print(f"bench: {message}", file=sys.stderr, flush=True)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    say(f"{what} ...")
    began = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - began:.1f} s")


def console() -> Console:
    """As wide as the terminal, or wide enough for every table."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def show_environment(environment: dict[str, Any], notes: Sequence[str] = ()) -> None:
    for key, value in environment.items():
        console().print(f"{key}: {value if not isinstance(value, float) else f'{value:.2f}'}")
    for note in notes:
        console().print(note, soft_wrap=True)


def show_table(
    title: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str | None = None,
) -> None:
    """Print a table: the first column to the left, all others to the right."""
    table = Table(title=title, caption=caption)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    console().print(table)
