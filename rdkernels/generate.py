"""``generate``: prompts in, tokens out, whatever the sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from rdkernels import _validation as validation
from rdkernels.engine import Completion, Engine, Update
from rdkernels.errors import ArgumentError
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.trace import GenerationStats, OuterStep, Trace
from rdkernels.samplers.policies import Sampler
from rdkernels.samplers.sampling import Sampling

_WHERE = "generate"


@dataclass
class GenerationOutput:
    """What came out, an entry per sequence: the samples of the first prompt, then the second's.

    Attributes:
        tokens: the generated ids only; a stop token, if hit, is the last one.
        texts: the decoded tokens, without a stop string; None where the model has no tokenizer.
        finish_reasons: ``stop`` (token), ``stop_string`` or ``length``.
        log_probs: of each token, or None unless asked for; see :class:`rdkernels.Completion`.
        stats: totals.
        trace: a record per outer step, if asked for.
    """

    tokens: list[list[int]]
    texts: list[str] | None
    finish_reasons: list[str]
    log_probs: list[list[float]] | None
    stats: GenerationStats
    trace: Trace | None = None


@torch.no_grad()
def generate(
    model: RecurrentDepthModel,
    prompts: Sequence[Sequence[int]] | Sequence[str],
    *,
    sampler: Sampler | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    stop_tokens: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    samples_per_prompt: int = 1,
    seed: int = 0,
    sequence_ids: Sequence[int] | None = None,
    log_probs: bool = False,
    buckets: Sequence[int] | None = None,
    trace: bool = False,
    on_step: Callable[[OuterStep], None] | None = None,
    on_update: Callable[[Update], None] | None = None,
) -> GenerationOutput:
    """Continue every prompt.

    A prompt's continuation does not depend on what else is in the batch, nor on its place in it:
    all randomness is keyed by ``seed``, a sequence id and the position.

    Args:
        model: from :func:`rdkernels.load_model`.
        prompts: token-id lists of any lengths, or strings where the model has a tokenizer.
        sampler: default ``DiffusionForcing()``.
        sampling: default greedy.
        max_new_tokens: per prompt; the context limit may end a sequence earlier.
        stop_tokens: end a sequence after one of these is committed.
        stop_strings: end a sequence once its text contains one of these.
        samples_per_prompt: sequences per prompt, each with random draws of its own.
        seed: 64-bit seed of initial states, noise and sampling.
        sequence_ids: 31-bit random key per sequence. Default: a hash of the prompt's tokens, and of
            how often the same prompt came before it in this batch.
        log_probs: report the log-probability of every token.
        buckets: row counts that outer steps are padded to; see :class:`rdkernels.Engine`.
        trace: keep a record of every outer step.
        on_step: called with the record of every outer step as it ends.
        on_update: called whenever tokens of a sequence are committed; ``update.request`` is the
            sequence's number in the output.

    Returns:
        :class:`GenerationOutput`.

    Raises:
        ArgumentError: an empty or too long prompt, a token outside the vocabulary, a prompt of
            text without a tokenizer, or a malformed option. Nothing has run then.
    """
    validation.expect_callable(_WHERE, "on_step", on_step)
    validation.expect_callable(_WHERE, "on_update", on_update)
    for name, value, kind in (("sampler", sampler, Sampler), ("sampling", sampling, Sampling)):
        if value is not None:
            validation.expect_type(_WHERE, name, value, kind)
    validation.expect_count(_WHERE, "max_new_tokens", max_new_tokens)
    validation.expect_count(_WHERE, "samples_per_prompt", samples_per_prompt, least=1)
    validation.expect_seed(_WHERE, seed)
    encoded = _encode(model, prompts, samples_per_prompt, with_room=max_new_tokens > 0)
    stops = validation.ids(_WHERE, "stop_tokens", stop_tokens, model.config.vocab_size)
    strings = validation.stop_string_list(model, _WHERE, stop_strings)
    keys = validation.sequence_keys(_WHERE, encoded, sequence_ids)
    record = Trace([len(prompt) for prompt in encoded]) if trace else None
    if not encoded or max_new_tokens == 0:
        nothing = Completion([], _empty_text(model), "length", [], [] if log_probs else None, 0)
        return _output([nothing] * len(encoded), GenerationStats(), record)

    longest = max(map(len, encoded)) + max_new_tokens
    began = time.perf_counter()
    engine = Engine(
        model,
        sampler=sampler,
        sampling=sampling,
        max_sequences=len(encoded),
        max_tokens=min(longest, model.config.context_length),
        stop_tokens=stops,
        seed=seed,
        log_probs=log_probs,
        buckets=buckets,
    )
    for prompt, key in zip(encoded, keys, strict=True):
        engine.submit(
            prompt,
            max_new_tokens=max_new_tokens,
            stop_strings=strings,
            sequence_id=key,
            on_update=on_update,
        )
    engine.start()
    _synchronise(model)
    decode_began = time.perf_counter()
    watched = trace or on_step is not None
    while not engine.idle:
        step = engine.step(record=watched)
        if step is not None and record is not None:
            record.steps.append(step)
        if step is not None and on_step is not None:
            on_step(step)
    _synchronise(model)
    loop = engine.loop
    stats = GenerationStats(
        outer_steps=loop.outer_steps,
        core_iterations=loop.core_iterations,
        rows_computed=loop.rows_computed,
        prefill_seconds=decode_began - began,
        decode_seconds=time.perf_counter() - decode_began,
    )
    ended = engine.results()
    return _output([ended[number] for number in range(len(encoded))], stats, record)


def _output(
    ended: list[Completion], stats: GenerationStats, trace: Trace | None
) -> GenerationOutput:
    stats.depths = [completion.depths for completion in ended]
    stats.sequence_core_iterations = [completion.core_iterations for completion in ended]
    texts = [completion.text for completion in ended]
    log_probs = [completion.log_probs for completion in ended]
    return GenerationOutput(
        tokens=[completion.tokens for completion in ended],
        texts=None if None in texts else texts,
        finish_reasons=[completion.finish_reason for completion in ended],
        log_probs=None if None in log_probs else log_probs,
        stats=stats,
        trace=trace,
    )


def _empty_text(model: RecurrentDepthModel) -> str | None:
    return None if model.tokenizer is None else ""


def _synchronise(model: RecurrentDepthModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _encode(
    model: RecurrentDepthModel,
    prompts: Sequence[Sequence[int]] | Sequence[str],
    copies: int,
    with_room: bool,
) -> list[list[int]]:
    """Every prompt as token ids, ``copies`` times."""
    if isinstance(prompts, str):
        raise ArgumentError(_WHERE, "prompts", "a list of prompts", "one string")
    if not isinstance(prompts, Iterable):
        raise ArgumentError(_WHERE, "prompts", "a list of prompts", repr(prompts))
    encoded = []
    for i, prompt in enumerate(prompts):
        tokens = validation.prompt_ids(model, _WHERE, f"prompts[{i}]", prompt)
        if with_room:
            validation.expect_room(model, _WHERE, f"prompts[{i}]", tokens)
        encoded += [tokens] * copies
    return encoded
