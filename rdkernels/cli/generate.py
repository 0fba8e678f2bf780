"""``rdkernels generate``: prompts in, text out, with any sampler."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rdkernels.cli import samplers
from rdkernels.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    UsageError,
    Weights,
    load_model,
    one_of,
    read_text,
    takes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rdkernels.evaluation.observer import Observer
    from rdkernels.generate import GenerationOutput
    from rdkernels.models.recurrent_depth import RecurrentDepthModel
    from rdkernels.samplers import Sampler

    Draw = Callable[[GenerationOutput, RecurrentDepthModel], None]


def _shown(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="What is shown", show_default=False)


@takes(*samplers.choices())
def generate(
    model: Model,
    prompt: Annotated[list[str] | None, typer.Option(help="Text; repeatable.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="One prompt a line; - is stdin.")] = None,
    sampler: Annotated[
        str, typer.Option(help="diffusion, autoregressive, adaptive, speculative or lossless.")
    ] = "diffusion-forcing",
    samples: Annotated[int, typer.Option(min=1, help="Sequences per prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    stop_token: Annotated[
        list[int] | None, typer.Option(help="Token id; repeatable; default: the model's.")
    ] = None,
    stop_string: Annotated[list[str] | None, typer.Option(help="Text; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of initial states, noise and sampling.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    weights: Weights = None,
    *,
    log_probs: Annotated[bool, _shown("The log-probability of every token.")] = False,
    stream: Annotated[bool, _shown("Text as soon as it is committed.")] = False,
    watch: Annotated[bool, _shown("The wavefront as it moves.")] = False,
    pace: Annotated[
        float | None, _shown("Of --watch: least seconds per outer step; default 0.05.")
    ] = None,
    plot: Annotated[Path | None, _shown("File for a picture of the first sequence.")] = None,
    plot_kind: Annotated[
        str | None, _shown("wavefront (default), depths, commits or acceptance.")
    ] = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Continue one or several prompts."""
    import rdkernels as rdk
    from rdkernels import _validation as validation
    from rdkernels.cli.ui.progress import GenerationProgress
    from rdkernels.cli.ui.stream import generation_summary, generation_text
    from rdkernels.models.checkpoint import default_stop_tokens

    _expect_one_view(stream=stream, watch=watch, as_json=as_json, pace=pace, log_probs=log_probs)
    prompts = _prompts(prompt or [], prompt_file)
    draw = _picture(plot, plot_kind)
    chosen = samplers.build(sampler, options)
    sampling = samplers.build_sampling(options)
    loaded = load_model(model, device, dtype, weights)
    encoded = [
        validation.prompt_ids(loaded, "generate", f"prompts[{i}]", _encoded(text, loaded))
        for i, text in enumerate(prompts)
    ]
    prompts = [text for text in prompts for _ in range(samples)]
    lengths = [len(tokens) for tokens in encoded for _ in range(samples)]
    if stream:
        observer = _text_stream(loaded, prompts, stop_string or [])
    elif watch:
        observer = _wavefront_view(loaded, lengths, chosen, 0.05 if pace is None else pace)
    else:
        observer = GenerationProgress(len(prompts) * max_new_tokens)
    with observer:
        output = rdk.generate(
            loaded,
            encoded,
            sampler=chosen,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            stop_tokens=tuple(stop_token) if stop_token else default_stop_tokens(model),
            stop_strings=tuple(stop_string or ()),
            samples_per_prompt=samples,
            seed=seed,
            log_probs=log_probs,
            trace=draw is not None,
            on_step=observer.step,
            on_update=observer.update,
        )
        observer.finish(output)
    if draw is not None:
        draw(output, loaded)
    if as_json:
        print(json.dumps(_to_json(prompts, output, samplers.full_name(sampler), chosen)))
        return
    if not observer.prints_text:
        for line in generation_text(prompts, output, loaded.tokenizer):
            print(line)
    generation_summary(output.stats, timed=not watch)


