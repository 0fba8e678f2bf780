"""``rdkernels env``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rdkernels.cli.options import Json, UsageError

_OP_DTYPES = ("float32", "bfloat16", "float16", "float64")


def env(
    ops: Annotated[
        bool, typer.Option("--ops", help="For every op: who serves it, and why not the others.")
    ] = False,
    device: Annotated[str, typer.Option(help="Of --ops: cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of --ops: float32, bfloat16, float16 or float64.")
    ] = "bfloat16",
    as_json: Json = False,
) -> None:
    """Versions, GPUs, and which providers can serve here or why they cannot."""
    import torch

    from rdkernels import diagnostics
    from rdkernels.cli.ui.tables import environment_view, ops_view

    dtypes = {name: getattr(torch, name) for name in _OP_DTYPES}
    if dtype not in dtypes:
        raise UsageError(f"unknown dtype {dtype!r}: expected one of {', '.join(dtypes)}")
    found = diagnostics.report(device, dtypes[dtype])
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        Console().print(ops_view(found.ops) if ops else environment_view(found))
