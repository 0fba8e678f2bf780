"""``rdkernels env``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from rdkernels.cli.options import Json, UsageError


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
    from rdkernels import diagnostics, dtypes
    from rdkernels.cli.ui.tables import environment_view, ops_view

    if dtype not in dtypes.BY_NAME:
        known = ", ".join(dtypes.BY_NAME)
        raise UsageError(f"unknown dtype {dtype!r}: expected one of {known}")
    found = diagnostics.report(device, dtypes.BY_NAME[dtype])
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        Console().print(ops_view(found.ops) if ops else environment_view(found))
