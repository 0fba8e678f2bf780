"""Tokens per second of whole decoding, sampler against sampler, through the public API.

    python -m bench.end_to_end                             # the demo model, batch 1 to 32
    python -m bench.end_to_end --model huginn --batch 1,4  # Huginn-0125's sizes, random bf16
    python -m bench.end_to_end --model huginn-small        # the same widths: 2.5 GB, fewer layers
    python -m bench.end_to_end --weights int8              # linear layers as int8
    python -m bench.end_to_end --model huginn --stages     # create, save, load and decode instead
    python -m bench.end_to_end --dry-run --json            # every path on tiny sizes

What is timed is the steady part of a decode (bench/steady_decode.py says what that is): the pace of
a long generation, neither the prefill nor the wavefront's filling and draining.

``demo``          the shipped model on its own problems, decoding on past the end of an answer:
                  autoregressive decoding, adaptive depth, and diffusion forcing that commits what
                  has converged. Speed is worth nothing without ``agreement``.
``huginn``        3.6 10^9 random parameters, 7.1 GB. Nothing is sure to converge on random weights,
                  so the steady wavefront is enforced: FixedDepth(32) is the freeze rule, r/r' rows
                  are in flight and one token per sequence commits per outer step.
``huginn-small``  its widths, with 1/1/1 layers and a vocabulary of 4096. A larger share of its
                  weights is outside the core block, so its bound is lower.

Before anything is timed, diffusion forcing with one row in flight has to give the tokens of
autoregressive decoding, and the random model finite logits. Exit status: 0, 1 if a check failed,
2 if there is too little memory.

The JSON: ``schema`` 1, ``dry_run`` (times mean nothing then), ``weights``, ``environment``,
``notes`` and ``rows`` (fields in ``bench.steady_decode.Row``) or ``stages``
(``bench.checkpoint_stages.Stage``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench import checkpoint_stages, support
from bench.gpu.random_model import random_model
from bench.gpu.session import HUGINN, TINY, Session
from bench.steady_decode import Row, Workload, WrongResult, announced, load_average, measure
from rdkernels import Autoregressive, DiffusionForcing, FixedDepth, generate, load_model
from rdkernels.comparison import Contender
from rdkernels.models.checkpoint import expected_shapes
from rdkernels.models.config import ModelConfig
from rdkernels.models.demo import load_problems
from rdkernels.models.recurrent_depth import RecurrentDepthModel

SCHEMA = 1
NUM_STEPS = 32
RANDOM_MODELS = {
    "huginn": HUGINN,
    "huginn-small": dataclasses.replace(
        HUGINN, prelude_layers=1, core_layers=1, coda_layers=1, vocabulary=4096
    ),
}
BATCHES = {"demo": (1, 2, 4, 8, 16, 32)}
RANDOM_BATCHES = (1, 4)
DEMO_TOKENS, RANDOM_TOKENS = 40, 8
RANDOM_BASELINE_TOKENS = 2  # a token of autoregressive decoding costs as much as six outer steps
DEMO_NOTE = "trained weights: what has converged commits; same = tokens that are autoregressive's"
RANDOM_NOTE = (
    "random weights: the steady wavefront is enforced (FixedDepth(32)), one token per sequence "
    "commits per outer step; whether trained weights converge at this pace is not measured here"
)


def contenders(model: str) -> Iterator[Contender]:
    """The samplers of one model; the first is the baseline."""
    yield Contender("autoregressive", Autoregressive(NUM_STEPS))
    if model in RANDOM_MODELS:
        forced = DiffusionForcing(NUM_STEPS, inner_recurrence=4, freeze_rule=FixedDepth(NUM_STEPS))
        yield Contender("diffusion-forcing", forced)
        return
    adaptive = DiffusionForcing(
        NUM_STEPS, inner_recurrence=1, max_wavefront=1, momentum=0.0, depth_limit=NUM_STEPS
    )
    yield Contender("adaptive-depth", adaptive)
    for inner in (4, 2, 1):
        yield Contender("diffusion-forcing", DiffusionForcing(NUM_STEPS, inner_recurrence=inner))


def weights_bytes(config: ModelConfig) -> int:
    """Of a bf16 model of this config."""
    shapes = expected_shapes(config)
    if config.tie_embeddings:
        del shapes["lm_head.weight"]
    return 2 * sum(math.prod(shape) for shape in shapes.values())


def create_random(config: ModelConfig, weights: str | None = None) -> RecurrentDepthModel:
    """Random bf16 weights (or int8 ones), made tensor by tensor: no second copy of anything."""
    return random_model(dataclasses.replace(Session.dry(), config=config), weights)


def workload(
    name: str, config: ModelConfig | None, batch: int, weights: str | None = None
) -> Workload:
    """The model, and prompts for ``batch`` sequences."""
    if config is None:
        # The longest answers: as much as possible of what is decoded is what it was trained for.
        problems = sorted(load_problems(name), key=lambda problem: -len(problem.answer))
        model = load_model(name, weights=weights)
        prompts = [model.tokenizer.encode(problem.prompt) for problem in problems[:batch]]
        if len(prompts) < batch:
            raise ValueError(f"{name}: {len(prompts)} problems for a batch of {batch}")
        return Workload(name, model, prompts, trained=True)
    size = weights_bytes(config)
    with announced(f"{name}: {size / 1e9:.1f} GB of random weights"):
        model = create_random(config, weights)
    tokens = torch.randint(config.vocabulary, (batch, 2), generator=torch.manual_seed(0))
    return Workload(name, model, tokens.tolist(), trained=False)


def check_correct(work: Workload) -> None:
    """The gate. Raises :class:`WrongResult`.

    One row in flight with all iterations in one outer step is autoregressive decoding: token for
    token, on a tiny random model in this model's dtype, and on the model itself if it is small.
    """
    alone = DiffusionForcing(8, inner_recurrence=8, max_wavefront=1, depth_limit=8)
    models = {"tiny random model": (create_random(TINY), [[1, 2, 3], [4]])}
    if work.trained:
        models[work.name] = (work.model, work.prompts[:2])
    else:
        _expect_finite(work)
    for name, (model, prompts) in models.items():
        options: dict[str, Any] = {"max_new_tokens": 12}
        wanted = generate(model, prompts, sampler=Autoregressive(8), **options).tokens
        got = generate(model, prompts, sampler=alone, **options).tokens
        if got != wanted:
            raise WrongResult(
                f"{name}: diffusion forcing with one row gives {got}, autoregressive {wanted}"
            )


def _expect_finite(work: Workload) -> None:
    logits, _ = work.model.forward(torch.tensor(work.prompts[:1]), num_steps=2)
    if not logits.isfinite().all():
        raise WrongResult(f"{work.name}: logits that are not finite")


def bench(work: Workload, batches: Sequence[int], tokens: int | None) -> list[Row]:
    """All samplers at all batch sizes; ``tokens`` per sequence in the steady part."""
    with announced(f"{work.name}: correctness gate"):
        check_correct(work)
    rows: list[Row] = []
    for batch in batches:
        baseline = None
        for contender in contenders(work.name):
            usual = DEMO_TOKENS if work.trained else RANDOM_TOKENS
            if baseline is None and not work.trained:
                usual = RANDOM_BASELINE_TOKENS
            result = measure(work, contender, batch, tokens or usual, baseline)
            baseline = baseline or result
            rows.append(result[0])
    return rows


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report of one command."""
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "dry_run": options.dry_run,
        "weights": options.weights,
        "environment": support.environment() | {"load_average": load_average()},
        "notes": ["dry run: tiny sizes, the times mean nothing"] if options.dry_run else [],
        "rows": [],
        "stages": [],
    }
    for name in options.model:
        config = RANDOM_MODELS.get(name)
        if config is not None:
            config = TINY if options.dry_run else config
            checkpoint_stages.expect_memory(weights_bytes(config))
        if options.stages:
            stages = checkpoint_stages.run(lambda c=config: create_random(c), weights_bytes(config))
            report["stages"] += [{"model": name, **stage.to_json()} for stage in stages]
            continue
        batches = options.batch or BATCHES.get(name, RANDOM_BATCHES)
        work = workload(name, config, max(batches), options.weights)
        if options.dry_run:
            work = dataclasses.replace(work, most_decodes=2)
        report["notes"].append(f"{name}: {DEMO_NOTE if work.trained else RANDOM_NOTE}")
        report["rows"] += [row.to_json() for row in bench(work, batches, options.tokens)]
        del work  # before the next model is made
    return report


