"""Tokens per second of whole decoding, sampler against sampler, through the public API.

    python -m bench.end_to_end                             # the demo model, batch 1 to 32
    python -m bench.end_to_end --model huginn --batch 1,4  # Huginn-0125's sizes, random bf16
    python -m bench.end_to_end --model huginn-small        # the same widths: 2.5 GB, fewer layers
    python -m bench.end_to_end --weights int8              # linear layers as int8
    python -m bench.end_to_end --json out.json             # tables, and the report in a file
    python -m bench.end_to_end --dry-run --json            # every path on tiny sizes, to stdout

What is timed is the steady part of a decode (bench/decode/steady_decode.py says what that is): the
pace of a long generation, neither the prefill nor the wavefront's filling and draining. The
samplers of one batch size decode in turns.

``demo``          the shipped model on its own problems, decoding on past the end of an answer, with
                  every sampler there is. Speed is worth nothing without ``agreement``. At the first
                  batch size autoregressive decoding also runs on the eager provider. Each row has
                  its share of Python (bench/decode/python_share.py).
``huginn``        3.6 10^9 random parameters, 7.1 GB. Nothing is sure to converge on random weights,
                  so the steady wavefront is enforced: FixedDepth(32) is the freeze rule, r/r' rows
                  are in flight and one token per sequence commits per outer step. Samplers that
                  verify drafts are left out: random weights confirm none, and nothing can be
                  enforced without changing what is computed.
``huginn-small``  its widths, with 1/1/1 layers and a vocabulary of 4096. A larger share of its
                  weights is outside the core block, so its bound is lower.

Before anything is timed, diffusion forcing with one row in flight has to give the tokens of
autoregressive decoding, and the random model finite logits. Exit status: 0, 1 if a check failed,
2 if there is too little memory. A target that is missed is reported, and no failure.

The JSON: ``schema`` 2, ``dry_run`` (times mean nothing then), ``weights``, ``environment``,
``notes``, ``rows`` (fields in ``bench.decode.steady_decode.Row``) and ``targets``
(``bench.decode.targets.Target``).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bench import command
from bench.command import announced
from bench.decode import python_share, targets
from bench.decode.speed_table import show
from bench.decode.steady_decode import Decoding, Row, Workload, WrongResult, take_turns
from bench.machine import environment
from bench.memory import NoRoom, expect_memory
from bench.random_models import RANDOM_MODELS, TINY, random_model, weights_bytes
from rdkernels import (
    AdaptiveDepth,
    Autoregressive,
    DiffusionForcing,
    FixedDepth,
    LosslessWavefront,
    SelfSpeculative,
    generate,
    load_model,
)
from rdkernels.evaluation.compare import Contender
from rdkernels.models.config import ModelConfig
from rdkernels.models.demo import load_problems

SCHEMA = 2
NUM_STEPS = 32
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
    yield Contender("adaptive-depth", AdaptiveDepth(NUM_STEPS))
    yield Contender("self-speculative", SelfSpeculative(NUM_STEPS))
    yield Contender("lossless-wavefront", LosslessWavefront(NUM_STEPS))
    for inner in (4, 2, 1):
        yield Contender("diffusion-forcing", DiffusionForcing(NUM_STEPS, inner_recurrence=inner))


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
    size = weights_bytes(config, weights)
    with announced(f"{name}: {size / 1e9:.1f} GB of random weights"):
        model = random_model(config, weights)
    tokens = torch.randint(config.vocab_size, (batch, 2), generator=torch.manual_seed(0))
    return Workload(name, model, tokens.tolist(), trained=False)


def check_correct(work: Workload) -> None:
    """The gate. Raises :class:`WrongResult`.

    One row in flight with all iterations in one outer step is autoregressive decoding: token for
    token, on a tiny random model in this model's dtype, and on the model itself if it is small.
    """
    alone = DiffusionForcing(8, inner_recurrence=8, max_wavefront=1, depth_limit=8)
    models = {"tiny random model": (random_model(TINY), [[1, 2, 3], [4]])}
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


def bench(
    work: Workload, batches: Sequence[int], tokens: int | None, eager: Workload | None = None
) -> list[Row]:
    """All samplers at all batch sizes; ``tokens`` per sequence in the steady part.

    ``eager``: the same on the eager provider, to compare with at the first batch size.
    """
    with announced(f"{work.name}: correctness gate"):
        check_correct(work)
    rows: list[Row] = []
    for batch in batches:
        decodings = []
        for i, contender in enumerate(contenders(work.name)):
            usual = DEMO_TOKENS if work.trained else RANDOM_TOKENS
            if i == 0 and not work.trained:
                usual = RANDOM_BASELINE_TOKENS
            decodings.append(Decoding(work, contender, batch, tokens or usual))
        baseline = decodings[0]
        if eager is not None and batch == batches[0]:
            decodings.append(Decoding(eager, baseline.contender, batch, tokens or DEMO_TOKENS))
        take_turns(decodings)
        rows += [_with_share(decoding, decoding.row(baseline)) for decoding in decodings]
    return rows


def _with_share(decoding: Decoding, row: Row) -> Row:
    """The share of Python, where a step is short enough for it to matter."""
    if not decoding.work.trained or row.backend == "eager":
        return row
    steps, turns = python_share.STEPS, python_share.TURNS
    if decoding.work.most_decodes < turns:  # a dry run
        steps, turns = 4, 1
    model, sampler = decoding.work.model, decoding.contender.sampler
    share = python_share.measure(model, decoding.prompts, sampler, steps, turns)
    return dataclasses.replace(row, python_share_least=share.least, python_share_most=share.most)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The report of one command."""
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "command": options.command,
        "dry_run": options.dry_run,
        "weights": options.weights,
        "environment": environment(),
        "notes": ["dry run: tiny sizes, the times mean nothing"] if options.dry_run else [],
        "rows": [],
    }
    for name in options.model:
        config = RANDOM_MODELS.get(name)
        if config is not None:
            config = TINY if options.dry_run else config
            expect_memory(weights_bytes(config, options.weights))
        batches = options.batch or BATCHES.get(name, RANDOM_BATCHES)
        work = workload(name, config, max(batches), options.weights)
        if options.dry_run:
            work = dataclasses.replace(work, most_decodes=2)
        eager = None
        if config is None:
            model = load_model(name, weights=options.weights, backend="eager")
            eager = dataclasses.replace(work, model=model)
        report["notes"].append(f"{name}: {DEMO_NOTE if work.trained else RANDOM_NOTE}")
        rows = bench(work, batches, options.tokens, eager)
        report["rows"] += map(dataclasses.asdict, rows)
        del work, eager  # before the next model is made
    found = targets.find(report["rows"], decided=not options.dry_run)
    return report | {"targets": [dataclasses.asdict(target) for target in found]}


