"""The ``rdkernels`` command: demo, generate, score, tune, env; a module each.

stdout carries the result (with ``--json`` one JSON object and nothing else), stderr the progress.
Bad input ends with one line and exit status 2. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import sys

import typer

from rdkernels.cli.demo import demo
from rdkernels.cli.env import env
from rdkernels.cli.generate import generate
from rdkernels.cli.score import score
from rdkernels.cli.tune import tune
from rdkernels.errors import RdkernelsError

app = typer.Typer(
    name="rdkernels",
    help="Fast generation with recurrent-depth language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, generate, score, tune, env):
    app.command()(command)

_INTERRUPTED = 130  # what shells report for Ctrl-C


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; always ends the process with an exit status."""
    try:
        status = app(arguments, standalone_mode=False)
    except typer.TyperException as error:
        _fail(error.format_message())
    except RdkernelsError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    print("rdkernels: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
