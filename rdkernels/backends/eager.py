"""What every op means, in plain PyTorch: the specification that all other providers are held to.

Functions take the positional arguments of the schemas. They favour clarity over speed
(``recurrent_attention`` and ``advance_wavefront`` read sizes and tokens back from the device),
compute in fp32 (fp64 for fp64 inputs), and are differentiable where the maths is. Where autograd
records ``recurrent_attention``, the caller's cache becomes part of the graph: detach it after use.
"""

from __future__ import annotations

import math

import torch

from rdkernels.backends import philox

NORM_STYLES = ("huginn", "llama", "olmo")
CRITERIA = ("latent-diff", "cosine")


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _scaled(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """RMS-normalise wide ``x``, round to ``dtype``, then multiply by the weight and round again."""
    return _normalise(x, eps).to(dtype) * weight


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _scaled(_wide(x), weight, eps, x.dtype)


def residual_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    post_weight: torch.Tensor | None,
    pre_weight: torch.Tensor | None,
    eps: float,
    style: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = residual.dtype
    if style == "huginn":
        hidden = _scaled(_wide(delta) + _wide(residual), post_weight, eps, dtype)
    elif style == "llama":
        hidden = (_wide(delta) + _wide(residual)).to(dtype)
    else:  # olmo: fp32 through the weight multiply and the sum, one rounding
        normed_delta = _normalise(_wide(delta), eps) * _wide(post_weight)
        hidden = (_wide(residual) + normed_delta).to(dtype)
    if pre_weight is None:
        return hidden, hidden.new_empty(0)
    return hidden, _scaled(_wide(hidden), pre_weight, eps, dtype)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = _wide(x).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def row_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    if scale is None:
        return torch.nn.functional.linear(x, weight)
    wide = _wide(x)
    weight = weight.to(wide.dtype) * scale.to(wide.dtype)[:, None]
    return torch.nn.functional.linear(wide, weight).to(x.dtype)


def rotate(x: torch.Tensor, cos_sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotary embedding of ``x [N, heads, d]`` with per-row ``cos_sin [N, d]``, in fp32."""
    cos, sin = _wide(cos_sin).unsqueeze(1).chunk(2, dim=-1)
    wide = _wide(x)
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)
    a, b = wide.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def recurrent_attention(
    qkv: torch.Tensor,
    qk_bias: torch.Tensor | None,
    cos_sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
    scale: float,
    interleaved: bool,
) -> torch.Tensor:
    num_rows, (page_size, kv_heads, head_dim) = qkv.size(0), key_cache.shape[1:]
    heads = qkv.size(1) // head_dim - 2 * kv_heads
    out = qkv.new_zeros(num_rows, heads, head_dim)
    bounds, starts = cu_rows.tolist(), start.tolist()
    spans = []  # per sequence with rows: (its active rows, their positions, its pages)
    for b, first in enumerate(starts):
        rows = torch.arange(bounds[b], bounds[b + 1], device=qkv.device)
        rows = rows if active is None else rows[active[bounds[b] : bounds[b + 1]]]
        if rows.numel():
            position = rows - bounds[b] + first
            pages = (first + bounds[b + 1] - bounds[b] + page_size - 1) // page_size
            spans.append((rows, position, page_table[b, :pages].long()))

    # All K/V of this launch are in the cache before any row attends.
    queries = []
    for rows, position, pages in spans:
        parts = qkv[rows].view(-1, heads + 2 * kv_heads, head_dim)
        query_key, value = parts.split((heads + kv_heads, kv_heads), dim=1)
        if qk_bias is not None:
            query_key = query_key + qk_bias.view(heads + kv_heads, head_dim)
        query_key = rotate(query_key, cos_sin[position], interleaved)
        query, key = query_key.split((heads, kv_heads), dim=1)
        queries.append(query)
        page, cell = pages[position // page_size], position % page_size
        key_cache[page, cell] = key.to(key_cache.dtype)
        value_cache[page, cell] = value.to(value_cache.dtype)

    for (rows, position, pages), query in zip(spans, queries, strict=True):
        reach = int(position[-1]) + 1
        keys = key_cache[pages].flatten(0, 1)[:reach].repeat_interleave(heads // kv_heads, dim=1)
        values = value_cache[pages].flatten(0, 1)[:reach]
        values = values.repeat_interleave(heads // kv_heads, dim=1)
        scores = torch.einsum("nhd,thd->hnt", _wide(query), _wide(keys)) * scale
        hidden = torch.arange(reach, device=qkv.device) > position.unsqueeze(1)
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        out[rows] = torch.einsum("hnt,thd->nhd", weights, _wide(values)).to(qkv.dtype)
    return out.flatten(1)


def inject_state(
    state: torch.Tensor,
    embed: torch.Tensor,
    previous_embed: torch.Tensor | None,
    depth: torch.Tensor | None,
    momentum: float,
    noise_weight: torch.Tensor | None,
    row_keys: torch.Tensor | None,
    seed: int,
    noise_std: float,
    variance_preserving: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = state.dtype
    if previous_embed is not None:
        mixed = momentum * _wide(previous_embed) + (1.0 - momentum) * _wide(embed)
        embed = torch.where((depth > 0).unsqueeze(1), mixed.to(dtype), embed)
    if noise_weight is not None:
        noise = philox.truncated_normal(
            row_keys, state.size(1), noise_std, seed, philox.STREAM_STATE_NOISE
        )
        wide = _wide(state)
        weight = noise_weight.to(wide.dtype).unsqueeze(1)
        kept = 1.0 - weight
        if variance_preserving:  # 1 - w**2 as a product, which has all its digits near w = 1
            kept = (kept * (1.0 + weight)).clamp(min=0.0).sqrt()
        mixed = kept * wide + weight * noise.to(wide.dtype)
        state = torch.where(weight > 0, mixed.to(dtype), state)
    return torch.cat((state, embed), dim=1), embed.clone()


def exit_update(
    state: torch.Tensor,
    previous_state: torch.Tensor,
    depth: torch.Tensor,
    active: torch.Tensor | None,
    iterations: int,
    threshold: float,
    criterion: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    now, before = _wide(state), _wide(previous_state)
    change, size = (now - before).norm(dim=1), now.norm(dim=1)
    if criterion == "latent-diff":
        delta = change / size  # x / 0 = inf: never converged
    else:  # cosine
        norms = size * before.norm(dim=1)
        delta = torch.where(norms == 0, float("inf"), 1.0 - (now * before).sum(1) / norms)
    delta = torch.where(change == 0, 0.0, delta)  # exactly, whatever the rounding of the quotient
    delta = torch.nan_to_num(delta.float(), nan=float("inf"), posinf=float("inf"))
    live = torch.ones_like(depth, dtype=torch.bool) if active is None else active
    depth.add_(live * iterations)
    delta = torch.where(live, delta, 0.0)
    return delta, live & (delta < threshold)


def truncated_normal(
    row_keys: torch.Tensor, width: int, std: float, seed: int, stream: int, dtype: torch.dtype
) -> torch.Tensor:
    return philox.truncated_normal(row_keys, width, std, seed, stream).to(dtype)


def kept_logits(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """``logits``, wide, with ``-inf`` for the tokens outside top-k, top-p and min-p."""
    vocabulary, kept = logits.size(1), _wide(logits)
    if 0 < top_k < vocabulary:
        smallest = kept.topk(top_k, dim=1).values[:, -1:]
        kept = kept.masked_fill(kept < smallest, float("-inf"))
    largest = kept.max(dim=1, keepdim=True).values
    if top_p < 1.0:
        # +inf (a certain token) less itself would be NaN.
        scaled = torch.where(kept == largest, 0.0, (kept - largest) / temperature)
        probability, order = torch.softmax(scaled, dim=1).sort(dim=1, descending=True)
        total = probability.cumsum(1)
        # Mass strictly above each token; equal probabilities stand or fall together.
        first = torch.searchsorted(-probability, -probability)
        above = torch.where(first > 0, total.gather(1, (first - 1).clamp(min=0)), 0.0)
        drop = torch.zeros_like(kept, dtype=torch.bool).scatter(1, order, above >= top_p)
        kept = kept.masked_fill(drop, float("-inf"))
    if min_p > 0.0:
        kept = kept.masked_fill(kept < largest + temperature * math.log(min_p), float("-inf"))
    return kept


def sample_tokens(
    logits: torch.Tensor,
    row_keys: torch.Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> torch.Tensor:
    logits = torch.nan_to_num(logits, nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    if temperature == 0.0:
        return logits.argmax(dim=1)
    keys = row_keys.clone()
    keys[:, 2] = 0  # one draw per (sequence, position), whatever the step: see DESIGN of sampling
    uniform = philox.uniform(keys, logits.size(1), seed, philox.STREAM_SAMPLING)
    gumbel = -torch.log(-torch.log(uniform))
    kept = kept_logits(logits, temperature, top_k, top_p, min_p)
    # Not kept / temperature + gumbel: dividing by a small one overflows two logits into one.
    return (kept.double() + temperature * gumbel).argmax(dim=1)


def _count_commits(
    consumed: list[int],
    predicted: list[int],
    ready: list[bool],
    *,
    first: int,
    known: int,
    limit: int,
    stops: list[int],
) -> tuple[int, bool]:
    """Rows of one sequence that commit, from position ``first``; is it finished with them?"""
    for j, settled in enumerate(ready):
        if not settled or (j > 0 and consumed[j] != predicted[j - 1]):
            return j, False
        position = first + j + 1  # of the token that is committed
        stopped = position >= known and predicted[j] in stops
        if stopped or position + 1 >= limit:
            return j + 1, True
    return len(ready), False


def advance_wavefront(
    tokens: torch.Tensor,
    start: torch.Tensor,
    done: torch.Tensor,
    committed_depth: torch.Tensor,
    sampled: torch.Tensor,
    settled: torch.Tensor,
    depth: torch.Tensor,
    cu_rows: torch.Tensor,
    limit: torch.Tensor,
    known: torch.Tensor,
    sequence_ids: torch.Tensor,
    stop_tokens: torch.Tensor,
    headway: int,
    max_wavefront: int,
    restart: bool,
    capacity: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``capacity``: the next rows that are returned; all that there can be, if None."""
    stops, bounds, depths = stop_tokens.tolist(), cu_rows.tolist(), depth.tolist()
    samples, ready, ids = sampled.tolist(), settled.tolist(), sequence_ids.tolist()
    limits, knowns = limit.tolist(), known.tolist()
    next_bounds, committed = [0], []
    following = []  # (source row, token, sequence id, position, depth) of every next row
    for b, first in enumerate(start.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        length = rows.stop - rows.start
        if not length:
            committed.append(0)
            next_bounds.append(len(following))
            continue
        line, end, given = tokens[b].tolist(), first + length, knowns[b]
        predicted = samples[rows]
        for position in range(first + 1, min(given, end + 1)):
            predicted[position - first - 1] = line[position]
        bound = {"first": first, "known": given, "limit": limits[b], "stops": stops}
        count, finished = _count_commits(line[first:end], predicted, ready[rows], **bound)
        next_start = first + count
        decided = max(first + 1, given)  # the first position whose token a row decides
        decided_by = rows.start + decided - first - 1
        committed_depth[b, decided : next_start + 1] = depth[decided_by : rows.start + count]
        start[b] = next_start
        done[b] = finished

        wrong = restart and 0 < count < length and line[next_start] != predicted[count - 1]
        front = next_start if finished or wrong else end  # where fresh rows would begin
        for j, token in enumerate(predicted):
            stays = j == length - 1 and front > next_start
            if not restart or j < count or stays:
                line[first + 1 + j] = token
        counted = max(front - max(next_start, given - 1), 0)
        uncounted = max(given - 1 - front, 0)  # fresh rows that max_wavefront does not count
        fresh = min(headway, uncounted + max_wavefront - counted, limits[b] - 1 - front)
        fresh = 0 if finished else max(fresh, 0)
        for position in range(max(front + 1, given), front + fresh):
            line[position] = line[position - 1]  # nothing has been predicted there yet
        tokens[b] = torch.tensor(line)

        before = rows.start + front - first - 1  # the row before the first fresh one
        sources = [*range(rows.start + count, before + 1), *[-1 - before] * fresh]
        for position, source in enumerate(sources, next_start):
            row_depth = depths[source] if source >= 0 else 0
            following.append((source, line[position], ids[b], position, row_depth))
        committed.append(count)
        next_bounds.append(len(following))

    capacity = len(samples) + len(committed) * headway if capacity is None else capacity
    following = [*following[:capacity], *[(-1, 0, 0, 0, 0)] * (capacity - len(following))]
    table = torch.tensor(following, dtype=torch.int64, device=tokens.device).view(capacity, 5)

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=tokens.device)

    source_row, row_keys = table[:, 0].int(), table[:, 2:].int()
    return int32(next_bounds), source_row, int32(committed), table[:, 1].clone(), row_keys


def carry_rows(
    state: torch.Tensor,
    embed: torch.Tensor,
    source_row: torch.Tensor,
    row_keys: torch.Tensor,
    cu_rows: torch.Tensor,
    seed: int,
    std: float,
    continuous: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    capacity, width = source_row.size(0), state.size(1)
    live = (torch.arange(capacity, device=state.device) < cu_rows[-1]).unsqueeze(1)
    kept = live & (source_row >= 0).unsqueeze(1)
    before = -1 - source_row if continuous else torch.zeros_like(source_row)
    source = torch.where(source_row >= 0, source_row, before).long()
    source = torch.where(live.squeeze(1), source, 0)  # whatever padding rows hold
    if state.size(0) == 0:  # so that there is a row 0
        state, embed = state.new_zeros(1, width), embed.new_zeros(1, width)
    carried = state[source]
    if not continuous:
        keys = row_keys * row_keys.new_tensor([1, 1, 0])
        draws = philox.truncated_normal(keys, width, std, seed, philox.STREAM_INITIAL_STATE)
        begun = draws.to(state.dtype) if std > 0.0 else 0.0
        carried = torch.where(kept, carried, begun)
    return torch.where(live, carried, 0), torch.where(kept, embed[source], 0)
