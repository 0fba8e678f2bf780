"""What a caller may ask for, checked before any work."""

from __future__ import annotations

import operator
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdkernels.errors import ArgumentError, is_whole
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.graphs import checked_buckets, default_buckets
from rdkernels.samplers.policies import DiffusionForcing, Sampler
from rdkernels.samplers.sampling import Sampling


@dataclass(frozen=True)
class RunOptions:
    """Checked options that :class:`rdkernels.Engine` and :func:`rdkernels.generate` share."""

    sampler: Sampler
    sampling: Sampling
    stop_tokens: tuple[int, ...]
    seed: int
    buckets: tuple[int, ...]


def run_options(
    where: str,
    model: RecurrentDepthModel,
    sampler: Sampler | None,
    sampling: Sampling | None,
    stop_tokens: Sequence[int],
    seed: int,
    buckets: Sequence[int] | None,
) -> RunOptions:
    """The options, checked, with the defaults of what is None."""
    sampler = DiffusionForcing() if sampler is None else sampler
    sampling = Sampling() if sampling is None else sampling
    expect_type(where, "sampler", sampler, Sampler)
    expect_type(where, "sampling", sampling, Sampling)
    expect_seed(where, seed)
    stops = ids(where, "stop_tokens", stop_tokens, model.config.vocab_size)
    padded = checked_buckets(where, default_buckets(model) if buckets is None else buckets)
    return RunOptions(sampler, sampling, tuple(stops), int(seed), padded)


def expect_type(where: str, name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ArgumentError(where, name, f"a {kind.__name__}", repr(value))


def expect_count(where: str, name: str, value: Any, least: int = 0) -> None:
    if not is_whole(value) or value < least:
        raise ArgumentError(where, name, f"a count >= {least}", repr(value))


def expect_seed(where: str, seed: Any) -> None:
    if not is_whole(seed) or not 0 <= seed < 1 << 63:
        raise ArgumentError(where, "seed", "a whole number 0 <= seed < 2**63", repr(seed))


def expect_callable(where: str, name: str, value: object) -> None:
    if value is not None and not callable(value):
        raise ArgumentError(where, name, "a callable or None", repr(value))


def ids(where: str, name: str, values: Iterable[int], bound: int) -> list[int]:
    """``values`` (a list, an array, a tensor) as integers in ``[0, bound)``."""
    try:
        found = [operator.index(value) for value in values]
    except TypeError:
        raise ArgumentError(where, name, "a list of whole numbers", repr(values)) from None
    for value in found:
        if not 0 <= value < bound:
            raise ArgumentError(where, name, f"ids in [0, {bound})", value)
    return found


def prompt_ids(
    model: RecurrentDepthModel, where: str, name: str, prompt: Sequence[int] | str
) -> list[int]:
    """A prompt (text, or token ids) as token ids that the model can continue."""
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise ArgumentError(where, name, "token ids (this model has no tokenizer)", "text")
        prompt = model.tokenizer.encode(prompt)
    found = ids(where, name, prompt, model.config.vocab_size)
    if not found:
        raise ArgumentError(where, name, "at least one token (e.g. bos)", "none")
    return found


def expect_room(model: RecurrentDepthModel, where: str, name: str, prompt: list[int]) -> None:
    context = model.config.context_length
    if len(prompt) >= context:
        raise ArgumentError(where, name, f"fewer tokens than the context of {context}", len(prompt))


def stop_string_list(
    model: RecurrentDepthModel, where: str, strings: Sequence[str]
) -> tuple[str, ...]:
    """Checked stop strings; they need a tokenizer, and an empty one would stop at once."""
    if isinstance(strings, str) or not all(isinstance(s, str) and s for s in strings):
        raise ArgumentError(where, "stop_strings", "a list of strings, none empty", repr(strings))
    if strings and model.tokenizer is None:
        raise ArgumentError(where, "stop_strings", "none (this model has no tokenizer)", strings)
    return tuple(strings)


class SequenceIds:
    """Default random keys: a hash of the prompt, and of how often the same one came before."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()  # by hash: prompts themselves would pile up

    def next(self, prompt: list[int]) -> int:
        """31 bits."""
        tokens = np.asarray(prompt, dtype=np.int64).tobytes()
        before = self._seen[zlib.crc32(tokens)]
        self._seen[zlib.crc32(tokens)] += 1
        return zlib.crc32(tokens + np.int64(before).tobytes()) >> 1


def sequence_keys(where: str, prompts: list[list[int]], given: Sequence[int] | None) -> list[int]:
    """A random key per prompt: ``given``, checked, or the defaults of :class:`SequenceIds`."""
    if given is None:
        default = SequenceIds()
        return [default.next(prompt) for prompt in prompts]
    keys = ids(where, "sequence_ids", given, 1 << 31)
    if len(keys) != len(prompts):
        expected = f"{len(prompts)} ids, one per sequence"
        raise ArgumentError(where, "sequence_ids", expected, len(keys))
    return keys
