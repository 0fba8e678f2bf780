"""``generate``: prompts in, tokens out, whatever the sampler."""

from __future__ import annotations

import operator
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdkernels.errors import ArgumentError, is_whole
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.samplers.loop import Request, WavefrontLoop
from rdkernels.samplers.policies import DiffusionForcing, Sampler, Sampling
from rdkernels.samplers.trace import GenerationStats, OuterStep, Trace


@dataclass
class GenerationOutput:
    """What came out.

    Attributes:
        tokens: per prompt, the generated ids only; a stop token, if hit, is the last one.
        texts: per prompt, the decoded tokens; None where the model has no tokenizer.
        stats: totals.
        trace: a record per outer step, if asked for.
    """

    tokens: list[list[int]]
    texts: list[str] | None
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
    seed: int = 0,
    sequence_ids: Sequence[int] | None = None,
    trace: bool = False,
    on_step: Callable[[OuterStep], None] | None = None,
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
        seed: 64-bit seed of initial states, noise and sampling.
        sequence_ids: 31-bit random key per prompt. Default: a hash of the prompt's tokens, and of
            how often the same prompt came before it in this batch.
        trace: keep a record of every outer step.
        on_step: called with the record of every outer step as it ends.

    Returns:
        :class:`GenerationOutput`.

    Raises:
        ArgumentError: an empty or too long prompt, a token outside the vocabulary, a prompt of
            text without a tokenizer, or a malformed option. Nothing has run then.
    """
    sampler = DiffusionForcing() if sampler is None else sampler
    sampling = Sampling() if sampling is None else sampling
    _expect_type("sampler", sampler, Sampler)
    _expect_type("sampling", sampling, Sampling)
    if on_step is not None and not callable(on_step):
        raise ArgumentError("generate", "on_step", "a callable or None", repr(on_step))
    request = _request(model, prompts, max_new_tokens, stop_tokens, seed, sequence_ids)
    record = Trace([len(prompt) for prompt in request.prompts]) if trace else None
    stats = GenerationStats()
    if not request.prompts or max_new_tokens == 0:
        stats.depths = [[] for _ in request.prompts]
        stats.sequence_core_iterations = [0] * len(request.prompts)
        return _output(model, [[] for _ in request.prompts], stats, record)

    began = time.perf_counter()
    loop = WavefrontLoop(model, sampler.wavefront_policy(), sampling, request)
    loop.prefill()
    _synchronise(model)
    decode_began = time.perf_counter()
    watched = trace or on_step is not None
    while loop.running:
        step = loop.step(record=watched)
        if record is not None:
            record.steps.append(step)
        if on_step is not None:
            on_step(step)
    _synchronise(model)
    stats.prefill_seconds = decode_began - began
    stats.decode_seconds = time.perf_counter() - decode_began
    stats.outer_steps, stats.core_iterations = loop.outer_steps, loop.core_iterations
    stats.rows_computed = loop.rows_computed
    stats.sequence_core_iterations = loop.sequence_iterations
    tokens = []
    for b, (prompt, end) in enumerate(zip(request.prompts, loop.committed, strict=True)):
        tokens.append(loop.tokens[b, len(prompt) : end].tolist())
        stats.depths.append(loop.committed_depth[b, len(prompt) : end].tolist())
    return _output(model, tokens, stats, record)


def _output(
    model: RecurrentDepthModel,
    tokens: list[list[int]],
    stats: GenerationStats,
    trace: Trace | None,
) -> GenerationOutput:
    texts = None
    if model.tokenizer is not None:
        texts = [model.tokenizer.decode(ids) for ids in tokens]
    return GenerationOutput(tokens, texts, stats, trace)


def _synchronise(model: RecurrentDepthModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _expect_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ArgumentError("generate", name, f"a {kind.__name__}", repr(value))


def _request(
    model: RecurrentDepthModel,
    prompts: Sequence[Sequence[int]] | Sequence[str],
    max_new_tokens: int,
    stop_tokens: Sequence[int],
    seed: int,
    sequence_ids: Sequence[int] | None,
) -> Request:
    """Check everything that a caller can get wrong, before any work."""
    if isinstance(prompts, str):
        raise ArgumentError("generate", "prompts", "a list of prompts", "one string")
    if not isinstance(prompts, Iterable):
        raise ArgumentError("generate", "prompts", "a list of prompts", repr(prompts))
    if not is_whole(max_new_tokens) or max_new_tokens < 0:
        raise ArgumentError("generate", "max_new_tokens", "a count >= 0", repr(max_new_tokens))
    if not is_whole(seed) or not 0 <= seed < 1 << 63:
        raise ArgumentError("generate", "seed", "a whole number 0 <= seed < 2**63", repr(seed))
    encoded = [_encode(model, i, prompt) for i, prompt in enumerate(prompts)]
    vocabulary, context = model.config.vocabulary, model.config.context
    stops = _ids("stop_tokens", stop_tokens, vocabulary)
    for i, prompt in enumerate(encoded):
        if not prompt:
            raise ArgumentError(
                "generate", f"prompts[{i}]", "at least one token (e.g. bos)", "none"
            )
        if len(prompt) >= context and max_new_tokens > 0:
            expected = f"fewer tokens than the context of {context}"
            raise ArgumentError("generate", f"prompts[{i}]", expected, len(prompt))
    if sequence_ids is None:
        seen: Counter[tuple[int, ...]] = Counter()
        sequence_ids = []
        for prompt in encoded:
            key = (*prompt, seen[tuple(prompt)])
            seen[tuple(prompt)] += 1
            sequence_ids.append(zlib.crc32(np.asarray(key, dtype=np.int64).tobytes()) >> 1)
    sequence_ids = _ids("sequence_ids", sequence_ids, 1 << 31)
    if len(sequence_ids) != len(encoded):
        expected = f"{len(encoded)} ids, one per prompt"
        raise ArgumentError("generate", "sequence_ids", expected, len(sequence_ids))
    limits = [min(len(prompt) + int(max_new_tokens), context) for prompt in encoded]
    return Request(encoded, limits, sequence_ids, tuple(stops), int(seed))


def _encode(model: RecurrentDepthModel, index: int, prompt: Sequence[int] | str) -> list[int]:
    if isinstance(prompt, str):
        if model.tokenizer is None:
            expected = "token ids (this model has no tokenizer)"
            raise ArgumentError("generate", f"prompts[{index}]", expected, "text")
        prompt = model.tokenizer.encode(prompt)
    return _ids(f"prompts[{index}]", prompt, model.config.vocabulary)


def _ids(name: str, values: Iterable[int], bound: int) -> list[int]:
    """``values`` (a list, an array, a tensor) as integers in ``[0, bound)``."""
    try:
        ids = [operator.index(value) for value in values]
    except TypeError:
        raise ArgumentError("generate", name, "a list of whole numbers", repr(values)) from None
    for value in ids:
        if not 0 <= value < bound:
            raise ArgumentError("generate", name, f"ids in [0, {bound})", value)
    return ids
