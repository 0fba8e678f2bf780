"""``rdkernels score``: how likely a model finds given continuations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rdkernels.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    UsageError,
    Weights,
    given,
    load_model,
    read_text,
)

if TYPE_CHECKING:
    from rdkernels.evaluation.score import Score

_FIELDS = ("prompt", "continuation")


def score(
    model: Model,
    pairs: Annotated[
        Path,
        typer.Option(
            help='JSON lines {"prompt": ..., "continuation": ...}, text or token ids; - is stdin.'
        ),
    ],
    num_steps: Annotated[int, typer.Option(min=1, help="Iterations of every position, r.")] = 32,
    initial_state_scale: Annotated[float, typer.Option(help="0: zero initial states.")] = 1.0,
    slots: Annotated[
        int | None,
        typer.Option(help="Token by token with so many K/V slots, as autoregressive decoding."),
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="Positions computed at a time.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the initial states.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Log-likelihood of given continuations: a line per pair."""
    import rdkernels as rdk

    records = _records(pairs)
    loaded = load_model(model, device, dtype, weights)
    found = rdk.score(
        loaded,
        [record["prompt"] for record in records],
        [record["continuation"] for record in records],
        num_steps=num_steps,
        seed=seed,
        initial_state_scale=initial_state_scale,
        slots=slots,
        **given(max_rows=max_rows),
    )
    if as_json:
        scores = [record | _to_json(result) for record, result in zip(records, found, strict=True)]
        print(json.dumps({"model": model, "num_steps": num_steps, "scores": scores}))
        return
    for record, result in zip(records, found, strict=True):
        greedy = f"{sum(result.greedy)}/{len(result.greedy)}"
        continuation = record["continuation"]
        text = continuation if isinstance(continuation, str) else " ".join(map(str, continuation))
        print(f"{result.log_prob:10.4f}  greedy {greedy:>7}  {text}")


def _records(file: Path) -> list[dict[str, Any]]:
    """The pairs of a file of JSON lines; names the line that is none."""
    records = []
    for number, line in enumerate(read_text("pairs", file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"--pairs {file}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where}: not JSON: {error}") from error
        for name in _FIELDS:
            value = record.get(name) if isinstance(record, dict) else None
            if not isinstance(value, str | list):
                raise UsageError(f"{where}: expected {name!r} as text or a list of token ids")
        records.append({name: record[name] for name in _FIELDS})
    if not records:
        raise UsageError(f"--pairs {file}: expected at least one pair")
    return records


def _to_json(result: Score) -> dict[str, Any]:
    return {
        "log_prob": result.log_prob,
        "is_greedy": result.is_greedy,
        "tokens": result.tokens,
        "log_probs": result.log_probs,
        "greedy": result.greedy,
    }
