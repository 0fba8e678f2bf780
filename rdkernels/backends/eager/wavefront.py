"""The state machine at the end of an outer step."""

from __future__ import annotations

import torch


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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    stops, bounds, depths = stop_tokens.tolist(), cu_rows.tolist(), depth.tolist()
    samples, ready, ids = sampled.tolist(), settled.tolist(), sequence_ids.tolist()
    limits, knowns = limit.tolist(), known.tolist()
    next_bounds, committed = [0], []
    # (source row, token, sequence id, position, depth) of every next row
    following: list[tuple[int, int, int, int, int]] = []
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

    capacity = len(samples) + len(committed) * headway
    following = [*following, *[(-1, 0, 0, 0, 0)] * (capacity - len(following))]
    table = torch.tensor(following, dtype=torch.int64, device=tokens.device).view(capacity, 5)

    def int32(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=tokens.device)

    source_row, row_keys = table[:, 0].int(), table[:, 2:].int()
    return int32(next_bounds), source_row, int32(committed), table[:, 1].clone(), row_keys
