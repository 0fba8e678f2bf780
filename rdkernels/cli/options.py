"""What several commands share: options, reading files, loading the model."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from rdkernels.errors import RdkernelsError

if TYPE_CHECKING:
    from rdkernels.models.recurrent_depth import RecurrentDepthModel

_Command = TypeVar("_Command", bound=Callable[..., None])


class UsageError(RdkernelsError):
    """What was asked for on the command line does not fit together."""


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


class Choice(NamedTuple):
    """An option that a command passes on only if it is given: its default lives in the library."""

    name: str
    kind: Any  # bool, int, float, str or list[str]
    panel: str
    help: str

    def parameter(self) -> inspect.Parameter:
        """The option as typer reads it from a signature; None where it is not given."""
        option = typer.Option(help=self.help, rich_help_panel=self.panel, show_default=False)
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[self.kind | None, option],
        )


def takes(*choices: Choice) -> Callable[[_Command], _Command]:
    """Let a command that ends in ``**options`` have these, before its own keyword-only ones."""

    def add(command: _Command) -> _Command:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        first = [p for p in own if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        last = [p for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY]
        added = [choice.parameter() for choice in choices]
        signature = inspect.Signature([*first, *added, *last])
        vars(command)["__signature__"] = signature  # where inspect looks first
        return command

    return add


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
