"""``generate``: prompts in, tokens out, whatever the sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from rdkernels import _validation as validation
from rdkernels.errors import ArgumentError
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.loop import Prompt, WavefrontLoop
from rdkernels.runtime.scheduler import Scheduler, Update, decoded
from rdkernels.runtime.trace import Completion, GenerationStats, OuterStep, Trace
from rdkernels.samplers.policies import Sampler
from rdkernels.samplers.sampling import Sampling

_WHERE = "generate"


@dataclass
class GenerationOutput:
    """What came out, an entry per sequence: the samples of the first prompt, then the second's.

    Attributes:
        completions: all that is known of each; the lists below are views of them.
        tokens: the generated ids only; a stop token, if hit, is the last one.
        texts: the decoded tokens, without a stop string; None where the model has no tokenizer.
        finish_reasons: ``stop`` (token), ``stop_string`` or ``length``.
        log_probs: of each token, or None unless asked for; see :class:`rdkernels.Completion`.
        stats: totals.
        trace: a record per outer step, if asked for.
    """

    completions: list[Completion]
    stats: GenerationStats
    trace: Trace | None = None

    @property
    def tokens(self) -> list[list[int]]:
        return [completion.tokens for completion in self.completions]

    @property
    def texts(self) -> list[str] | None:
        texts = [c.text for c in self.completions if c.text is not None]
        return texts if len(texts) == len(self.completions) else None

    @property
    def finish_reasons(self) -> list[str]:
        return [completion.finish_reason for completion in self.completions]

    @property
    def log_probs(self) -> list[list[float]] | None:
        found = [c.log_probs for c in self.completions if c.log_probs is not None]
        return found if len(found) == len(self.completions) else None


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
    validation.expect_count(_WHERE, "max_new_tokens", max_new_tokens)
    validation.expect_count(_WHERE, "samples_per_prompt", samples_per_prompt, least=1)
    options = validation.run_options(_WHERE, model, sampler, sampling, stop_tokens, seed, buckets)
    encoded = _encode(model, prompts, samples_per_prompt, with_room=max_new_tokens > 0)
    strings = validation.stop_string_list(model, _WHERE, stop_strings)
    keys = validation.sequence_keys(_WHERE, encoded, sequence_ids)
    record = Trace([len(prompt) for prompt in encoded]) if trace else None
    if not encoded or max_new_tokens == 0:
        nothing = Completion.empty("length", decoded(model.tokenizer, []), log_probs)
        stats = GenerationStats(completions=[nothing] * len(encoded))
        return GenerationOutput(stats.completions, stats, record)

    began = time.perf_counter()
    longest = min(max(map(len, encoded)) + int(max_new_tokens), model.config.context_length)
    loop = WavefrontLoop(
        model,
        options.sampler.wavefront_policy(),
        options.sampling,
        max_sequences=len(encoded),
        max_tokens=longest,
        stop_tokens=options.stop_tokens,
        seed=options.seed,
        log_probs=log_probs,
        buckets=options.buckets,
    )
    scheduler = Scheduler(loop)
    for prompt, key in zip(encoded, keys, strict=True):
        limit = min(len(prompt) + int(max_new_tokens), longest)
        scheduler.enqueue(Prompt(prompt, limit, key), strings, on_update)
    scheduler.start()
    _synchronise(model)
    decode_began = time.perf_counter()
    _run(scheduler, record, on_step)
    _synchronise(model)
    ended = scheduler.results()
    stats = GenerationStats(
        outer_steps=loop.outer_steps,
        core_iterations=loop.core_iterations,
        rows_computed=loop.rows_computed,
        prefill_seconds=decode_began - began,
        decode_seconds=time.perf_counter() - decode_began,
        completions=[ended[number] for number in range(len(encoded))],
    )
    return GenerationOutput(stats.completions, stats, record)


def _run(
    scheduler: Scheduler, record: Trace | None, on_step: Callable[[OuterStep], None] | None
) -> None:
    """Until nothing is in flight, telling whoever watches."""
    watched = record is not None or on_step is not None
    while not scheduler.idle:
        step = scheduler.step(record=watched)
        if step is not None and record is not None:
            record.steps.append(step)
        if step is not None and on_step is not None:
            on_step(step)


def _synchronise(model: RecurrentDepthModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _encode(
    model: RecurrentDepthModel,
    prompts: Iterable[Sequence[int] | str],
    copies: int,
    with_room: bool,
) -> list[list[int]]:
    """Every prompt as token ids, ``copies`` times."""
    if isinstance(prompts, str):
        raise ArgumentError(_WHERE, "prompts", "a list of prompts", "one string")
    if not isinstance(prompts, Iterable):
        raise ArgumentError(_WHERE, "prompts", "a list of prompts", repr(prompts))
    encoded: list[list[int]] = []
    for i, prompt in enumerate(prompts):
        tokens = validation.prompt_ids(model, _WHERE, f"prompts[{i}]", prompt)
        if with_room:
            validation.expect_room(model, _WHERE, f"prompts[{i}]", tokens)
        encoded += [tokens] * copies
    return encoded
