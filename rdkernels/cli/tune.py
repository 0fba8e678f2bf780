"""``rdkernels tune``: the fastest setting of diffusion forcing that stays accurate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rdkernels.cli.options import (
    Choice,
    Device,
    Dtype,
    Json,
    Model,
    UsageError,
    Weights,
    flag,
    given,
    load_model,
    one_of,
    takes,
)

GRID_HELP = {
    "exit_threshold": "Relative change of a settled row",
    "inner_recurrence": "Iterations per outer step",
    "noise": "State noise",
    "max_wavefront": "Most rows in flight",
    "headway": "Rows added per outer step",
}


@takes(
    *(
        Choice(name, str, "Grid", f"{text}; values with commas between.")
        for name, text in GRID_HELP.items()
    )
)
def tune(
    model: Model,
    problems: Annotated[
        Path | None,
        typer.Option(help="Problems as in problems.json; default: the model folder's."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first so many.")] = None,
    num_steps: Annotated[int, typer.Option(min=1, help="Iterations of the baseline, r.")] = 32,
    tolerance: Annotated[
        float, typer.Option(help="Points of accuracy (percent) that may be lost.")
    ] = 1.0,
    by: Annotated[str, typer.Option(help="Fastest by time (here) or by iterations.")] = "time",
    batch_size: Annotated[int, typer.Option(min=1, help="Problems answered at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Of initial states and noise.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    weights: Weights = None,
    plot: Annotated[Path | None, typer.Option(help="File for a picture.")] = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Sweep settings of diffusion forcing; recommend the fastest that stays accurate."""
    from rdkernels import plots
    from rdkernels.cli.ui.progress import ComparisonProgress
    from rdkernels.cli.ui.tables import tuning_view
    from rdkernels.evaluation.tune import SPEEDS, Grid, tune
    from rdkernels.models.checkpoint import default_stop_tokens
    from rdkernels.models.demo import load_problems

    lists = {name: _numbers(name, text) for name, text in given(**options).items()}
    grid = Grid(**lists)
    one_of("by", by, list(SPEEDS))
    if not 0.0 <= tolerance <= 100.0:
        raise UsageError(f"--tolerance: expected 0 to 100 points, got {tolerance:g}")
    if plot is not None:
        plots.check_file(plot)
    held_out = load_problems(model, limit, problems)
    answers = (1 + len(grid.samplers(num_steps))) * len(held_out)
    loaded = load_model(model, device, dtype, weights)
    with ComparisonProgress(answers) as progress:
        found = tune(
            loaded,
            held_out,
            num_steps=num_steps,
            grid=grid,
            tolerance=tolerance / 100,
            by=by,
            batch_size=batch_size,
            seed=seed,
            stop_tokens=default_stop_tokens(model),
            observer=progress,
        )
    if plot is not None:
        try:
            plots.front(found).savefig(plot, dpi=160)
        except OSError as error:
            raise UsageError(f"--plot {plot}: {error.strerror}") from error
    if as_json:
        settings = {"model": model, "device": device, "num_steps": num_steps, "seed": seed}
        settings["batch_size"] = batch_size
        print(json.dumps({**settings, "problems": len(held_out), **found.to_json()}))
        return
    Console().print(tuning_view(found))
    if (best := found.recommended) is not None:  # one line, to be copied
        print(" ", *(f"{flag(name)} {value:g}" for name, value in best.options.items()))


def _numbers(option: str, text: str) -> tuple[Any, ...]:
    """``1,2,4`` as numbers; whole ones stay whole, for options that count."""
    try:
        parts = [part.strip() for part in text.split(",")]
        return tuple(int(part) if part.isdigit() else float(part) for part in parts)
    except ValueError:
        raise UsageError(
            f"{flag(option)}: expected numbers with commas between, got {text!r}"
        ) from None
