"""What several commands share: options, reading files, loading the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rdkernels.models.recurrent_depth import RecurrentDepthModel

# Typer carries its own copy of click in new releases and the public one in old ones.
UsageError = typer.BadParameter.__base__

Model = Annotated[
    str, typer.Option(help="A model folder, or demo, demo-automaton or demo-chained.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: the checkpoint's.")
]
Weights = Annotated[
    str | None, typer.Option(help="int8: linear layers as int8 (CPU); default: as --dtype.")
]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those left out keep the default that the library has."""
    return {name: value for name, value in options.items() if value is not None}


def flag(option: str) -> str:
    """How an option is written on the command line."""
    return "--" + option.replace("_", "-")


def one_of(option: str, value: str, known: list[str]) -> str:
    """``value`` if it is among those ``known``."""
    if value not in known:
        expected = ", ".join(known)
        raise UsageError(f"{flag(option)}: unknown name {value!r}: expected one of {expected}")
    return value


def read_text(option: str, file: Path) -> str:
    """A UTF-8 file, or all of stdin for ``-``."""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{flag(option)} {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag(option)} {file}: not UTF-8 text") from error


def load_model(
    name: str, device: str, dtype: str | None, weights: str | None
) -> RecurrentDepthModel:
    import torch

    import rdkernels as rdk

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no usable CUDA device")
    return rdk.load_model(name, device=device, dtype=dtype, weights=weights)