def _expect_one_view(
    *, stream: bool, watch: bool, as_json: bool, pace: float | None, log_probs: bool
) -> None:
    views = {"--stream": stream, "--watch": watch, "--json": as_json}
    if len(chosen := [name for name, wanted in views.items() if wanted]) > 1:
        raise UsageError(f"{' and '.join(chosen)} do not go together")
    if log_probs and stream:
        raise UsageError("--log-probs does not go with --stream")
    if pace is not None and not watch:
        raise UsageError("--pace is an option of --watch")
    if pace is not None and not 0.0 <= pace < 60.0:
        raise UsageError(f"--pace: expected 0 <= seconds < 60, got {pace}")


def _prompts(prompts: list[str], file: Path | None) -> list[str]:
    if file is not None:
        text = read_text("prompt_file", file)
        prompts = prompts + [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UsageError("no prompt: give --prompt or --prompt-file")
    return prompts


def _encoded(prompt: str, model: RecurrentDepthModel) -> str | list[int]:
    """The prompt as the library takes it: text, or ids if the model has no tokenizer."""
    if model.tokenizer is not None:
        return prompt
    try:
        return [int(token) for token in prompt.split()]
    except ValueError:
        raise UsageError(
            f"the model has no tokenizer: expected a prompt of token ids, got {prompt!r}"
        ) from None


def _text_stream(
    model: RecurrentDepthModel, prompts: list[str], stop_strings: list[str]
) -> Observer:
    from rdkernels.cli.ui.stream import TextStream, decoder

    return TextStream(prompts, decoder(model.tokenizer), stop_strings)


def _wavefront_view(
    model: RecurrentDepthModel, lengths: list[int], sampler: Sampler, pace: float
) -> Observer:
    """A screen on a terminal, else lines; ``lengths`` of the prompts in tokens, per sequence."""
    from rich.console import Console

    from rdkernels.cli.ui.panes import WavefrontScreen
    from rdkernels.cli.ui.stream import WavefrontLines, decoder

    decode, console = decoder(model.tokenizer), Console()
    if not console.is_terminal:
        return WavefrontLines(lengths, decode)
    return WavefrontScreen(console, lengths, decode, sampler.num_steps, pace)


def _picture(path: Path | None, kind: str | None) -> Draw | None:
    """What draws the picture that was asked for, or None; refuses what cannot be drawn."""
    from rdkernels import plots

    if path is None:
        if kind is not None:
            raise UsageError("--plot-kind is an option of --plot")
        return None
    name = one_of("plot_kind", kind or "wavefront", list(plots.KINDS))
    plots.check_file(path)

    def draw(output: GenerationOutput, model: RecurrentDepthModel) -> None:
        assert output.trace is not None, "generate was asked for a trace"
        options = {}
        if name == "wavefront" and model.tokenizer is not None:
            options["words"] = [model.tokenizer.decode([token]) for token in output.tokens[0]]
        kind_drawn: Callable[..., Figure] = plots.KINDS[name]
        try:
            kind_drawn(output.trace, **options).savefig(path, dpi=160)
        except OSError as error:
            raise UsageError(f"--plot {path}: {error.strerror}") from error

    return draw


def _to_json(
    prompts: list[str], output: GenerationOutput, name: str, sampler: Sampler
) -> dict[str, Any]:
    stats = output.stats
    outputs: dict[str, Sequence[Any]] = {
        "prompt": prompts,
        "text": output.texts or [None] * len(prompts),
        "tokens": output.tokens,
        "depths": stats.depths,
        "finish_reason": output.finish_reasons,
    }
    if output.log_probs is not None:
        outputs["log_probs"] = output.log_probs
    return {
        "sampler": name,
        "options": samplers.to_json(sampler),
        "outputs": [
            dict(zip(outputs, entry, strict=True)) for entry in zip(*outputs.values(), strict=True)
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
