"""``score``: how likely a model finds given continuations, at any depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rdkernels import _validation as validation
from rdkernels import ops
from rdkernels.cache import SharedKVCache
from rdkernels.errors import ArgumentError, is_number
from rdkernels.models.prefill import prefill_states
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.wavefront import Wavefront

_WHERE = "score"
_PIECE = 1 << 24  # logits at a time: 64 MiB
_PAGE = 64


@dataclass(frozen=True)
class Score:
    """What the model makes of one continuation.

    Attributes:
        tokens: of the continuation.
        log_probs: natural logarithm of each token's probability after what stands before it.
        greedy: whether each token is the one that greedy decoding would choose there.
    """

    tokens: list[int]
    log_probs: list[float]
    greedy: list[bool]

    @property
    def log_prob(self) -> float:
        """Of the whole continuation."""
        return math.fsum(self.log_probs)

    @property
    def is_greedy(self) -> bool:
        return all(self.greedy)


class _Pair(NamedTuple):
    prompt: list[int]
    continuation: list[int]
    key: int

    @property
    def line(self) -> list[int]:
        return self.prompt + self.continuation


class _Stretch(NamedTuple):
    """Positions ``[start, stop)`` of a pair, computed in one pass."""

    pair: int
    start: int
    stop: int


@torch.no_grad()
def score(
    model: RecurrentDepthModel,
    prompts: Sequence[Sequence[int]] | Sequence[str],
    continuations: Sequence[Sequence[int]] | Sequence[str],
    num_steps: int = 32,
    *,
    seed: int = 0,
    sequence_ids: Sequence[int] | None = None,
    initial_state_scale: float = 1.0,
    slots: int | None = None,
    max_rows: int = 4096,
) -> list[Score]:
    """Log-likelihood of every continuation after its prompt, with ``num_steps`` iterations.

    Initial states are keyed as in :func:`rdkernels.generate`: the same seed, sequence ids and
    prompts give the states that decoding would have had.

    Args:
        model: from :func:`rdkernels.load_model`.
        prompts: token-id lists of any lengths, or strings where the model has a tokenizer.
        continuations: one per prompt; text is encoded by itself and appended.
        num_steps: iterations of every position.
        seed: of the initial states.
        sequence_ids: 31-bit random key per pair; default as in ``generate``.
        initial_state_scale: factor on the random initial states; 0 starts from zero states.
        slots: None computes all positions of a pair at once, where every iteration reads the K/V of
            its own: what ``Autoregressive(num_steps, slots=num_steps)`` computes. A count computes
            the continuation token by token, as ``Autoregressive(num_steps, slots=slots)`` does; as
            slow as decoding, but it gives that sampler's probabilities exactly.
        max_rows: positions computed at a time; a longer pair is computed alone.

    Returns:
        A :class:`Score` per pair.

    Raises:
        ArgumentError: an empty prompt or continuation, a pair longer than the context, another
            number of continuations than prompts, or a malformed option. Nothing has run then.
    """
    validation.expect_count(_WHERE, "num_steps", num_steps, least=1)
    validation.expect_count(_WHERE, "max_rows", max_rows, least=1)
    validation.expect_seed(_WHERE, seed)
    scale = initial_state_scale
    if not is_number(scale) or not 0.0 <= scale < math.inf:
        raise ArgumentError(_WHERE, "initial_state_scale", "a finite value >= 0", repr(scale))
    if slots is not None:
        validation.expect_count(_WHERE, "slots", slots, least=1)
        if slots > num_steps:
            raise ArgumentError(_WHERE, "slots", f"1 to {num_steps}", slots)
    pairs = _pairs(model, prompts, continuations, sequence_ids)
    scorer = _Scorer(model, int(num_steps), int(seed), float(scale), slots)
    return [found for batch in _batches(pairs, max_rows) for found in scorer.score(batch)]


def _pairs(
    model: RecurrentDepthModel, prompts: object, continuations: object, keys: Sequence[int] | None
) -> list[_Pair]:
    encoded = []
    for name, texts in (("prompts", prompts), ("continuations", continuations)):
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise ArgumentError(_WHERE, name, f"a list of {name}", repr(texts))
        encoded.append(
            [
                validation.prompt_ids(model, _WHERE, f"{name}[{i}]", text)
                for i, text in enumerate(texts)
            ]
        )
    before, after = encoded
    if len(after) != len(before):
        raise ArgumentError(_WHERE, "continuations", f"{len(before)}, one a prompt", len(after))
    context = model.config.context_length
    for i, (prompt, continuation) in enumerate(zip(before, after, strict=True)):
        if (length := len(prompt) + len(continuation)) > context:
            expected = f"prompt and continuation of at most {context} tokens"
            raise ArgumentError(_WHERE, f"continuations[{i}]", expected, length)
    keys = validation.sequence_keys(_WHERE, before, keys)
    return [_Pair(*pair) for pair in zip(before, after, keys, strict=True)]


def _batches(pairs: list[_Pair], max_rows: int) -> Iterator[list[_Pair]]:
    """Consecutive pairs, as many as ``max_rows`` positions allow, but at least one."""
    batch: list[_Pair] = []
    rows = 0
    for pair in pairs:
        if batch and rows + len(pair.line) > max_rows:
            yield batch
            batch, rows = [], 0
        batch.append(pair)
        rows += len(pair.line)
    if batch:
        yield batch


class _Scorer:
    """Scores batches of pairs with one set of options."""

    def __init__(
        self,
        model: RecurrentDepthModel,
        num_steps: int,
        seed: int,
        initial_state_scale: float,
        slots: int | None,
    ) -> None:
        self.model, self.num_steps, self.seed = model, num_steps, seed
        self.initial_state_scale, self.slots = initial_state_scale, slots

    def score(self, pairs: list[_Pair]) -> list[Score]:
        lengths = [len(pair.line) for pair in pairs]
        pages = sum(-(-length // _PAGE) for length in lengths)
        cache = self.model.new_cache(
            len(pairs),
            max(lengths),
            total_tokens=pages * _PAGE,
            slots=self.slots or 1,
            page_size=_PAGE,
        )
        for b, length in enumerate(lengths):
            cache.reserve(b, length)
        found = [Score(pair.continuation, [], []) for pair in pairs]
        for stretches in self._passes(pairs):
            for b, log_prob, greedy in self._predict(pairs, stretches, cache):
                found[b].log_probs.append(log_prob)
                found[b].greedy.append(greedy)
        return found

    def _passes(self, pairs: list[_Pair]) -> Iterator[list[_Stretch]]:
        """Which positions are computed together; the last token predicts nothing of interest."""
        if self.slots is None:
            yield [_Stretch(b, 0, len(pair.line) - 1) for b, pair in enumerate(pairs)]
            return
        yield [_Stretch(b, 0, len(pair.prompt)) for b, pair in enumerate(pairs)]
        for j in range(1, max(len(pair.continuation) for pair in pairs)):
            ends = [len(pair.prompt) + j for pair in pairs]
            yield [_Stretch(b, e - 1, e) for b, e in enumerate(ends) if e < len(pairs[b].line)]

    def _predict(
        self, pairs: list[_Pair], stretches: list[_Stretch], cache: SharedKVCache
    ) -> Iterator[tuple[int, float, bool]]:
        """One pass: ``(pair, log-probability, greedy)`` of every continuation token after it."""
        model, device = self.model, self.model.device
        starts = [stretch.start for stretch in stretches]
        lengths = [stretch.stop - stretch.start for stretch in stretches]
        wavefront = Wavefront.from_lengths(starts, lengths, device)
        flat = [
            t
            for stretch in stretches
            for t in pairs[stretch.pair].line[stretch.start : stretch.stop]
        ]
        at = torch.tensor([stretch.pair for stretch in stretches], device=device)
        keys = [pairs[stretch.pair].key for stretch in stretches]
        state = prefill_states(
            model,
            torch.tensor(flat, device=device),
            wavefront,
            cache,
            num_steps=self.num_steps,
            sequence_ids=torch.tensor(keys, dtype=torch.int32, device=device),
            seed=self.seed,
            initial_state_scale=self.initial_state_scale,
            sequences=at,
        )
        rows = model.rows(wavefront, cache.page_table()[at])
        normed = model.coda(state, rows, cache)

        wanted: list[tuple[int, int, int]] = []  # (row, pair, token that follows)
        first = 0
        for stretch, length in zip(stretches, lengths, strict=True):
            pair = pairs[stretch.pair]
            for position in range(max(stretch.start, len(pair.prompt) - 1), stretch.stop):
                row = first + position - stretch.start
                wanted.append((row, stretch.pair, pair.line[position + 1]))
            first += length
        select, places, targets = zip(*wanted, strict=True)
        log_probs, greedy = self._log_probs(
            normed[torch.tensor(select, device=device)], torch.tensor(targets, device=device)
        )
        return zip(places, log_probs.tolist(), greedy.tolist(), strict=True)

    def _log_probs(
        self, normed: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of ``targets [N]`` under rows of the coda, never more than a piece of logits at once."""
        rows = max(_PIECE // self.model.config.vocab_size, 1)
        log_probs, greedy = [], []
        for part, target in zip(normed.split(rows), targets.split(rows), strict=True):
            logits = self.model.head(part)
            best = ops.sample_tokens(logits, backend=self.model.backend)
            greedy.append(best == target)
            log_probs.append(logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(dim=1))
        return torch.cat(log_probs), torch.cat(greedy)