def _counts(text: str) -> tuple[int, ...]:
    return tuple(command.count(part) for part in text.split(","))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser, models = command.parser_of("end_to_end", __doc__), ("demo", *RANDOM_MODELS)
    add = parser.add_argument
    every = "may be repeated (default: demo; all in a dry run)"
    add("--model", action="append", choices=models, help=every)
    sequences = "sequences (demo: 1 to 32; random: 1,4)"
    add("--batch", type=_counts, metavar="N,N", help=sequences)
    tokens = "per sequence in the steady part (demo: 40; random: 8, autoregressive 2)"
    add("--tokens", type=command.count, metavar="N", help=tokens)
    add("--weights", choices=("int8",), help="linear layers; default: bf16")
    command.add_json(parser)
    options = command.parse(parser, arguments)
    if options.model is None:
        options.model = ["demo"] if not options.dry_run else list(models)
    if options.dry_run:
        options.batch, options.tokens = options.batch or (1, 2), options.tokens or 3
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        report = run(options)
    except (WrongResult, NoRoom) as error:
        print(f"end_to_end: {error}; nothing is reported", file=sys.stderr)
        return 2 if isinstance(error, NoRoom) else 1
    command.deliver(report, options.json, show)
    return 0


if __name__ == "__main__":
    sys.exit(main())
