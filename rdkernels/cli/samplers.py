"""Samplers and sampling by the names and options of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from rdkernels.cli.options import Choice, UsageError, flag, given, one_of
from rdkernels.samplers import (
    SAMPLERS,
    ConvergedPrefix,
    FixedDepth,
    FreezeRule,
    LastConverged,
    Sampler,
    Sampling,
    TokenStable,
)

SHORT_NAMES = {
    "diffusion": "diffusion-forcing",
    "adaptive": "adaptive-depth",
    "speculative": "self-speculative",
    "lossless": "lossless-wavefront",
}
FREEZE_RULES = ("converged-prefix", "last-converged", "fixed-depth", "token-stable")

# The help of every field of every sampler, by panel, in the order in which it is shown.
SAMPLER_HELP = {
    "Every sampler": {
        "num_steps": "Iterations per token, r.",
        "initial_state_scale": "0: zero initial states.",
        "slots": "K/V slots per core layer; 1: shared.",
        "continuous_compute": "Start rows from the state before them, not from fresh ones.",
    },
    "Diffusion forcing": {
        "inner_recurrence": "Iterations per outer step, r'.",
        "exit_threshold": "Relative change of a settled row.",
        "noise": "State noise, beta.",
        "noise_schedule": "How noise falls with depth.",
        "momentum": "Of the input embedding, eta.",
        "headway": "Rows added per outer step.",
        "max_wavefront": "Most rows in flight per sequence.",
        "depth_limit": "Depth at which a row settles anyway.",
        "freeze_rule": "One of " + ", ".join(FREEZE_RULES),
        "inner_exit_threshold": "Hold rows that one iteration moves by less.",
        "full_prefill": "Whether prompts have all iterations before decoding starts.",
    },
    "Adaptive depth": {
        "criterion": "What an exit is decided by; also of diffusion forcing.",
        "threshold": "Of the criterion; default: its own.",
        "min_steps": "Iterations before the first exit.",
        "check_interval": "Iterations from check to check.",
    },
    "Speculative and lossless": {
        "draft_steps": "Speculative: iterations of a draft.",
        "draft_length": "Speculative: rows per verification.",
        "draft_depth": "Lossless: iterations before a row starts the next.",
    },
}
SAMPLING_HELP = {
    "Sampling": {
        "temperature": "0: greedy.",
        "top_k": "Keep the k likeliest tokens; 0: all.",
        "top_p": "Keep this probability mass; 1: all.",
        "min_p": "Keep tokens above this share of the best.",
        "repetition_penalty": "Makes tokens that have occurred less likely; 1: does not.",
        "logit_bias": "TOKEN=BIAS, an id and a number or -inf; repeatable.",
    },
}


def choices() -> list[Choice]:
    """The command line's options of all samplers, then those of :class:`rdkernels.Sampling`."""
    return [*_choices(SAMPLERS.values(), SAMPLER_HELP), *_choices([Sampling], SAMPLING_HELP)]


def _choices(kinds: Iterable[type], texts: dict[str, dict[str, str]]) -> list[Choice]:
    hints: dict[str, Any] = {}
    for kind in kinds:
        hints |= get_type_hints(kind)
    return [
        Choice(name, _written_as(hints[name]), panel, text)
        for panel, entries in texts.items()
        for name, text in entries.items()
    ]


def _written_as(hint: Any) -> Any:
    """The type of an option on the command line, where names stand for rules and functions."""
    if get_origin(hint) is Mapping:
        return list[str]
    members = get_args(hint) or (hint,)
    return next((kind for kind in (bool, int, float) if kind in members), str)


def full_name(name: str) -> str:
    """The sampler's name without abbreviation; refuses a name that no sampler has."""
    name = SHORT_NAMES.get(name, name)
    return one_of("sampler", name, list(SAMPLERS))


def build(name: str, options: dict[str, Any]) -> Sampler:
    """The sampler called ``name`` with those of its options that are not None.

    Refuses options that only other samplers have.
    """
    own = {field.name for kind in SAMPLERS.values() for field in fields(kind)}
    name, chosen = full_name(name), given(**{k: v for k, v in options.items() if k in own})
    known = {kind: {field.name for field in fields(SAMPLERS[kind])} for kind in SAMPLERS}
    for option in chosen:
        if option not in known[name]:
            owners = ", ".join(kind for kind in known if option in known[kind])
            raise UsageError(
                f"{flag(option)} does not apply to the {name} sampler: it is an option of {owners}"
            )
    if "freeze_rule" in chosen:
        chosen["freeze_rule"] = _freeze_rule(chosen["freeze_rule"], options.get("num_steps"))
    return SAMPLERS[name](**chosen)


def _freeze_rule(name: str, num_steps: int | None) -> FreezeRule:
    one_of("freeze_rule", name, list(FREEZE_RULES))
    fixed = FixedDepth(**given(num_steps=num_steps))
    rules: tuple[FreezeRule, ...] = (ConvergedPrefix(), LastConverged(), fixed, TokenStable())
    return dict(zip(FREEZE_RULES, rules, strict=True))[name]


def build_sampling(options: dict[str, Any]) -> Sampling:
    """:class:`rdkernels.Sampling` with those of its options that are not None."""
    chosen = {field.name: options.get(field.name) for field in fields(Sampling)}
    chosen["logit_bias"] = _logit_bias(chosen["logit_bias"])
    return Sampling(**given(**chosen))


def _logit_bias(entries: list[str] | None) -> dict[int, float] | None:
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
