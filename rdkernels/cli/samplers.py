"""Samplers and sampling by the names and options of the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rdkernels.cli.options import UsageError, flag, given, one_of

if TYPE_CHECKING:
    from rdkernels.samplers import FreezeRule, Sampler

SHORT_NAMES = {
    "diffusion": "diffusion-forcing",
    "adaptive": "adaptive-depth",
    "speculative": "self-speculative",
    "lossless": "lossless-wavefront",
}
FREEZE_RULES = ("converged-prefix", "last-converged", "fixed-depth", "token-stable")


def full_name(name: str) -> str:
    """The sampler's name without abbreviation; refuses a name that no sampler has."""
    from rdkernels.samplers import SAMPLERS

    name = SHORT_NAMES.get(name, name)
    return one_of("sampler", name, list(SAMPLERS))


def option_names() -> list[str]:
    """The options of all samplers."""
    from rdkernels.samplers import SAMPLERS

    found = (field.name for kind in SAMPLERS.values() for field in fields(kind))
    return list(dict.fromkeys(found))


def build(name: str, options: dict[str, Any]) -> Sampler:
    """The sampler called ``name`` with those options that are not None.

    Refuses options that this sampler does not have.
    """
    from rdkernels.samplers import SAMPLERS

    name, chosen = full_name(name), given(**options)
    known = {kind: {field.name for field in fields(SAMPLERS[kind])} for kind in SAMPLERS}
    for option in chosen:
        if option not in known[name]:
            owners = ", ".join(kind for kind in known if option in known[kind])
            raise UsageError(
                f"{flag(option)} does not apply to the {name} sampler: it is an option of {owners}"
            )
    if "freeze_rule" in chosen:
        chosen["freeze_rule"] = _freeze_rule(chosen["freeze_rule"], options["num_steps"])
    return SAMPLERS[name](**chosen)


def _freeze_rule(name: str, num_steps: int | None) -> FreezeRule:
    from rdkernels.samplers import ConvergedPrefix, FixedDepth, LastConverged, TokenStable

    one_of("freeze_rule", name, list(FREEZE_RULES))
    fixed = FixedDepth(**given(num_steps=num_steps))
    rules = (ConvergedPrefix(), LastConverged(), fixed, TokenStable())
    return dict(zip(FREEZE_RULES, rules, strict=True))[name]


def logit_bias(entries: list[str] | None) -> dict[int, float] | None:
    """``TOKEN=BIAS`` entries as a mapping; None for none."""
    biases: dict[int, float] = {}
    for entry in entries or []:
        token, equals, bias = entry.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"--logit-bias: expected TOKEN=BIAS such as 17=-inf, got {entry!r}")
    return biases or None


def plain(value: Any) -> Any:
    """An option as JSON has it; a freeze rule is named by its class."""
    simple = value is None or isinstance(value, bool | int | float | str)
    return value if simple else type(value).__name__


def to_json(sampler: Sampler) -> dict[str, Any]:
    """Every option of a sampler."""
    return {field.name: plain(getattr(sampler, field.name)) for field in fields(sampler)}
