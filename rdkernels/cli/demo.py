"""``rdkernels demo``: samplers side by side on held-out problems."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rdkernels.cli.options import Device, Dtype, Json, Weights, load_model

if TYPE_CHECKING:
    from rdkernels.evaluation.compare import Contender
    from rdkernels.evaluation.observer import Observer
    from rdkernels.models.demo import Problem
    from rdkernels.models.recurrent_depth import RecurrentDepthModel


def demo(
    model: Annotated[
        str,
        typer.Option(help="demo, demo-automaton, demo-chained, or a folder with problems.json."),
    ] = "demo",
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems to answer.")] = 20,
    num_steps: Annotated[int, typer.Option(min=1, help="Iterations per token, r.")] = 32,
    inner_recurrence: Annotated[
        int, typer.Option(min=1, help="Iterations per outer step of diffusion forcing, r'.")
    ] = 4,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="All samplers; also r = 1, 2, 4, 8, 16, 32, r' = 1, 2, 4."),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Problems answered at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the initial states.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    weights: Weights = None,
    live: Annotated[bool, typer.Option(help="Show the wavefront while it moves.")] = True,
    as_json: Json = False,
) -> None:
    """Answer held-out problems with several samplers; compare accuracy, iterations and speed."""
    from rdkernels.cli.ui.tables import comparison_table
    from rdkernels.evaluation.compare import compare, contenders
    from rdkernels.models.demo import load_problems

    held_out = load_problems(model, limit=problems)
    loaded = load_model(model, device, dtype, weights)
    entrants = contenders(num_steps, inner_recurrence, sweep)
    with _observer(loaded, entrants, held_out, live and not sweep and not as_json) as observer:
        results = compare(
            loaded, held_out, entrants, batch_size=batch_size, seed=seed, observer=observer
        )
    if as_json:
        settings = {"model": model, "device": device, "batch_size": batch_size, "seed": seed}
        print(json.dumps({**settings, "rows": [result.to_json() for result in results]}))
    else:
        Console().print(comparison_table(entrants, results))


def _observer(
    model: RecurrentDepthModel, entrants: list[Contender], problems: list[Problem], live: bool
) -> Observer:
    from rdkernels.cli.ui.panes import LiveObserver
    from rdkernels.cli.ui.progress import ComparisonProgress
    from rdkernels.cli.ui.stream import decoder

    console = Console()
    if live and console.is_terminal:
        return LiveObserver(console, entrants, decoder(model.tokenizer), len(problems))
    return ComparisonProgress(len(entrants) * len(problems))
