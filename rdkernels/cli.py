"""The ``rdkernels`` command: demo, generate, env.

stdout carries the result (with ``--json`` one JSON object and nothing else), stderr the progress.
Bad input ends with one line and exit status 2. Heavy imports wait until a command needs them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rdkernels.errors import RdkernelsError

if TYPE_CHECKING:
    from rdkernels.comparison import Contender
    from rdkernels.generation import GenerationOutput
    from rdkernels.live import LiveObserver
    from rdkernels.models.demo import Problem
    from rdkernels.models.recurrent_depth import RecurrentDepthModel
    from rdkernels.samplers import FreezeRule, Sampler
    from rdkernels.terminal import ComparisonProgress

app = typer.Typer(
    name="rdkernels",
    help="Fast generation with recurrent-depth language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Typer carries its own copy of click in new releases and the public one in old ones.
_UsageError = typer.BadParameter.__base__
_ClickError = _UsageError.__base__
_INTERRUPTED = 130  # what shells report for Ctrl-C

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: the checkpoint's.")
]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; always ends the process with an exit status."""
    try:
        status = app(arguments, standalone_mode=False)
    except _ClickError as error:
        _fail(error.format_message())
    except RdkernelsError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> None:
    print("rdkernels: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


# --- demo -----------------------------------------------------------------------------------------


@app.command()
def demo(
    model: Annotated[
        str,
        typer.Option(help="demo, demo-automaton, demo-chained, or a folder with problems.json."),
    ] = "demo",
    problems: Annotated[int, typer.Option(min=1, help="Held-out problems to answer.")] = 20,
    num_steps: Annotated[int, typer.Option(min=1, help="Iterations per token, r.")] = 32,
    inner_recurrence: Annotated[
        int, typer.Option(min=1, help="Iterations per outer step of diffusion forcing, r'.")
    ] = 4,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Also r = 1, 2, 4, 8, 16, 32 and r' = 1, 2, 4.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Problems answered at once.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the initial states.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    live: Annotated[bool, typer.Option(help="Show the wavefront while it moves.")] = True,
    as_json: Json = False,
) -> None:
    """Answer held-out problems with both samplers and compare accuracy, iterations and speed."""
    from rdkernels import comparison
    from rdkernels.models.demo import load_problems
    from rdkernels.terminal import comparison_table

    held_out = load_problems(model, limit=problems)
    loaded = _load_model(model, device, dtype)
    entrants = comparison.contenders(num_steps, inner_recurrence, sweep)
    with _observer(loaded, entrants, held_out, live and not sweep and not as_json) as observer:
        rows = comparison.compare(
            loaded, held_out, entrants, batch_size=batch_size, seed=seed, observer=observer
        )
    if as_json:
        settings = {"model": model, "device": device, "batch_size": batch_size, "seed": seed}
        print(json.dumps({**settings, "rows": [row.to_json() for row in rows]}))
    else:
        Console().print(comparison_table(entrants, rows))


def _observer(
    model: RecurrentDepthModel, entrants: list[Contender], problems: list[Problem], live: bool
) -> LiveObserver | ComparisonProgress:
    from rdkernels.live import LiveObserver
    from rdkernels.terminal import ComparisonProgress

    console = Console()
    if live and console.is_terminal:
        return LiveObserver(console, entrants, model.tokenizer.decode, len(problems))
    return ComparisonProgress(len(entrants) * len(problems))


# --- generate -------------------------------------------------------------------------------------

_FREEZE_RULES = ("converged-prefix", "last-converged", "fixed-depth")


def _option(panel: str, text: str) -> Any:
    """An option that is passed on only if given, so that its default lives in one place."""
    return typer.Option(help=text, rich_help_panel=panel, show_default=False)


def _any(text: str) -> Any:
    return _option("Every sampler", text)


def _diffusion(text: str) -> Any:
    return _option("Diffusion forcing", text)


def _sampling(text: str) -> Any:
    return _option("Sampling", text)


@app.command()
def generate(
    model: Annotated[
        str, typer.Option(help="A model folder, or demo, demo-automaton or demo-chained.")
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="Text; repeatable.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="One prompt a line; - is stdin.")] = None,
    sampler: Annotated[
        str, typer.Option(help="autoregressive or diffusion-forcing.")
    ] = "diffusion-forcing",
    num_steps: Annotated[int | None, _any("Iterations per token, r.")] = None,
    initial_state_scale: Annotated[float | None, _any("0: zero initial states.")] = None,
    slots: Annotated[int | None, _any("K/V slots per core layer; 1: shared.")] = None,
    continuous_compute: Annotated[
        bool | None, _any("Start rows from the state before them, not from fresh ones.")
    ] = None,
    inner_recurrence: Annotated[int | None, _diffusion("Iterations per outer step, r'.")] = None,
    exit_threshold: Annotated[float | None, _diffusion("Relative change of a settled row.")] = None,
    noise: Annotated[float | None, _diffusion("State noise, beta.")] = None,
    momentum: Annotated[float | None, _diffusion("Of the input embedding, eta.")] = None,
    headway: Annotated[int | None, _diffusion("Rows added per outer step.")] = None,
    max_wavefront: Annotated[int | None, _diffusion("Most rows in flight per sequence.")] = None,
    depth_limit: Annotated[int | None, _diffusion("Depth at which a row settles anyway.")] = None,
    freeze_rule: Annotated[str | None, _diffusion("One of " + ", ".join(_FREEZE_RULES))] = None,
    temperature: Annotated[float | None, _sampling("0: greedy.")] = None,
    top_k: Annotated[int | None, _sampling("Keep the k likeliest tokens; 0: all.")] = None,
    top_p: Annotated[float | None, _sampling("Keep this probability mass; 1: all.")] = None,
    min_p: Annotated[float | None, _sampling("Keep tokens above this share of the best.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    stop_token: Annotated[
        list[int] | None, typer.Option(help="Token id; repeatable; default: the model's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial states, noise and sampling.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the first wavefront.")] = None,
    as_json: Json = False,
) -> None:
    """Continue one or several prompts."""
    import rdkernels as rdk
    from rdkernels import plots
    from rdkernels.models.stop_tokens import default_stop_tokens
    from rdkernels.terminal import GenerationProgress

    prompts = _prompts(prompt or [], prompt_file)
    if plot is not None:
        plots.check_file(plot)
    sampler_options = {
        "num_steps": num_steps,
        "initial_state_scale": initial_state_scale,
        "slots": slots,
        "inner_recurrence": inner_recurrence,
        "exit_threshold": exit_threshold,
        "noise": noise,
        "momentum": momentum,
        "headway": headway,
        "max_wavefront": max_wavefront,
        "depth_limit": depth_limit,
        "freeze_rule": _freeze_rule(freeze_rule, num_steps),
        "continuous_compute": continuous_compute,
    }
    chosen = _sampler(sampler, sampler_options)
    sampling = rdk.Sampling(
        **_given(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    )
    loaded = _load_model(model, device, dtype)
    stop_tokens = tuple(stop_token) if stop_token else default_stop_tokens(model)
    with GenerationProgress(len(prompts) * max_new_tokens) as progress:
        output = rdk.generate(
            loaded,
            [_encoded(text, loaded) for text in prompts],
            sampler=chosen,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            stop_tokens=stop_tokens,
            seed=seed,
            trace=plot is not None,
            on_step=progress.step,
        )
    if plot is not None:
        _save_plot(output, loaded, plot)
    if as_json:
        print(json.dumps(_generation_json(prompts, output, sampler, chosen)))
    else:
        _print_generation(prompts, output)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _sampler(name: str, options: dict[str, Any]) -> Sampler:
    """The sampler called ``name`` with the given options; refuses those it does not have."""
    from rdkernels.samplers import Autoregressive, DiffusionForcing

    samplers = {"autoregressive": Autoregressive, "diffusion-forcing": DiffusionForcing}
    if name not in samplers:
        raise _UsageError(f"unknown sampler {name!r}: expected one of {', '.join(samplers)}")
    known = {field.name for field in fields(samplers[name])}
    given = _given(**options)
    for option in given:
        if option not in known:
            flag = "--" + option.replace("_", "-")
            raise _UsageError(f"{flag} does not apply to the {name} sampler")
    return samplers[name](**given)


def _freeze_rule(name: str | None, num_steps: int | None) -> FreezeRule | None:
    from rdkernels.samplers import ConvergedPrefix, FixedDepth, LastConverged

    if name is None:
        return None
    if name not in _FREEZE_RULES:
        expected = ", ".join(_FREEZE_RULES)
        raise _UsageError(f"unknown freeze rule {name!r}: expected one of {expected}")
    fixed = FixedDepth(**_given(num_steps=num_steps))
    return dict(zip(_FREEZE_RULES, (ConvergedPrefix(), LastConverged(), fixed), strict=True))[name]


def _prompts(prompts: list[str], file: Path | None) -> list[str]:
    if file is not None:
        try:
            text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except OSError as error:
            raise _UsageError(f"--prompt-file {file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise _UsageError(f"--prompt-file {file}: not UTF-8 text") from error
        prompts = prompts + [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise _UsageError("no prompt: give --prompt or --prompt-file")
    return prompts


def _encoded(prompt: str, model: RecurrentDepthModel) -> str | list[int]:
    """The prompt as ``generate`` takes it: text, or ids if the model has no tokenizer."""
    if model.tokenizer is not None:
        return prompt
    try:
        return [int(token) for token in prompt.split()]
    except ValueError:
        raise _UsageError(
            f"the model has no tokenizer: expected a prompt of token ids, got {prompt!r}"
        ) from None


def _save_plot(output: GenerationOutput, model: RecurrentDepthModel, path: Path) -> None:
    from rdkernels import plots

    words = None
    if model.tokenizer is not None:
        words = [model.tokenizer.decode([token]) for token in output.tokens[0]]
    try:
        plots.wavefront(output.trace, words=words).savefig(path, dpi=160)
    except OSError as error:
        raise _UsageError(f"--plot {path}: {error.strerror}") from error


def _generation_json(
    prompts: list[str], output: GenerationOutput, name: str, sampler: Sampler
) -> dict[str, Any]:
    stats = output.stats
    texts = output.texts or [None] * len(prompts)
    return {
        "sampler": name,
        "options": {field.name: _plain(getattr(sampler, field.name)) for field in fields(sampler)},
        "outputs": [
            {"prompt": prompt, "text": text, "tokens": tokens, "depths": depths}
            for prompt, text, tokens, depths in zip(
                prompts, texts, output.tokens, stats.depths, strict=True
            )
        ],
        "outer_steps": stats.outer_steps,
        "core_iterations": stats.core_iterations,
        "core_iterations_per_token": stats.core_iterations_per_token,
        "rows_computed": stats.rows_computed,
        "generated_tokens": stats.generated_tokens,
        "prefill_seconds": stats.prefill_seconds,
        "decode_seconds": stats.decode_seconds,
        "tokens_per_second": stats.tokens_per_second,
    }


def _plain(value: Any) -> Any:
    """A sampler option as JSON has it; a freeze rule is named by its class."""
    simple = value is None or isinstance(value, bool | int | float | str)
    return value if simple else type(value).__name__


def _print_generation(prompts: list[str], output: GenerationOutput) -> None:
    texts = output.texts or [" ".join(map(str, tokens)) for tokens in output.tokens]
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"{prompt} {text}" if len(prompts) == 1 else f"{prompt}\n  {text}")
    stats = output.stats
    Console(stderr=True).print(
        f"{stats.generated_tokens} tokens, {stats.core_iterations} core iterations "
        f"({stats.core_iterations_per_token:.2f} per token), "
        f"{stats.tokens_per_second:.1f} tokens/s",
        style="dim",
        highlight=False,
    )


# --- env ------------------------------------------------------------------------------------------


@app.command()
def env(as_json: Json = False) -> None:
    """Versions, GPUs, and which providers can serve here or why they cannot."""
    from rdkernels import environment
    from rdkernels.terminal import environment_view

    found = environment.report()
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        Console().print(environment_view(found))


# --- shared ---------------------------------------------------------------------------------------


def _load_model(name: str, device: str, dtype: str | None) -> RecurrentDepthModel:
    import torch

    import rdkernels as rdk

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise _UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise _UsageError(f"--device {device}: torch finds no usable CUDA device")
    return rdk.load_model(name, device=device, dtype=dtype)
