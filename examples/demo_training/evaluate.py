"""Accuracy and cost of a demo model against its number of iterations, measured through rdkernels.

    python -m examples.demo_training.evaluate --model demo-automaton --problems 104

Autoregressive decoding at r = 1, 2, 4, 8, 16, 32 and diffusion forcing at r' = 1, 2, 4, on held-out
problems. ``--by-steps`` splits an automaton's accuracy by the step count K of its problems;
``--trade-offs`` adds exit thresholds and headways of diffusion forcing.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

import rdkernels
from rdkernels.cli.ui.progress import ComparisonProgress
from rdkernels.cli.ui.tables import comparison_table
from rdkernels.errors import RdkernelsError
from rdkernels.evaluation.compare import Contender, compare, contenders
from rdkernels.models.demo import Problem, load_problems
from rdkernels.samplers import DiffusionForcing


class _ByProblem(ComparisonProgress):
    """Also keeps whether each contender answered each problem."""

    def __init__(self, answers: int) -> None:
        super().__init__(answers)
        self.correct: dict[str, list[bool]] = defaultdict(list)

    def end(
        self, contender: Contender, correct: Sequence[bool], tokens: Sequence[Sequence[int]]
    ) -> None:
        super().end(contender, correct, tokens)
        self.correct[contender.label] += correct


def automaton_steps(problem: Problem) -> int | None:
    """K of an automaton problem, None for any other."""
    word = problem.prompt.split()[2]
    return int(word[1:]) if word[:1] == "t" and word[1:].isdigit() else None


def trade_offs() -> list[Contender]:
    """Diffusion forcing over r', exit threshold and headway."""
    return [
        Contender(
            f"eps={threshold:g} headway={headway}",
            DiffusionForcing(inner_recurrence=inner, exit_threshold=threshold, headway=headway),
        )
        for headway in (1, 2, 8)
        for inner in (4, 2, 1)
        for threshold in (0.003, 0.03, 0.3, 0.6, 1.0)
    ]


def by_steps_table(problems: Sequence[Problem], correct: dict[str, list[bool]]) -> Table:
    """Exact match per contender (lines) and K (columns)."""
    steps = [automaton_steps(problem) for problem in problems]
    counts = sorted({count for count in steps if count is not None})
    table = Table("sampler", *(f"K={count}" for count in counts), title="exact match by K")
    for label, answers in correct.items():
        shares = []
        for count in counts:
            chosen = [right for right, k in zip(answers, steps, strict=True) if k == count]
            shares.append(f"{sum(chosen) / len(chosen):.0%}")
        table.add_row(label, *shares)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo-automaton", help="a demo name or a folder")
    parser.add_argument("--problems", type=int, default=104)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="one is fastest at this size")
    parser.add_argument(
        "--by-steps", action="store_true", help="split an automaton's accuracy by K"
    )
    parser.add_argument(
        "--trade-offs", action="store_true", help="also vary the exit threshold and the headway"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        problems = load_problems(arguments.model, arguments.problems)
        model = rdkernels.load_model(arguments.model)
    except RdkernelsError as error:
        parser.error(str(error))
    if arguments.by_steps and any(automaton_steps(problem) is None for problem in problems):
        parser.error("--by-steps: these are not automaton problems")
    entrants = contenders(sweep=True) + (trade_offs() if arguments.trade_offs else [])
    with _ByProblem(len(problems) * len(entrants)) as progress:
        rows = compare(
            model, problems, entrants, batch_size=arguments.batch_size, observer=progress
        )
    console = Console()
    console.print(comparison_table(entrants, rows))
    if arguments.by_steps:
        console.print(by_steps_table(problems, progress.correct))


if __name__ == "__main__":
    main()