def show(report: dict[str, Any]) -> None:
    """The report for people."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for key, value in report["environment"].items():
        console.print(f"{key}: {value if not isinstance(value, float) else f'{value:.2f}'}")
    for note in report["notes"]:
        console.print(note, soft_wrap=True)
    for model in dict.fromkeys(row["model"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["model"] == model]
        console.print(_speed_table(model, rows))
    if report["stages"]:
        console.print(_stage_table(report["stages"]))


def _speed_table(model: str, rows: list[dict[str, Any]]) -> Table:
    caption = "GB/s of weights: the core block's, all that are read, and a plain read (measured)"
    table = Table(title=model, caption=caption)
    table.add_column("sampler", no_wrap=True)
    headers = ("batch", "rows", "tokens/s", "ms/step", "iterations", "per token")
    for header in (*headers, "core", "all", "read", "speedup", "bound", "same", "load"):
        table.add_column(header, justify="right")
    for row in rows:
        same, load = row["agreement"], row["load_average"]
        table.add_row(
            f"{row['sampler'].replace('-', ' ')} {row['inner_recurrence']}",
            str(row["batch"]),
            f"{row['rows_per_step']:.1f}",
            f"{row['tokens_per_second']:.4g}",
            f"{row['median_step_seconds'] * 1e3:.4g}",
            str(row["core_iterations"]),
            f"{row['core_iterations_per_token']:.2f}",
            *(f"{row[f'{of}_gb_per_s']:.1f}" for of in ("core", "weights", "read_bandwidth")),
            f"{row['speedup']:.2f}",
            f"{row['speedup_bound']:.2f}",
            "" if same is None else f"{same:.0%}",
            "" if load is None else f"{load:.1f}",
        )
    return table


def _stage_table(stages: list[dict[str, Any]]) -> Table:
    table = Table(caption="GB; peak: resident, with pages of mapped files; anonymous: at the end")
    for header in ("model", "stage", "seconds", "peak", "anonymous", "weights"):
        table.add_column(header, justify="left" if header in ("model", "stage") else "right")
    for stage in stages:
        sizes = (stage[f"{key}_bytes"] for key in ("peak_rss", "anonymous", "weights"))
        shown = ("unknown" if size is None else f"{size / 1e9:.2f}" for size in sizes)
        table.add_row(stage["model"], stage["stage"], f"{stage['seconds']:.1f}", *shown)
    return table


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = ("demo", *RANDOM_MODELS)
    parser.add_argument(
        "--model",
        action="append",
        choices=models,
        help="may be repeated (default: demo; all in a dry run)",
    )
    parser.add_argument(
        "--batch", type=_counts, metavar="N,N", help="sequences (demo: 1 to 32; random: 1,4)"
    )
    parser.add_argument("--threads", type=_count, metavar="N", help="default: torch's choice")
    parser.add_argument(
        "--tokens",
        type=_count,
        metavar="N",
        help="per sequence in the steady part (demo: 40; random: 8, autoregressive 2)",
    )
    parser.add_argument("--weights", choices=("int8",), help="linear layers; default: bf16")
    parser.add_argument("--stages", action="store_true", help="of a random checkpoint, no speeds")
    parser.add_argument("--dry-run", action="store_true", help="every path on tiny sizes")
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.model is None:
        options.model = ["demo"] if not options.dry_run else list(models)
        if options.stages:
            options.model = list(RANDOM_MODELS) if options.dry_run else ["huginn"]
    if options.stages and "demo" in options.model:
        parser.error("--stages: of random checkpoints only (--model huginn or huginn-small)")
    if options.stages and options.weights is not None:
        parser.error("--stages: of bf16 checkpoints only")
    if options.dry_run:
        options.batch, options.tokens = options.batch or (1, 2), options.tokens or 3
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        report = run(options)
    except (WrongResult, checkpoint_stages.NoRoom) as error:
        print(f"end_to_end: {error}; nothing is reported", file=sys.stderr)
        return 2 if isinstance(error, checkpoint_stages.NoRoom) else 1
    if options.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
