"""``rdkernels generate``: prompts in, text out, with any sampler."""

from __future__ import annotations

import json
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
    given,
    load_model,
    one_of,
    read_text,
)

if TYPE_CHECKING:
    from rdkernels.cli.ui.viewers import Viewer
    from rdkernels.generate import GenerationOutput
    from rdkernels.models.recurrent_depth import RecurrentDepthModel
    from rdkernels.samplers import Sampler


def _panel(panel: str, text: str) -> Any:
    """An option that is passed on only if given, so that its default lives in one place."""
    return typer.Option(help=text, rich_help_panel=panel, show_default=False)


def _any(text: str) -> Any:
    return _panel("Every sampler", text)


def _diffusion(text: str) -> Any:
    return _panel("Diffusion forcing", text)


def _adaptive(text: str) -> Any:
    return _panel("Adaptive depth", text)


def _drafting(text: str) -> Any:
    return _panel("Speculative and lossless", text)


def _sampling(text: str) -> Any:
    return _panel("Sampling", text)


def _shown(text: str) -> Any:
    return _panel("What is shown", text)


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
    num_steps: Annotated[int | None, _any("Iterations per token, r.")] = None,
    initial_state_scale: Annotated[float | None, _any("0: zero initial states.")] = None,
    slots: Annotated[int | None, _any("K/V slots per core layer; 1: shared.")] = None,
    continuous_compute: Annotated[
        bool | None, _any("Start rows from the state before them, not from fresh ones.")
    ] = None,
    inner_recurrence: Annotated[int | None, _diffusion("Iterations per outer step, r'.")] = None,
    exit_threshold: Annotated[float | None, _diffusion("Relative change of a settled row.")] = None,
    noise: Annotated[float | None, _diffusion("State noise, beta.")] = None,
    noise_schedule: Annotated[str | None, _diffusion("How noise falls with depth.")] = None,
    momentum: Annotated[float | None, _diffusion("Of the input embedding, eta.")] = None,
    headway: Annotated[int | None, _diffusion("Rows added per outer step.")] = None,
    max_wavefront: Annotated[int | None, _diffusion("Most rows in flight per sequence.")] = None,
    depth_limit: Annotated[int | None, _diffusion("Depth at which a row settles anyway.")] = None,
    freeze_rule: Annotated[
        str | None, _diffusion("One of " + ", ".join(samplers.FREEZE_RULES))
    ] = None,
    inner_exit_threshold: Annotated[
        float | None, _diffusion("Hold rows that one iteration moves by less.")
    ] = None,
    full_prefill: Annotated[
        bool | None, _diffusion("Whether prompts have all iterations before decoding starts.")
    ] = None,
    criterion: Annotated[
        str | None, _adaptive("What an exit is decided by; also of diffusion forcing.")
    ] = None,
    threshold: Annotated[float | None, _adaptive("Of the criterion; default: its own.")] = None,
    min_steps: Annotated[int | None, _adaptive("Iterations before the first exit.")] = None,
    check_interval: Annotated[int | None, _adaptive("Iterations from check to check.")] = None,
    draft_steps: Annotated[int | None, _drafting("Speculative: iterations of a draft.")] = None,
    draft_length: Annotated[int | None, _drafting("Speculative: rows per verification.")] = None,
    draft_depth: Annotated[
        int | None, _drafting("Lossless: iterations before a row starts the next.")
    ] = None,
    temperature: Annotated[float | None, _sampling("0: greedy.")] = None,
    top_k: Annotated[int | None, _sampling("Keep the k likeliest tokens; 0: all.")] = None,
    top_p: Annotated[float | None, _sampling("Keep this probability mass; 1: all.")] = None,
    min_p: Annotated[float | None, _sampling("Keep tokens above this share of the best.")] = None,
    repetition_penalty: Annotated[
        float | None, _sampling("Makes tokens that have occurred less likely; 1: does not.")
    ] = None,
    logit_bias: Annotated[
        list[str] | None, _sampling("TOKEN=BIAS, an id and a number or -inf; repeatable.")
    ] = None,
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
) -> None:
    """Continue one or several prompts."""
    options = locals()  # by name, so that the samplers' options are listed in one place only
    import rdkernels as rdk
    from rdkernels import _validation as validation
    from rdkernels.models.checkpoint import default_stop_tokens

    _expect_one_view(stream=stream, watch=watch, as_json=as_json, pace=pace, log_probs=log_probs)
    prompts = _prompts(prompt or [], prompt_file)
    draw = _picture(plot, plot_kind)
    chosen = samplers.build(sampler, {name: options[name] for name in samplers.option_names()})
    sampling = rdk.Sampling(
        **given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            logit_bias=samplers.logit_bias(logit_bias),
        )
    )
    loaded = load_model(model, device, dtype, weights)
    encoded = [
        validation.prompt_ids(loaded, "generate", f"prompts[{i}]", _encoded(text, loaded))
        for i, text in enumerate(prompts)
    ]
    prompts = [text for text in prompts for _ in range(samples)]
    lengths = [len(tokens) for tokens in encoded for _ in range(samples)]
    with _viewer(options, loaded, prompts, lengths, chosen) as viewer:
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
            on_step=viewer.step,
            on_update=viewer.update,
        )
        viewer.finish(output)
    if draw is not None:
        draw(output, loaded)
    if as_json:
        print(json.dumps(_to_json(prompts, output, samplers.full_name(sampler), chosen)))
        return
    from rdkernels.cli.ui.terminal import generation_summary, generation_text

    if not viewer.prints_text:
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


def _viewer(
    options: dict[str, Any],
    model: RecurrentDepthModel,
    prompts: list[str],
    lengths: list[int],
    sampler: Sampler,
) -> Viewer:
    """Who watches: ``prompts`` and their ``lengths`` in tokens have an entry per sequence."""
    from rich.console import Console

    from rdkernels.cli.ui import viewers
    from rdkernels.cli.ui.terminal import GenerationProgress

    decode = viewers.decoder(model.tokenizer)
    if options["stream"]:
        return viewers.TextStream(prompts, decode, options["stop_string"] or ())
    if not options["watch"]:
        return GenerationProgress(len(prompts) * options["max_new_tokens"])
    console = Console()
    if not console.is_terminal:
        return viewers.WavefrontLines(lengths, decode)
    pace = 0.05 if options["pace"] is None else options["pace"]
    return viewers.WavefrontScreen(console, lengths, decode, sampler.num_steps, pace)


def _picture(path: Path | None, kind: str | None) -> Any:
    """What draws the picture that was asked for, or None; refuses what cannot be drawn."""
    from rdkernels import plots

    if path is None:
        if kind is not None:
            raise UsageError("--plot-kind is an option of --plot")
        return None
    one_of("plot_kind", kind := kind or "wavefront", list(plots.KINDS))
    plots.check_file(path)

    def draw(output: GenerationOutput, model: RecurrentDepthModel) -> None:
        options = {}
        if kind == "wavefront" and model.tokenizer is not None:
            options["words"] = [model.tokenizer.decode([token]) for token in output.tokens[0]]
        try:
            plots.KINDS[kind](output.trace, **options).savefig(path, dpi=160)
        except OSError as error:
            raise UsageError(f"--plot {path}: {error.strerror}") from error

    return draw


def _to_json(
    prompts: list[str], output: GenerationOutput, name: str, sampler: Sampler
) -> dict[str, Any]:
    stats = output.stats
    outputs = {
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
